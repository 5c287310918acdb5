"""The parser of our commands: usage errors are exceptions, and what every subcommand takes is taken anywhere."""

import argparse
from pathlib import Path
from typing import Any, Final, NoReturn

from django.core.management.base import CommandError, CommandParser

from apps.errors import OperationError, UsageError

_COMMON: Final = ("json", "verbosity", "traceback", "no_color", "version")


class Failed(CommandError):  # type: ignore[misc]
    """An OperationError on its way out: callers in Python catch it, the shell gets status and words."""

    def __init__(self, error: OperationError) -> None:
        super().__init__(error.message, returncode=error.exit_status)
        self.error = error
        self.document = error.document()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; a subcommand's own options come before the common ones."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        super().add_usage(usage, sorted(actions, key=lambda action: action.dest in _COMMON), groups, prefix)


class Parser(CommandParser):  # type: ignore[misc]
    """Fails by an exception: argparse would print and exit by itself, and with --json leave stdout empty."""

    def __init__(self, **kwargs: Any) -> None:
        # allow_abbrev: --js must not mean --json today and something else next release.
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **kwargs})
        self._add_common()

    def error(self, message: str) -> NoReturn:
        raise Failed(UsageError(message, hint=f"{_typed(self.prog)} --help"))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Here and not at the top, so that the hint names the subcommand.
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def set_examples(self, examples: tuple[str, str]) -> None:
        """Lines for the end of --help; {prog} in them is the command as it was typed."""
        prog = _typed(self.prog.rpartition(" ")[0])
        self.epilog = "\n".join(("examples:", *(f"  {example.replace('{prog}', prog)}" for example in examples)))

    def _add_common(self) -> None:
        group = self.add_argument_group("common options")
        # SUPPRESS: a default in a subparser would overwrite what was typed before the subcommand.
        flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
        level: dict[str, Any] = {"action": "store_const", "dest": "verbosity", "default": argparse.SUPPRESS}
        group.add_argument("--json", help="print one JSON document on stdout, for an error too", **flag)
        group.add_argument("-v", "--verbose", const=2, help="say more on stderr", **level)
        group.add_argument("-q", "--quiet", const=0, help="say nothing on stderr but warnings and errors", **level)
        group.add_argument("--traceback", help="print the traceback of an error on stderr", **flag)
        group.add_argument("--no-color", help="no colour on a terminal either", **flag)
        group.add_argument("--version", action=_Version, help="print the version and exit")
        self._add_djangos(group)

    def _add_djangos(self, group: Any) -> None:
        """What Django looks for anywhere in the call, and what `call_command` may be given."""
        hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        group.add_argument("--verbosity", type=int, choices=range(4), **hidden)
        group.add_argument("--force-color", action="store_true", **hidden)
        for name in ("--settings", "--pythonpath"):
            group.add_argument(name, **hidden)


class _Version(argparse._VersionAction):
    """Reads the version only when it is asked for."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.version = f"theory-processors {version()}"
        super().__call__(*args, **kwargs)


def _typed(prog: str) -> str:
    return f"python {prog}" if prog.startswith("manage.py") else prog


def version() -> str:
    """The project's, by its pyproject.toml."""
    import tomllib

    text = (Path(__file__).parents[4] / "pyproject.toml").read_text("utf-8")
    return str(tomllib.loads(text)["project"]["version"])
