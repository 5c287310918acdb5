"""What `localctl run` costs, against a bare client that does the same and a Django command that does nothing."""

import json
import os
from functools import partial
from pathlib import Path

from bench.bare_client import INPUTS as BARE_INPUTS
from bench.checkout import BIN, PROJECT, REF, Checkout, checkout, leave_out_the_provider
from bench.measure import alternate, cpu_ms, median, million_instructions, rounds, say, table

PYTHON = str(BIN / "python")
RUN = ("run", "--ref", REF, "--mode", "mock", "--json")


def main() -> None:
    say("localctl run: building and starting on the process engine")
    with checkout("process") as made:
        leave_out_the_provider(made.root)
        made("processorctl", "build", "--ref", REF)
        made("localctl", "start", "--ref", REF, "--allow-missing-secrets")
        _same_inputs(made)
        report("`localctl run --mode mock`, process engine", made)


def _same_inputs(made: Checkout) -> None:
    example = made("processorctl", "show", "--ref", REF)["spec"]["inputs"]["examples"][0]
    if example != BARE_INPUTS:
        raise RuntimeError("bare_client.py sends other inputs than the registry's first example: make them equal")


def report(title: str, made: Checkout) -> None:
    """The table of one engine, whose processor runs."""
    folder = made.root / "bare"
    commands = {
        "python -c pass": ([PYTHON, "-c", "pass"], ""),
        "bare client, same messages and files": (
            _bare(made, folder),
            json.dumps({"Authorization": f"Bearer {made.token}"}),
        ),
        "stock Django command that does nothing": ([PYTHON, str(PROJECT / "bench/noop/manage.py"), "noop"], ""),
        "`localctl run --mode mock`": (made.argv("localctl", *RUN), ""),
    }
    for argv, stdin in commands.values():  # compiles what has no bytecode yet
        cpu_ms(argv, made.environment, stdin)
    say("localctl run: CPU")
    measures = {name: partial(cpu_ms, argv, made.environment, stdin) for name, (argv, stdin) in commands.items()}
    taken = alternate(measures, rounds(25, 7))
    say("localctl run: instructions")
    counted = {
        name: million_instructions([PYTHON, *argv] if argv[0] != PYTHON else argv, made.environment, stdin)
        for name, (argv, stdin) in commands.items()
        if rounds(1, 0)
    }
    bare, stock = list(commands)[1:3]
    table(
        title,
        ("", "CPU ms: median (least)", "x bare client", "x stock Django", "Minstr", "x bare client", "x stock Django"),
        [
            (
                name,
                f"{median(times):.0f} ({min(times):.0f})",
                median(times) / median(taken[bare]),
                median(times) / median(taken[stock]),
                *(_minstr(counted, name, bare, stock)),
            )
            for name, times in taken.items()
        ],
        f"CPU is user + system; medians of {len(taken[bare])} rounds. "
        "Targets for `localctl run`: 1.4 x the bare client, 0.65 x the stock command.",
    )


def _bare(made: Checkout, folder: Path) -> list[str]:
    url = f"ws://127.0.0.1:{made.port}/run"
    return [PYTHON, str(PROJECT / "bench/bare_client.py"), url, REF, os.fspath(folder)]


def _minstr(counted: dict[str, float | None], name: str, bare: str, stock: str) -> tuple[float | None, ...]:
    own, against_bare, against_stock = (counted.get(each) for each in (name, bare, stock))
    if own is None or not against_bare or not against_stock:
        return None, None, None
    return own, own / against_bare, own / against_stock
