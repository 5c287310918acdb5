"""The one place where arguments, output, errors and signals meet Django.

A command is a class of methods, each bound to a subcommand in `add_arguments`:

    class Command(SubcommandCommand):
        help = "Start, run, inspect and stop processors on this machine."

        def add_arguments(self, parser: Parser) -> None:
            subparsers = self.subparsers(parser)
            stop = self.subcommand(
                subparsers, self.stop, help="stop a container",
                examples=("{prog} stop --ref llm/litellm@1", "{prog} stop --all --json"),
            )
            stop.add_argument("--ref", required=True, metavar="REF", help="processor ref")

        def stop(self, options: dict[str, Any]) -> Result:
            stopped = local.stop(...)  # services are imported here, inside
            return Result(stopped.document(), f"stopped {stopped.ref}")

What a method returns or yields is printed: one `Result`, or an iterable of them (`logs --json`: one JSON object a
line; text as each item says). A service that has events to tell while it works takes `self.emit` as a callback,
so that Ctrl-C, SIGTERM and a reader that left reach it as KeyboardInterrupt: it cancels, then raises `Cancelled`.
Raise OperationErrors for what a user can fix; one that carries an envelope prints the envelope. All else that is
raised is a bug: ERR_INTERNAL. `note` (silent with -q), `detail` (only with -v) and `warn` go to stderr; `paint`
colours for stdout when that is a terminal. Callers in Python (`call_command`) get `Failed`, a CommandError with
`returncode`, `document` and `error`; nothing exits, and signals are left alone.
"""

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO, TextIOWrapper
from typing import Any, Final, NamedTuple, NoReturn

from django.core.management.base import BaseCommand, OutputWrapper

from apps.errors import Cancelled, OperationError, StorageFailed
from apps.processors.management.commands._arguments import Failed, Parser

__all__ = ["Failed", "Parser", "Result", "SubcommandCommand"]

_COLOURS: Final = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}
_LOG_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
# At DEBUG these write what goes over the wire: headers with tokens, signed URLs.
_TELLTALES: Final = ("botocore", "docker", "grpclib", "h2", "hpack", "urllib3", "websockets")


class Result(NamedTuple):  # no dataclass: every run would pay for making it
    """What a subcommand answers: a document for --json, and the same for people."""

    document: Mapping[str, Any]
    text: str | Callable[[], str] | None = None
    """None: one `key: value` a line. A callable is asked only when text is wanted."""
    ending: str = "\n"
    """What follows the text; empty for tokens that go on, and for an empty text that prints nothing."""
    stderr: bool = False
    """The text (never the document) belongs on stderr."""


class _Stop(KeyboardInterrupt):
    """The end was asked for. A KeyboardInterrupt, so that a service has one thing to catch for all of them."""

    status = 128 + signal.SIGINT


class _Terminated(_Stop):
    status = 128 + signal.SIGTERM


class _ReaderGone(_Stop):
    """Nobody reads stdout any more: `localctl status | head -1`."""

    status = 128 + signal.SIGPIPE


class SubcommandCommand(BaseCommand):  # type: ignore[misc]
    """A management command made of subcommands."""

    requires_system_checks: list[str] = []  # no models and no URLs: nothing to check

    def __init__(self, stdout: Any = None, stderr: Any = None, **kwargs: Any) -> None:
        # A stream that was closed by the caller (`>&-`) is None.
        super().__init__(stdout or sys.stdout or StringIO(), stderr or sys.stderr or StringIO(), **kwargs)
        self.stderr.style_func = None
        self._json = self._plain = self._bright = self._finished = self._lost = False
        self._verbosity = 1
        self._stop: _Stop | None = None

    # Arguments

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Parser:
        name = os.path.basename(prog_name)
        parser = Parser(
            prog=subcommand if name in ("", subcommand) else f"{name} {subcommand}", description=self.help, **kwargs
        )
        parser.set_defaults(json=False, verbosity=1, traceback=False, no_color=False, force_color=False)
        self.add_arguments(parser)
        return parser

    def subparsers(self, parser: Parser) -> Any:
        return parser.add_subparsers(metavar="SUBCOMMAND", required=True, title="subcommands")

    def subcommand(
        self, subparsers: Any, run: Callable[[dict[str, Any]], Any], *, help: str, examples: tuple[str, str]
    ) -> Parser:
        """A parser for the subcommand called after the method `run`; {prog} in an example is the command as typed."""
        parser: Parser = subparsers.add_parser(
            run.__name__.replace("_", "-"), help=help, description=f"{help[0].upper()}{help[1:]}."
        )
        parser.set_examples(examples)
        parser.set_defaults(run=run)
        return parser

    # From call to result

    def handle(self, *args: Any, **options: Any) -> None:
        self._json, self._verbosity = options["json"], options["verbosity"]
        self._plain, self._bright = options["no_color"], options["force_color"]
        with _failures():
            answer = options["run"](options)
            if isinstance(answer, Result):
                self.emit(answer)
            else:
                self._emit_each(answer)

    def run_from_argv(self, argv: list[str]) -> None:
        """As the shell sees it: a document or words, then an exit status."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # whatever the locale, a character it lacks must not end us
                stream.reconfigure(errors="backslashreplace")
        with self._sigterm():
            failed = self._attempt(argv)
            status = self._report(failed, argv) if failed else 0
        if status:
            sys.exit(status)

    def _attempt(self, argv: list[str]) -> Failed | None:
        try:
            self._parse_and_execute(argv)
        except Failed as exc:
            return exc
        except KeyboardInterrupt as exc:
            if not self._finished:
                how = "terminated" if isinstance(exc, _Terminated) else "interrupted"
                return Failed(Cancelled(how, details={"by": "user"}))
        return None

    def _parse_and_execute(self, argv: list[str]) -> None:
        try:
            options = vars(self.create_parser(argv[0], argv[1]).parse_args(argv[2:]))
        except SystemExit:  # --help, --version
            with _failures():
                self._write("")
            raise
        level = _LOG_LEVELS[options["verbosity"]]
        logging.basicConfig(level=level, format="%(name)s: %(message)s")
        for name in _TELLTALES:
            logging.getLogger(name).setLevel(max(level, logging.INFO))
        self.execute(**options)
        self._finished = True

    def _report(self, failed: Failed, argv: Sequence[str]) -> int:
        if isinstance(self._stop, _ReaderGone):
            return self._stop.status
        self._plain = "--no-color" in argv
        if "--traceback" in argv and failed.__cause__:
            self._say("".join(traceback.format_exception(failed.__cause__)).rstrip())
        status = self._stop.status if self._stop and isinstance(failed.error, Cancelled) else failed.returncode
        if "--json" in argv and not self._lost:
            try:
                self._write(_line(failed.document))
            except _ReaderGone as exc:
                return exc.status
            except StorageFailed as full:
                self._say_error(full)
            return int(status)
        self._say_error(failed.error)
        return int(status)

    @contextmanager
    def _sigterm(self) -> Iterator[None]:
        """By default SIGTERM ends Python without running `finally`, which leaves containers behind."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def terminate(*_: object) -> NoReturn:
            signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough: let the clean-up finish
            self._stop = _Terminated()
            raise self._stop

        previous = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    # Output

    def emit(self, result: Result) -> None:
        """Print one result now, the document with --json and the text without."""
        if self._json:
            self._write(_line(result.document))
            return
        text = result.text() if callable(result.text) else result.text
        if text is None:
            text = self.outline(result.document)
        if result.stderr:
            self._say(text, ending=result.ending)
        else:
            self._write(text + result.ending)

    def note(self, text: str) -> None:
        """A line for people about what happens: progress, notes. Silent with -q."""
        if self._verbosity >= 1:
            self._say(text)

    def detail(self, text: str) -> None:
        """A line that only -v asks for."""
        if self._verbosity >= 2:
            self._say(text)

    def warn(self, text: str) -> None:
        """A line about what the caller should know even with -q."""
        self._say(f"{self.paint('warning:', 'yellow', stderr=True)} {text}")

    def paint(self, text: str, colour: str, *, stderr: bool = False) -> str:
        """`text` in a colour (bold, dim, red, green, yellow) where the stream is a terminal that wants colours."""
        from apps.settings import no_colour

        stream = self.stderr if stderr else self.stdout
        if self._plain or not (self._bright or (stream.isatty() and not no_colour())):
            return text
        return f"\033[{_COLOURS[colour]}m{text}\033[0m"

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
        """Columns as wide as what is in them."""
        cells = [[str(cell) for cell in row] for row in (heads, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join((self.paint(lines[0], "bold"), *lines[1:]))

    def outline(self, values: Mapping[str, Any], indent: int = 0) -> str:
        """Nested values, one a line."""
        lines = []
        for key, value in values.items():
            if isinstance(value, dict) and value:
                lines += [f"{' ' * indent}{key}:", self.outline(value, indent + 2)]
            else:
                lines.append(f"{' ' * indent}{key}: {value if isinstance(value, str) else json.dumps(value)}")
        return "\n".join(lines)

    def _emit_each(self, results: Iterable[Result]) -> None:
        try:
            for result in results:
                self.emit(result)
        finally:
            if close := getattr(results, "close", None):
                close()

    def _say_error(self, error: OperationError) -> None:
        self._say(f"{self.paint(f'{error.code}:', 'red', stderr=True)} {error.message}")
        if error.hint:
            self._say(f"{self.paint('hint:', 'dim', stderr=True)} {error.hint}")

    def _say(self, text: str, *, ending: str = "\n") -> None:
        try:
            self.stderr.write(text + ending, ending="")
            self.stderr.flush()
        except OSError:  # nobody reads it: what happens does not change
            _drop(self.stderr)

    def _write(self, text: str) -> None:
        try:
            self.stdout.write(text, ending="")
            self.stdout.flush()
        except BrokenPipeError:
            _drop(self.stdout)
            self._stop = _ReaderGone()
            raise self._stop from None
        except OSError as exc:
            _drop(self.stdout)
            self._lost = True
            raise StorageFailed(f"stdout can't be written: {exc.strerror or exc}") from exc


def _line(document: Mapping[str, Any]) -> str:
    """A document as --json prints it: an envelope's line is byte for byte the stored receipt."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"


def _drop(stream: OutputWrapper) -> None:
    """Let what is still in the buffer go nowhere: the interpreter's own flush at exit would complain again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def _failures() -> Iterator[None]:
    """The only place that catches every exception: in any other it would hide our bugs in the user's errors."""
    try:
        yield
    except OperationError as exc:
        raise Failed(exc) from exc
    except Exception as exc:
        words = " ".join(str(exc).split())[:500]
        hint = "this is a bug: report what the same line prints with --traceback, and with --version"
        raise Failed(OperationError(f"{type(exc).__name__}: {words}", hint=hint)) from exc
