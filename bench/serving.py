"""What the runtime costs to serve: CPU of its whole process tree, against a bare websockets server."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.measure import cpu_us, median, pss_mb, rounds, say, table, tree
from bench.servers import Echo, Kind, Runtime, Server, connections, running

CLIENTS = 16
FIGURES = ("kept", "new", "burst", "paced", "first", "idle", "start", "start wall")
Figures = dict[str, float]


def main() -> None:
    kinds: dict[str, Kind] = {"runtime": Runtime(), "bare": Echo()}
    taken: dict[str, list[Figures]] = {name: [] for name in kinds}
    count = rounds(5, 2)
    for number in range(count):
        for name in list(kinds)[:: 1 if number % 2 == 0 else -1]:
            say(f"serving: {name}, round {number + 1} of {count}")
            taken[name].append(_round(kinds[name]))
    say("serving: a worker is killed")
    recovery = [_recovery() for _ in range(rounds(10, 3))]
    _report(taken, recovery)


def _round(kind: Kind) -> Figures:
    with (
        tempfile.TemporaryDirectory(prefix="theory-bench-") as folder,
        running(kind, Path(folder, "scratch")) as server,
    ):
        time.sleep(0.5)
        start = {"start": server.start_cpu_ms, "start wall": server.start_ms, "idle": pss_mb(tree(server.process.pid))}
        return {**start, **asyncio.run(_load(kind, server))}


async def _load(kind: Kind, server: Server) -> Figures:
    few = rounds(1, 0) == 0
    await _kept(kind, server, 300)  # the workers are made at the first need
    return {
        "kept": await _kept(kind, server, 400),
        "new": await _new(kind, server, 400 if few else 1600),
        "burst": await _streams(kind, server, 4, 1000, 0),
        "paced": await _streams(kind, server, 8, 100 if few else 300, 0.002),
        "first": await _first(kind, server, 50 if few else 200),
    }


async def _spent(server: Server, work: Awaitable[object], count: int) -> float:
    before = cpu_us(server.process.pid)
    await work
    return (cpu_us(server.process.pid) - before) / count


async def _in_turn(count: int, exchange: Callable[[int], Awaitable[object]]) -> None:
    """`count` exchanges, CLIENTS of them at any time."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await exchange(number)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _kept(kind: Kind, server: Server, count: int) -> float:
    """µs for one exchange without its handshake: a connection that serves one alone was opened before."""
    async with connections(kind, server.port, CLIENTS if kind.keeps else count) as opened:
        free = list(opened)

        async def exchange(number: int) -> None:
            connection = free.pop()
            await kind.ask(connection, 0, 0)
            if kind.keeps:
                free.append(connection)

        return await _spent(server, _in_turn(count, exchange), count)


async def _new(kind: Kind, server: Server, count: int) -> float:
    """µs for one exchange on a connection of its own, which is opened for it and closed after it."""

    async def exchange(number: int) -> None:
        connection = await kind.connect(server.port)
        await kind.ask(connection, 0, 0)
        await connection.close()

    return await _spent(server, _in_turn(count, exchange), count)


async def _streams(kind: Kind, server: Server, streams: int, tokens: int, pace_s: float) -> float:
    """µs for one token of 8 bytes."""
    async with connections(kind, server.port, streams) as opened:
        asked = asyncio.gather(*(kind.ask(connection, tokens, pace_s) for connection in opened))
        return await _spent(server, asked, streams * tokens)


async def _first(kind: Kind, server: Server, count: int) -> float:
    """ms from the request to the first token, one client, median."""
    async with connections(kind, server.port, count) as opened:
        return 1000 * median([await kind.ask(connection, 1, 0) for connection in opened])


def _recovery() -> float:
    """ms from a worker's SIGKILL, in the middle of an execution and the only one, to the next execution's end."""
    kind = Runtime(workers=1)
    with (
        tempfile.TemporaryDirectory(prefix="theory-bench-") as folder,
        running(kind, Path(folder, "scratch")) as server,
    ):
        return asyncio.run(_killed(kind, server))


async def _killed(kind: Kind, server: Server) -> float:
    async with connections(kind, server.port, 2) as (first, second):
        doomed = asyncio.create_task(kind.ask(first, 1000, 0.1))
        await asyncio.sleep(0.3)
        # Workers lead sessions of their own; the first that was made is the one for mock runs.
        worker = next(pid for pid in tree(server.process.pid) if os.getsid(pid) == pid)
        began = time.perf_counter()
        os.kill(worker, signal.SIGKILL)
        await kind.ask(second, 0, 0)
        taken = time.perf_counter() - began
        try:
            await doomed
        except RuntimeError:  # that it ended in an error is what was wanted
            return 1000 * taken
        raise RuntimeError(f"process {worker}, which was killed, was not the worker")


def _report(taken: dict[str, list[Figures]], recovery: list[float]) -> None:
    ours, bare = ({name: median([each[name] for each in taken[kind]]) for name in FIGURES} for kind in taken)
    lines = (
        ("µs CPU, tiny execution, connection opened before", "kept", "200"),
        ("µs CPU, tiny execution, new connection", "new", None),
        ("µs CPU, streamed token, back to back", "burst", "40"),
        ("µs CPU, streamed token, one every 2 ms", "paced", None),
        ("ms to the first token, one client", "first", "3"),
        ("MB PSS, idle", "idle", "40"),
        ("ms CPU to start", "start", "400"),
        ("ms wall to start", "start wall", None),
    )
    rows = [(what, ours[name], bare[name], ours[name] / bare[name], target) for what, name, target in lines]
    killed = ("ms from a worker's SIGKILL to the next answer", median(recovery), None, None, "1,000")
    table(
        "The runtime, without an image",
        ("", "runtime", "bare websockets", "ratio", "target"),
        [*rows, killed],
        f"{CLIENTS} clients; medians of {len(taken['bare'])} rounds, {len(recovery)} kills.",
    )
