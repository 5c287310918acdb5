"""A real runtime as a subprocess, with a handler written for the test, spoken to over a real socket."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from processor_runtime.protocol import (
    SUBPROTOCOL,
    Attach,
    Completed,
    ControllerSide,
    Event,
    Run,
    RuntimeMessage,
    Stored,
    Upload,
    Uploaded,
    encode,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

RUNTIME = Path(__file__).resolve().parents[2] / "code" / "runtime"
TOKEN = "a-token-of-the-test"
IMAGE_DIGEST = "sha256:" + "ab" * 32


def execution_id() -> str:
    """A UUIDv7, near enough."""
    digits = uuid.uuid4().hex
    return str(uuid.UUID(digits[:12] + "7" + digits[13:16] + "8" + digits[17:]))


def spec(**changes: Any) -> dict[str, Any]:
    runtime = {"port": 8000, "cpu": 1, "memory_gb": 2, "scratch_gb": 1, "timeout_s": 60, "concurrency": 4, "gpu": None}
    document: dict[str, Any] = {
        "ref": "test/echo@1",
        "runtime": runtime | changes.pop("runtime", {}),
        "secrets": {"required": [], "optional": []},
        "inputs": {"type": "object"},
        "outputs": [],
    }
    return document | changes


@dataclass
class Result:
    """What one execution looked like from outside."""

    messages: list[RuntimeMessage] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def completed(self) -> Completed:
        last = self.messages[-1]
        assert isinstance(last, Completed)
        return last

    @property
    def error(self) -> dict[str, Any]:
        assert self.completed.error is not None
        return self.completed.error

    @property
    def events(self) -> list[Event]:
        return [message for message in self.messages if isinstance(message, Event)]

    def data(self, event: str) -> list[dict[str, Any]]:
        return [message.data for message in self.events if message.event == event]

    @property
    def text(self) -> str:
        return "".join(data["text"] for data in self.data("token"))


class Session:
    """A plain controller on one connection: grants every upload by relay, verifies it, keeps the bytes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.side, self.result = socket, ControllerSide(), Result()
        self.uploads: dict[int, Upload] = {}
        self.parts: dict[int, bytearray] = {}

    async def hello(self) -> None:
        self.side.receive(await self.socket.recv())

    async def start(self, **changes: Any) -> str:
        run: dict[str, Any] = {
            "execution_id": execution_id(),
            "mode": "mock",
            "inputs": {},
            "timeout_s": 30.0,
            "write_prefix": "/artifacts/outputs/test/",
        } | changes
        await self.socket.send(self.side.run(Run(**run)))
        return str(run["execution_id"])

    async def attach(self, execution_id: str, after: int = 0) -> None:
        await self.socket.send(self.side.attach(Attach(execution_id, after)))

    def cut(self) -> None:
        """Lose the connection without a word."""
        self.socket.transport.abort()

    async def receive(self) -> RuntimeMessage | None:
        """The next message; None for a chunk."""
        data = await self.socket.recv()
        if isinstance(data, bytes):
            upload, chunk = self.side.receive_chunk(data)
            self.parts[upload] += chunk
            if (credit := self.side.consumed(upload)) is not None:
                await self.socket.send(credit)
            return None
        message = self.side.receive(data)
        self.result.messages.append(message)
        match message:
            case Upload():
                self.uploads[message.upload], self.parts[message.upload] = message, bytearray()
                await self.socket.send(self.side.grant_relay(message.upload))
            case Uploaded():
                self._keep(message.upload)
                await self.socket.send(encode(Stored(message.upload)))
        return message

    def _keep(self, number: int) -> None:
        upload, content = self.uploads[number], bytes(self.parts[number])
        assert upload.size_bytes == len(content)
        assert upload.digest == "sha256:" + sha256(content).hexdigest()
        self.result.files[upload.path] = content

    async def finish(self) -> Result:
        while not isinstance(await self.receive(), Completed):
            pass
        return self.result

    async def until(self, event: str) -> Event:
        """The next event of this name."""
        while True:
            message = await self.receive()
            if isinstance(message, Event) and message.event == event:
                return message


class Runtime:
    """A running runtime."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path) -> None:
        self.process, self.scratch = process, scratch
        self.stderr: list[str] = []
        self.stdout: list[str] = []
        self._port = 0
        self._threads = [
            threading.Thread(target=self._collect, args=(process.stderr, self.stderr)),
            threading.Thread(target=self._collect, args=(process.stdout, self.stdout)),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _collect(stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(iter(stream.readline, ""))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        while not self._port:
            for line in self.stderr:
                if "listening on" in line:
                    self._port = int(line.rpartition(":")[2])
            assert self.process.poll() is None, "".join(self.stderr)
            time.sleep(0.005)
        return self._port

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()

    def wait_for(self, *modes: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if set(modes) <= set(json.loads(self.get("/readyz")[1])["modes"]):
                return
            time.sleep(0.02)
        raise AssertionError("".join(self.stderr))

    def wait_for_log(self, text: str, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in [*self.stderr, *self.stdout]):
            assert time.monotonic() < deadline, "".join([*self.stderr, *self.stdout])
            time.sleep(0.01)

    async def connect(self, **changes: Any) -> ClientConnection:
        options: dict[str, Any] = {
            "subprotocols": [Subprotocol(SUBPROTOCOL)],
            "additional_headers": {"Authorization": f"Bearer {TOKEN}"},
            "compression": None,
            "proxy": None,
            "max_size": 2**20,
        }
        return await connect(f"ws://127.0.0.1:{self.port}/run", **options | changes)

    @asynccontextmanager
    async def session(self, **changes: Any) -> AsyncIterator[Session]:
        async with await self.connect(**changes) as socket:
            session = Session(socket)
            await session.hello()
            yield session

    async def execute(self, **changes: Any) -> Result:
        """One execution, from its own connection."""
        async with self.session() as session:
            await session.start(**changes)
            return await session.finish()

    def run(self, **changes: Any) -> Result:
        return asyncio.run(self.execute(**changes))

    def stop(self, timeout_s: float = 15) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            for thread in self._threads:
                thread.join(5)


def launch(
    folder: Path,
    handler: str | None,
    *,
    wait: bool = True,
    env: dict[str, str] | None = None,
    grace_s: float | None = None,
    **changes: Any,
) -> Runtime:
    """Start a runtime with this handler (None: without any), its files under `folder`.

    `grace_s`: how long executions wait for a lost client, when the test can't.
    """
    folder.mkdir(parents=True)
    if grace_s is not None:
        patch = f"from processor_runtime import followers\nfollowers.GRACE_S = {grace_s}\n"
        (folder / "sitecustomize.py").write_text(patch)
    if handler is not None:
        (folder / "handler.py").write_text(textwrap.dedent(handler))
    scratch = folder / "scratch"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{folder}:{RUNTIME}",
        "PORT": "0",
        "THEORY_BIND": "127.0.0.1",
        "THEORY_SCRATCH": str(scratch),
        "THEORY_SPEC": json.dumps(spec(**changes)),
        "THEORY_IMAGE_DIGEST": IMAGE_DIGEST,
        "THEORY_SOURCE": "build",
        "THEORY_RUN_TOKEN": TOKEN,
        **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
    } | (env or {})
    process = subprocess.Popen(
        [sys.executable, "-m", "processor_runtime"],
        env={name: value for name, value in environment.items() if value},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    runtime = Runtime(process, scratch)
    if wait:
        try:
            runtime.wait_for("mock")
        except BaseException:
            runtime.stop()
            raise
    return runtime


@pytest.fixture
def start_runtime(tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    """Start runtimes; stopped after the test."""
    started: list[Runtime] = []

    def start(handler: str | None, **options: Any) -> Runtime:
        started.append(launch(tmp_path / f"app{len(started)}", handler, **options))
        return started[-1]

    yield start
    for runtime in started:
        runtime.stop()
