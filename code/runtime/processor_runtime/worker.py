"""The process that runs handlers: one execution at a time, in its main thread, until it is told to end.

A signal reaches a handler wherever it is: SIGUSR1 raises Cancelled in it. Not while a frame is being written,
though: half a frame would break all that follows, so the exception waits until the frame is complete.
"""

import asyncio
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final, NoReturn

import orjson

from processor_runtime import artifacts, codes, guard, ipc, outcome, system
from processor_runtime.environment import Environment, redact
from processor_runtime.failures import Failure
from processor_runtime.handler import Cancelled, Content, Context
from processor_runtime.outputs import Spool

MAX_EXECUTIONS: Final = 10_000  # of one worker: bounds what handlers leak


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is made with."""

    number: int
    mode: str
    handler: ModuleType
    environment: Environment
    secrets: tuple[str, ...]
    """Values to blank in messages; none in mock."""


def main(channel: socket.socket, job: Job) -> NoReturn:
    """Serve executions until the supervisor closes the channel. Called right after the fork."""
    folder = job.environment.scratch / f"worker-{job.number}"
    _settle(job.environment, folder)
    worker = Worker(channel, job, folder)
    if job.mode == "mock":
        guard.close("mock mode", os.path.dirname(job.handler.__file__ or ""), worker.refused)
    worker.serve()
    os._exit(0)


def _settle(environment: Environment, folder: Path) -> None:
    """Give this process its own session, folder and limits."""
    os.setsid()
    system.adopt_orphans()
    system.offer_to_oom_killer(1000)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on a terminal reaches everyone; the supervisor handles it
    folder.mkdir(mode=0o700)
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder)
    system.limit(resource.RLIMIT_FSIZE, environment.spec.scratch_bytes)
    system.limit(resource.RLIMIT_CORE, 0)
    if environment.spec.memory_bytes is not None:
        system.limit(resource.RLIMIT_DATA, environment.spec.memory_bytes)


class Worker:
    """One worker: its channel, and the execution that it runs now."""

    def __init__(self, channel: socket.socket, job: Job, folder: Path) -> None:
        self._channel, self._job, self._folder = channel, job, folder
        self._lock = threading.RLock()  # re-entrant: a finalizer may emit while its thread does
        self._context: Context | None = None
        self._running = False
        self._interrupted = False  # the interrupt took effect
        self._waiting = False  # it came while a frame was written
        self._asked = False  # it was put before the event loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._executions = 0
        # a handler's forked child must neither write to the channel nor keep it open
        os.register_at_fork(after_in_child=self._forsake)

    def serve(self) -> None:
        """Run what comes, one after the other, until the channel ends."""
        me = os.getpid()
        splitter = ipc.Splitter()
        self._send(ipc.READY, b'{"pid":%d}' % me)
        while data := self._channel.recv(ipc.READ_BYTES):
            for _, body in splitter.feed(data):
                end = self._execute(orjson.loads(body))
                if os.getpid() != me:  # a child that the handler forked and forgot
                    os._exit(0)
                self._send(ipc.END, orjson.dumps(end))

    def refused(self, message: str) -> None:
        """What the guard tells: the execution fails whatever the handler makes of the exception."""
        if self._context is not None:
            self._send(ipc.REFUSED, orjson.dumps({"message": message}))

    def _execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the handler once; returns the body of END."""
        request["mode"] = self._job.mode
        spool = Spool(Path(request["spool"]), self._job.environment.spec.outputs, prefix_bytes=request["prefix_bytes"])
        self._context = context = Context(request, emit=self._emit, write=self._writer(spool), redact=self._redact)
        failure: Failure | None = None
        try:
            os.chdir(self._folder)
            if request["files"]:
                self._take_files(context, request)
            if self._job.mode == "mock":
                random.seed(request["inputs_digest"])
            self._arm()
            try:
                self._call(context)
            finally:
                self._running = False
            if missing := spool.missing():
                failure = _unwritten(missing)
        except BaseException as exc:
            self._running = False
            if not (self._interrupted and isinstance(exc, Cancelled | asyncio.CancelledError)):
                failure = self._failed(exc)
        self._context = None
        context.end()
        interrupted = self._interrupted and failure is None
        # an exception that came from nowhere may have left any library in any state
        reusable = self._clean(failure) and not self._interrupted
        return {
            "error": failure and failure.words(),
            "interrupted": interrupted,
            "reusable": reusable,
        }

    def _take_files(self, context: Context, request: dict[str, Any]) -> None:
        """Put what was fetched into the working folder, and its places into the inputs."""
        os.rename(os.path.join(request["spool"], artifacts.FOLDER), artifacts.FOLDER)
        context.inputs = artifacts.replaced(context.inputs, request["files"])

    def _call(self, context: Context) -> None:
        result = self._job.handler.run(context)
        if asyncio.iscoroutine(result):
            self._await(result)

    def _await(self, coroutine: Any) -> None:
        """Run an async handler, then what it left behind, as asyncio.run does; the loop itself is kept."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        loop = self._loop
        self._task = loop.create_task(coroutine)
        try:
            loop.run_until_complete(self._task)
        finally:
            self._task = None
            leftover = asyncio.all_tasks(loop)
            for task in leftover:
                task.cancel()
            if leftover:
                loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
            if threading.active_count() > 1:  # to_thread's pool, most likely
                self._loop = None
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

    def _arm(self) -> None:
        self._interrupted = self._waiting = self._asked = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self._on_interrupt)
        self._running = True

    def _on_interrupt(self, _number: int, frame: FrameType | None) -> None:
        """SIGUSR1: end the handler, once. The supervisor sends it several times."""
        if not self._running or self._interrupted:
            return
        if self._context is not None:
            self._context.cancelled = True
        if frame is not None and frame.f_code is Worker._send.__code__:
            self._waiting = True
            return
        if self._task is not None and self._loop is not None and not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._cancel_task)
            return
        self._interrupted = True  # also at the second signal, when a loop is too busy for the first
        raise Cancelled

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def _emit(self, inside: bytes) -> None:
        self._send(ipc.EVENT, inside)
        if self._waiting and threading.current_thread() is threading.main_thread():
            self._waiting = False
            self._on_interrupt(signal.SIGUSR1, None)

    def _send(self, kind: int, body: bytes) -> None:
        with self._lock:
            self._channel.sendall(ipc.pack(kind, body))

    def _writer(self, spool: Spool) -> Callable[[str, Content], None]:
        def write(path: str, content: Content) -> None:
            self._send(ipc.OUTPUT, orjson.dumps(spool.write(path, content)))

        return write

    def _redact(self, text: str) -> str:
        return redact(text, self._job.secrets)

    def _redact_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redact(value)
        if isinstance(value, dict):
            return {self._redact(str(key)): self._redact_all(each) for key, each in value.items()}
        return [self._redact_all(each) for each in value] if isinstance(value, list | tuple) else value

    def _failed(self, exc: BaseException) -> Failure:
        failure = outcome.of_exception(exc, scratch=str(self._job.environment.scratch))
        details = self._redact_all(failure.details)
        if "traceback" in details:
            sys.stderr.write(details["traceback"] + "\n")
            sys.stderr.flush()
        return Failure(failure.code, self._redact(failure.message), self._redact(failure.hint), details)

    def _clean(self, failure: Failure | None) -> bool:
        """Undo what the handler did to this process; False when a new process is the better way."""
        self._executions += 1
        sys.stdout.flush()
        sys.stderr.flush()
        if failure is not None and failure.details.get("reason") == "out of memory":
            return False
        if self._executions >= MAX_EXECUTIONS or threading.active_count() > 1 or _has_children():
            return False
        return self._empty_folder()

    def _empty_folder(self) -> bool:
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
        except OSError:  # unwritable, removed or replaced: the supervisor clears it after us
            return False
        return not self._folder.is_symlink()

    def _forsake(self) -> None:
        self._channel.close()


def _unwritten(missing: list[str]) -> Failure:
    names = ", ".join(map(repr, missing))
    return Failure(
        codes.OUTPUT_INVALID,
        f"the handler ended without writing {names}",
        "write every plain entry of outputs in registry.yaml",
        {"missing": missing},
    )


def _has_children() -> bool:
    """Whether descendants live on; those that ended are reaped."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
