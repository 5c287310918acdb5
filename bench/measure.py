"""How figures are taken: CPU of processes, instructions, alternating rounds, medians, tables. Linux only."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

SHORT: Final = os.environ.get("BENCH") == "short"
PROC: Final = Path("/proc")
_INSTRUCTIONS = re.compile(r"I\s+refs:\s+([\d,]+)")


def rounds(full: int, short: int) -> int:
    return short if SHORT else full


def say(text: str) -> None:
    """What is being done, to stderr: the tables alone are on stdout."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def alternate(measures: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Every measure `count` times, in turn, the order reversed each round, so that a drift meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(count):
        names = list(measures) if number % 2 == 0 else list(measures)[::-1]
        for name in names:
            taken[name].append(measures[name]())
    return taken


median = statistics.median


# One process, from its start to its end


def cpu_ms(argv: Sequence[str], env: Mapping[str, str], stdin: str = "", status: int = 0) -> float:
    """User and system time of a command, in ms. Raises RuntimeError when it ends with another exit status."""
    process = subprocess.Popen(
        argv, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None and process.stderr is not None  # noqa: S101, PT018
        process.stdin.write(stdin)
        process.stdin.close()
        words = process.stderr.read()
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}: {words[-2000:]}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def million_instructions(argv: Sequence[str], env: Mapping[str, str], stdin: str = "") -> float | None:
    """User instructions of a command by cachegrind, which repeats to 0.1 %; None where there is no valgrind."""
    if shutil.which("valgrind") is None:
        return None
    cachegrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    done = subprocess.run(
        [*cachegrind, *argv], env={**env, "PYTHONHASHSEED": "0"}, input=stdin, text=True, capture_output=True
    )
    found = _INSTRUCTIONS.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(found[1].replace(",", "")) / 1e6


# A tree of processes that goes on


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    found = [pid]
    for each in found:
        for children in PROC.glob(f"{each}/task/*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def cpu_us(pid: int) -> float:
    """On-CPU time of a process tree so far, in µs; of what ended in it nothing."""
    total = 0
    for each in tree(pid):
        for thread in PROC.glob(f"{each}/task/*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:
                continue
    return total / 1000


def pss_mb(pids: Iterable[int]) -> float:
    """Memory with shared pages counted in parts (PSS), in MB of 10**6 bytes."""
    kib = 0
    for pid in pids:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kib += int(line.split()[1])
    return kib * 1024 / 1e6


# Tables


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]], *notes: str) -> None:
    """One Markdown table on stdout; floats with three significant digits."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(heads)} |")
    print(f"|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(map(_cell, row))} |")
    for note in notes:
        print(f"\n{note}")
    sys.stdout.flush()


def _cell(value: object) -> str:
    if value is None or value != value:  # a NaN was not measured
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
