"""A command for tests of the base: run as a module it is `probe SUBCOMMAND`, with the base's every way to end."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from apps.errors import Cancelled, NotStarted, RuntimeFailed
from apps.processors.management.commands._base import Parser, Result, SubcommandCommand


class Command(SubcommandCommand):
    help = "Try the base."

    def add_arguments(self, parser: Parser) -> None:
        subparsers = self.subparsers(parser)
        for method in (
            self.answer,
            self.stream,
            self.fail,
            self.fail_run,
            self.bug,
            self.wait,
            self.run,
            self.say,
            self.aside,
        ):
            examples = ("{prog} " + method.__name__, "X=1 {prog} " + method.__name__ + " --json")
            self.subcommand(subparsers, method, help="try it", examples=examples).add_argument("--ref")

    def answer(self, options: dict[str, Any]) -> Result:
        return Result({"status": "success", "ref": options["ref"], "nested": {"é": [1, None]}})

    def stream(self, options: dict[str, Any]) -> Iterator[Result]:
        try:
            for number in range(int(options["ref"] or 3)):
                yield Result({"number": number}, partial("<{}>".format, number), ending="")
        finally:
            self.note("closed")

    def fail(self, options: dict[str, Any]) -> Result:
        raise NotStarted("llm/x@1 is not started", hint="localctl start --ref llm/x@1", details={"why": "é"})

    def fail_run(self, options: dict[str, Any]) -> Iterator[Result]:
        yield Result({"event": "token"}, "token")
        error = RuntimeFailed("the handler raised")
        error.envelope = {"schema": 1, "status": "error", "execution_id": "1", "error": error.words()}
        raise error

    def bug(self, options: dict[str, Any]) -> Result:
        raise ZeroDivisionError("a\nbug")

    def wait(self, options: dict[str, Any]) -> Result:
        try:
            self.note("waiting")
            time.sleep(60)
        finally:
            self.note("cleaned up")
        return Result({})

    def run(self, options: dict[str, Any]) -> Result:
        """As a service does: events go out by the callback, and whatever ends us cancels."""
        try:
            self.note("running")
            for number in range(100_000):
                self.emit(Result({"event": "token", "number": number}, f"token {number}"))
                time.sleep(0.0005)
        except KeyboardInterrupt as exc:
            self.note("cancelled")
            error = Cancelled("cancelled by the user", details={"by": "user"})
            error.envelope = {"schema": 1, "status": "error", "error": error.words()}
            raise error from exc
        return Result({"status": "success"})

    def say(self, options: dict[str, Any]) -> Result:
        self.note("a note")
        self.detail("a detail")
        self.warn("a warning")
        text = self.table(("REF", "é"), [("llm/x@1", 1), ("a", "→ \udcff")])
        return Result({"said": "→"}, self.paint(text, "green"))

    def aside(self, options: dict[str, Any]) -> list[Result]:
        return [
            Result({"n": 1}, "to stderr", stderr=True),
            Result({"n": 2}, "to stdout"),
            Result({"n": 3}, "", ending=""),
        ]


if __name__ == "__main__":
    from django.conf import settings

    settings.configure()
    Command().run_from_argv(["probe", "probe", *sys.argv[1:]])
