"""The way into Django for our three commands: the short one. All else goes the stock way."""

import atexit
import gc
import json
import os
import sys
from pathlib import Path

OURS = ("processorctl", "localctl", "modalctl")


def execute(argv: list[str]) -> None:
    """Run the management command that `argv` (as sys.argv) names.

    Django's own way costs 240 ms more: `django.setup()` imports URLs, templates and models for a script prefix and
    a logging configuration that nothing here reads.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "apps.settings")
    gc.set_threshold(100_000)  # imports make so many objects, and all of them stay
    if not sys.warnoptions:  # with -W error::ResourceWarning the last collection is wanted
        atexit.register(gc.freeze)  # no last collection over a heap that is about to go
    try:
        _short(argv) if _is_ours(argv) else _stock(argv)
    except KeyboardInterrupt:  # while importing; from there on the command answers by itself
        _interrupted(as_json="--json" in argv)
        sys.exit(130)


def _is_ours(argv: list[str]) -> bool:
    # Django takes these two before it looks for the command, wherever they stand.
    early = any(word.partition("=")[0] in ("--settings", "--pythonpath") for word in argv[2:])
    return len(argv) > 1 and argv[1] in OURS and not early and "DJANGO_AUTO_COMPLETE" not in os.environ


def _stock(argv: list[str]) -> None:
    from django.core.management import execute_from_command_line

    execute_from_command_line(argv)


def _short(argv: list[str]) -> None:
    from django.apps import apps
    from django.conf import settings
    from django.core.management import load_command_class

    apps.populate(settings.INSTALLED_APPS)  # django.setup() less URLs and logging
    load_command_class("apps.processors", argv[1]).run_from_argv(argv)


def _interrupted(*, as_json: bool) -> None:
    if as_json:
        error = {"code": "ERR_CANCELLED", "message": "interrupted", "hint": "", "details": {"by": "user"}}
        sys.stdout.write(json.dumps({"status": "error", "error": error}) + "\n")
    else:
        sys.stderr.write("ERR_CANCELLED: interrupted\n")


def processorctl() -> None:
    _console("processorctl")


def localctl() -> None:
    _console("localctl")


def modalctl() -> None:
    _console("modalctl")


def _console(name: str) -> None:
    execute([name, name, *sys.argv[1:]])


def _find_runtime() -> None:
    """Both ends import the protocol from code/runtime, which need not be installed here."""
    folder = str(Path(__file__).resolve().parent.parent / "code" / "runtime")
    if folder not in sys.path:
        sys.path.insert(1, folder)


_find_runtime()
