"""One worker process, as the supervisor sees it: frames from it, signals to it, and how it ended."""

import asyncio
import logging
import signal
from typing import Any, Final, Protocol

import orjson

from processor_runtime import ipc, system
from processor_runtime.failures import Failure, out_of_memory, process_ended

STATUS_WAIT_S: Final = 1.0  # for the exit status, after a worker's channel ended
CHANNEL_WAIT_S: Final = 0.2  # for the rest of a channel, after its worker's exit status

log = logging.getLogger("processor_runtime")


class Job(Protocol):
    """What a worker tells of the execution that it runs."""

    def event(self, inside: bytes) -> None: ...
    def output(self, spooled: dict[str, Any]) -> None: ...
    def refused(self, message: str) -> None: ...
    def handler_ended(self, end: dict[str, Any]) -> None: ...
    def worker_died(self, failure: Failure) -> None: ...
    def never_began(self) -> None: ...
    def flush(self) -> None: ...


class Owner(Protocol):
    """What a worker tells of itself."""

    def became_ready(self, worker: "Worker") -> None: ...
    def became_idle(self, worker: "Worker", *, reusable: bool) -> None: ...
    def lost(self, worker: "Worker", failure: Failure) -> None: ...
    def has_parent(self, worker: "Worker") -> bool: ...
    def memory_ended(self) -> bool: ...


class Worker(asyncio.Protocol):
    """One worker process, as the supervisor sees it."""

    def __init__(self, owner: "Owner", number: int, mode: str) -> None:
        self._owner, self.number, self.mode = owner, number, mode
        self.ready = False
        self.job: Job | None = None
        self._transport: asyncio.Transport
        self._splitter = ipc.Splitter()
        self._process: system.ProcessHandle | None = None
        self._heard = True  # a frame came since the last run was sent
        self._reset = False
        self._paused = False
        self._channel_ended = self._finished = False
        self.ended_by_us = False
        self.status: int | None = None

    def run(self, job: Job, request: bytes) -> None:
        """Hand over one execution; only to an idle worker."""
        self.job, self._heard = job, False
        self._transport.write(ipc.pack(ipc.RUN, request))

    def signal(self, number: int) -> None:
        """Signal the process, and read on: a worker that waits to be read never ends."""
        self.ended_by_us = self.ended_by_us or number in (signal.SIGTERM, signal.SIGKILL)
        if self._process is not None:
            self._process.signal(number)
        self.resume()

    def pause(self) -> None:
        """Stop reading: the handler is held at its next event once the kernel's buffers are full."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._splitter.feed(data):
                self._heard = True
                self._frame(kind, body)
        except (ipc.BrokenFrame, ValueError, KeyError):
            log.exception("worker %d broke its channel", self.number)
            self.signal(signal.SIGKILL)
        if self.job is not None:
            self.job.flush()

    def _frame(self, kind: int, body: bytes) -> None:
        job = self.job
        if kind == ipc.EVENT:
            if job is not None:
                job.event(body)
        elif kind == ipc.READY:
            self._process = system.ProcessHandle(orjson.loads(body)["pid"])
            self._owner.became_ready(self)
        elif job is None:
            return
        elif kind == ipc.OUTPUT:
            job.output(orjson.loads(body))
        elif kind == ipc.REFUSED:
            job.refused(orjson.loads(body)["message"])
        elif kind == ipc.END:
            end = orjson.loads(body)
            self.job = None
            self._owner.became_idle(self, reusable=end["reusable"])
            job.handler_ended(end)
            job.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        # The kernel resets a channel whose other end left bytes unread: our request was never taken.
        self._reset = isinstance(exc, ConnectionResetError)
        self._channel_ended = True
        if self.status is not None or not self._owner.has_parent(self):
            self.finish()
        else:
            asyncio.get_running_loop().call_later(STATUS_WAIT_S, self.finish)

    def exited(self, status: int) -> None:
        """The template has reaped the process."""
        self.status = status
        if self._process is not None:
            self._process.close()
        if self._channel_ended:
            self.finish()
        else:
            self.resume()
            asyncio.get_running_loop().call_later(CHANNEL_WAIT_S, self.finish)

    def orphaned(self) -> None:
        """The template is gone: nobody will tell the exit status."""
        if self._channel_ended:
            self.finish()

    def finish(self) -> None:
        """Let the execution know, once."""
        if self._finished:
            return
        self._finished = True
        self._transport.abort()
        if self._process is not None:
            self._process.close()
        failure = self._failure()
        self._owner.lost(self, failure)
        job, self.job = self.job, None
        if job is None:
            return
        if self._reset and not self._heard:
            job.never_began()
        else:
            job.worker_died(failure)
        job.flush()

    def _failure(self) -> Failure:
        if self.status == -signal.SIGKILL and not self.ended_by_us and self._owner.memory_ended():
            return out_of_memory(self.status)
        return process_ended(self.status)
