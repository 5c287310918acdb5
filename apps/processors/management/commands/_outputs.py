"""The subcommand `outputs`, the same on every command that runs processors."""

from pathlib import Path
from typing import Any, Final

from apps.errors import UsageError
from apps.processors.management.commands._base import Parser, Result, SubcommandCommand

_ID: Final = "01a202df-5e07-7db6-94a6-b0bf2199220b"
HELP: Final = "list, download or discard what an execution wrote"
EXAMPLES: Final = (
    f"{{prog}} outputs --ref llm/litellm@1 --execution-id {_ID} --download out",
    f"{{prog}} outputs --ref llm/litellm@1 --execution-id {_ID} --discard --json",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--ref", required=True, help="processor ref, e.g. llm/litellm@1")
    parser.add_argument("--execution-id", required=True, metavar="ID", help="as in the run's envelope")
    parser.add_argument("--write-prefix", metavar="PREFIX", help="as the run was given it")
    parser.add_argument("--download", metavar="DIR", help="write the outputs there, their digests verified")
    parser.add_argument("--discard", action="store_true", help="remove all of it, after the download if any")


def answer(command: SubcommandCommand, options: dict[str, Any]) -> Result:
    from apps.processors import outputs, wiring
    from apps.processors.reference import ProcessorRef
    from apps.settings import Settings

    ref = ProcessorRef.parse(options["ref"])
    settings = Settings.read()
    found = outputs.outputs(
        outputs.Asked(
            ref,
            options["execution_id"],
            write_prefix=options["write_prefix"],
            download=_folder(options["download"], settings.caller),
            discard=options["discard"],
        ),
        storage=wiring.storage(settings),
    )
    if not found.written.complete:
        command.note("there is no index: the execution goes on, or did not succeed")
    return Result(found.document(), lambda: command.table(("OUTPUT", "BYTES", "DIGEST"), found.rows()))


def _folder(typed: str | None, caller: Path) -> Path | None:
    if typed == "":  # --download "$PLACE" --discard, and the variable is not set: all would be gone
        raise UsageError("--download names no folder", hint="--download . is the current one")
    return None if typed is None else caller / typed
