"""`run`, as localctl and modalctl alike take it: its options, its events, and what a person sees of it."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.processors.management.commands._base import Parser, Result

if TYPE_CHECKING:
    from apps.processors import asking

LONGEST_S = 30 * 24 * 3600  # as the runtime has it
REF_HELP = "processor ref, e.g. llm/litellm@1"


def add_options(run: Parser, *, platform_help: str) -> None:
    run.add_argument("--ref", required=True, help=REF_HELP)
    run.add_argument("--mode", choices=("mock", "real"), default="mock", help="default: mock")
    run.add_argument("--write-prefix", metavar="PREFIX", help="/artifacts/…/, knows {execution_id} and {ref_slug}")
    run.add_argument("--inputs-json", metavar="JSON", help="the inputs, as JSON")
    run.add_argument("--inputs-file", metavar="PATH", help="a file with the inputs")
    run.add_argument("--inputs", metavar="-", help="- reads the inputs from stdin")
    run.add_argument(
        "--attach", metavar="NAME=PATH", action="append", help="upload a file, and name it at NAME in params"
    )
    run.add_argument("--stream", action="store_true", help="print events as they come")
    run.add_argument("--platform", metavar="PLATFORM", help=platform_help)
    run.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="end within, queue included (default: registry.yaml's)"
    )
    run.add_argument("--execution-id", metavar="ID", help="a UUIDv7; the same id is the same execution")


def asked(options: Mapping[str, Any]) -> "asking.Asked":
    """What was typed."""
    from apps.processors import asking, inputs
    from apps.processors.reference import Platform

    return asking.Asked(
        ref=options["ref"],
        mode=options["mode"],
        inputs=lambda settings: inputs.read(
            options["inputs_json"],
            options["inputs_file"],
            options["inputs"],
            caller=settings.caller,
            stdin=sys.stdin.buffer if sys.stdin else None,
        ),
        platform=Platform.parse(options["platform"]) if options["platform"] is not None else None,
        write_prefix=options["write_prefix"],
        timeout_s=options["timeout"],
        execution_id=options["execution_id"],
        attach=tuple(options["attach"] or ()),
    )


def event_result(event: Mapping[str, Any]) -> Result:
    data = event["data"]
    if event["event"] == "token":
        return Result(event, data["text"], ending="")
    if event["event"] == "log":
        return Result(event, f"{data['level']}: {data['message']}", stderr=True)
    return Result(event, "", ending="")


def ran_text(ran: "asking.Ran", *, said: bool) -> str:
    """What the processor said (unless it was streamed already), then where the outputs are."""
    lines = [""] if said else [*ran.texts()]
    return "\n".join((*lines, *(f"{place}  {output['size_bytes']} bytes" for output, place in ran.places())))


def short(digest: str | None) -> str:
    return (digest or "-")[:19]


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= LONGEST_S:
        raise ValueError
    return number


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return min(number, 10**9)  # more lines than any log has


seconds.__name__ = "number of seconds"  # argparse puts it into its message
count.__name__ = "count"
