"""The two servers that are compared, each with the way a client uses it: the runtime, and a bare echo."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

from processor_runtime.protocol import SUBPROTOCOL, Run, encode
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.checkout import PROJECT
from bench.measure import cpu_us

HERE: Final = PROJECT / "bench"
TOKEN: Final = "a-token-of-the-benchmark"
CONCURRENCY: Final = 8
_LISTENING = re.compile(r"listening on \S+:(\d+)")
INPUTS: Final = {
    "type": "object",
    "required": ["tokens", "pace_s"],
    "properties": {"tokens": {"type": "integer", "minimum": 0}, "pace_s": {"type": "number", "minimum": 0}},
}


class Server:
    """A server process of its own, on the first core; the clients are on the others."""

    def __init__(self, argv: list[str], env: dict[str, str], ready: str) -> None:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            argv, env=env, cwd=HERE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self.process.pid, cores[:1])
        self.port = 0
        assert self.process.stdout is not None  # noqa: S101
        said: list[str] = []
        while not (said and ready in said[-1]):
            if not (line := self.process.stdout.readline()):
                raise RuntimeError(f"{argv} ended: {''.join(said)}")
            said.append(line)
            if found := _LISTENING.search(line):
                self.port = int(found[1])
        self.start_ms = (time.perf_counter() - began) * 1000
        self.start_cpu_ms = cpu_us(self.process.pid) / 1000

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


class Kind(Protocol):
    """How one kind of server is started, connected to and asked."""

    def start(self, scratch: Path) -> Server: ...

    async def connect(self, port: int) -> ClientConnection:
        """A connection on which one exchange can begin at once."""
        ...

    async def ask(self, connection: ClientConnection, tokens: int, pace_s: float) -> float:
        """One exchange to its end; returns the s until the first token or, without tokens, until the end."""
        ...

    keeps: bool
    """Whether a connection serves more than one exchange."""


class Echo:
    keeps = True

    def start(self, scratch: Path) -> Server:
        return Server([sys.executable, str(HERE / "echo_server.py")], dict(os.environ), "listening")

    async def connect(self, port: int) -> ClientConnection:
        return await connect(f"ws://127.0.0.1:{port}/", compression=None, proxy=None)

    async def ask(self, connection: ClientConnection, tokens: int, pace_s: float) -> float:
        began = time.perf_counter()
        asked = {"tokens": tokens, "pace_s": pace_s} if tokens else {"execution_id": execution_id(), "inputs": {}}
        await connection.send(json.dumps(asked))
        await connection.recv()
        first = time.perf_counter() - began
        for _ in range(tokens - 1):
            await connection.recv()
        return first


class Runtime:
    """The runtime as the process engine starts it, with a handler that costs nothing; `workers` at most."""

    keeps = False

    def __init__(self, workers: int = CONCURRENCY) -> None:
        self._workers = workers

    def start(self, scratch: Path) -> Server:
        runtime = {"port": 8000, "cpu": 1, "memory_gb": 1, "scratch_gb": 1, "timeout_s": 600, "gpu": None}
        spec = {
            "ref": "bench/tiny@1",
            "runtime": {**runtime, "concurrency": self._workers},
            "secrets": {"required": [], "optional": []},
            "inputs": INPUTS,
            "outputs": [],
        }
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{HERE / 'tiny'}:{PROJECT / 'code' / 'runtime'}",
            "PYTHONHASHSEED": "0",
            "PORT": "0",
            "THEORY_BIND": "127.0.0.1",
            "THEORY_SCRATCH": str(scratch),
            "THEORY_SPEC": json.dumps(spec),
            "THEORY_IMAGE_DIGEST": "sha256:" + "0" * 64,
            "THEORY_SOURCE": "build",
            "THEORY_RUN_TOKEN": TOKEN,
        }
        return Server([sys.executable, "-m", "processor_runtime"], environment, "ready for mock runs")

    async def connect(self, port: int) -> ClientConnection:
        connection = await connect(
            f"ws://127.0.0.1:{port}/run",
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            compression=None,
            proxy=None,
        )
        await connection.recv()  # hello
        return connection

    async def ask(self, connection: ClientConnection, tokens: int, pace_s: float) -> float:
        began = time.perf_counter()
        inputs = {"tokens": tokens, "pace_s": pace_s}
        await connection.send(encode(Run(execution_id(), "mock", inputs, "/artifacts/outputs/bench/", 600.0)))
        first = 0.0
        while True:
            message = str(await connection.recv())
            if not first and tokens and '"token"' in message:
                first = time.perf_counter() - began
            if message.startswith('{"type":"completed"'):
                if '"status":"success"' not in message:
                    raise RuntimeError(message)
                return first or time.perf_counter() - began


def execution_id() -> str:
    """A UUIDv7, near enough."""
    digits = uuid.uuid4().hex
    return str(uuid.UUID(f"{digits[:12]}7{digits[13:16]}8{digits[17:]}"))


@contextmanager
def running(kind: Kind, scratch: Path) -> Iterator[Server]:
    server = kind.start(scratch)
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def connections(kind: Kind, port: int, count: int) -> AsyncIterator[list[ClientConnection]]:
    """That many open ones; sixteen are opened and closed at a time."""
    gate = asyncio.Semaphore(16)

    async def opened() -> ClientConnection:
        async with gate:
            return await kind.connect(port)

    async def closed(connection: ClientConnection) -> None:
        async with gate:
            await connection.close()

    found = await asyncio.gather(*(opened() for _ in range(count)))
    try:
        yield found
    finally:
        await asyncio.gather(*map(closed, found))
