"""manage.py modalctl: processors on Modal. No subcommand works yet; the command says so."""

import argparse
from typing import Any, NoReturn

from apps.errors import UsageError
from apps.processors.management.commands._base import Parser, SubcommandCommand


class Command(SubcommandCommand):
    help = "Deploy, run and stop processors on Modal. No subcommand works yet in this version."

    def add_arguments(self, parser: Parser) -> None:
        # Takes any words, so that each of them is answered alike.
        parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        parser.set_defaults(run=self.refuse)

    def refuse(self, options: dict[str, Any]) -> NoReturn:
        asked = f"modalctl {options['words'][0]}" if options["words"] else "modalctl without a subcommand"
        raise UsageError(
            f"{asked} does nothing: no subcommand of modalctl works yet in this version",
            hint="on this machine: localctl --help",
        )
