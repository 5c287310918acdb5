"""One execution, from acceptance to its envelope's facts. The first cause to end it is what `completed` says."""

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from processor_runtime import codes, events, guard, scratch
from processor_runtime.failures import Failure, cancelled, from_words, limit, scratch_full
from processor_runtime.fetches import Fetches
from processor_runtime.followers import Follower, Followers
from processor_runtime.inputs import Canonical
from processor_runtime.protocol import MAX_MESSAGE_BYTES, Accepted, Cancelled, Completed, Run, encode
from processor_runtime.uploads import Spooled, Uploads
from processor_runtime.workers import Worker

GRACE_S: Final = 2.0  # from the interrupt to SIGTERM
KILL_S: Final = 0.5  # from SIGTERM to SIGKILL
# An interrupt that falls into the writing of a frame is put off; the repetitions make sure of it.
LADDER: Final = (
    (0.0, signal.SIGUSR1, "interrupt"),
    (0.05, signal.SIGUSR1, "interrupt"),
    (0.5, signal.SIGUSR1, "interrupt"),
    (GRACE_S, signal.SIGTERM, "terminate"),
    (GRACE_S + KILL_S, signal.SIGKILL, "kill"),
)
AT_ONCE: Final = ((0.0, signal.SIGKILL, "kill"),)  # for a handler that does harm meanwhile
MAX_OUTPUTS_BYTES: Final = MAX_MESSAGE_BYTES * 3 // 4  # of the list in `completed`, which is one message


class Home(Protocol):
    """What an execution asks of the runtime around it."""

    secrets_present: list[str]
    scratch_bytes: int

    def spool_folder(self, execution: "Execution") -> Path: ...
    def spooled_bytes(self) -> int: ...
    def began_never(self, execution: "Execution") -> None: ...
    def fetched(self, execution: "Execution") -> None: ...
    def finished(self, execution: "Execution") -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What makes two runs the same: everything but the time that they may take."""

    mode: str
    inputs_digest: str
    write_prefix: str


class Execution:
    """One accepted execution."""

    def __init__(self, run: Run, inputs: Canonical, number: int, home: Home) -> None:
        self.id, self.number, self.timeout_s = run.execution_id, number, run.timeout_s
        self.request = Request(run.mode, inputs.digest, run.write_prefix)
        self.events = events.EventLog(run.execution_id)
        self.accepted = encode(Accepted(run.execution_id, inputs.digest)).encode()
        self.ending: list[bytes] = []
        """The last messages; empty until the end."""
        self.failure: Failure | None = None
        self.spooled_bytes = 0
        self.worker: Worker | None = None
        self.started_at: float | None = None
        self._inputs, self._home = inputs, home
        self._by: str | None = None
        self._rung = "handler"
        self._timers: list[asyncio.TimerHandle] = []
        self._ended = False  # the handler
        self._outputs: list[dict[str, Any]] = []
        self._outputs_bytes = 0
        self._folder = home.spool_folder(self)
        self.followers = Followers(hold=self._hold, go_on=self._go_on, deserted=lambda: self.cancel("client"))
        self.uploads = Uploads(self.id, self._folder, self.followers, stored=self._stored, failed=self.stop)
        self.fetches: Fetches | None = None
        """None where the inputs name no artifact."""
        if inputs.artifacts:
            self.fetches = Fetches(
                self.id,
                inputs.artifacts,
                self._folder,
                self.followers,
                reserve=self._reserve,
                done=lambda: home.fetched(self),
                failed=self.stop,
            )

    @property
    def done(self) -> bool:
        return bool(self.ending)

    @property
    def deserted(self) -> bool:
        """Whether it was cancelled because its last client went away."""
        return self._by == "client"

    def follow(self, client: Follower) -> None:
        """Let `client` be the latest that follows: it is asked what another was asked in vain."""
        self.followers.join(client)
        self._change_courier()

    def rejoin(self, client: Follower) -> None:
        """`follow`, by one that came while it runs: told to all, in the same place."""
        self._inside("reattached", {})
        self.follow(client)
        self.followers.flush_soon()

    def leave(self, client: Follower) -> None:
        """`client` is gone: whoever came before it answers for the outputs now."""
        if self.followers.leave(client):
            self._change_courier()

    def began(self, worker: Worker) -> None:
        """Run on `worker` from now on."""
        self.worker, self.started_at = worker, time.time()
        self._inside("started", {})
        prefix_bytes = len(self.request.write_prefix.encode()) - 1  # the key has no leading slash
        head = {
            "execution_id": self.id,
            "inputs_digest": self._inputs.digest,
            "spool": str(self._folder),
            "prefix_bytes": prefix_bytes,
            "files": {} if self.fetches is None else self.fetches.files,
        }
        worker.run(self, b'%b,"inputs":%b}' % (orjson.dumps(head)[:-1], self._inputs.text))
        self.followers.flush_soon()

    def queued(self, position: int) -> None:
        self._inside("queued", {"position": position})
        self.followers.flush_soon()

    def stop(self, failure: Failure, *, by: str | None = None, at_once: bool = False) -> None:
        """End the execution for this reason, unless another was first."""
        if self.failure is not None or self.done:
            return
        self.failure, self._by = failure, by
        self.uploads.abort()
        if self.fetches is not None:
            self.fetches.abort()
        if self.worker is not None:
            self._climb(AT_ONCE if at_once else LADDER)
        else:
            if self.started_at is None:
                self._rung = "queued"
            self._finish()

    def cancel(self, by: str) -> None:
        self.stop(cancelled(by), by=by)

    # what its worker tells

    def event(self, inside: bytes) -> None:
        if self.failure is None:
            self.events.add(inside)

    def output(self, spooled: dict[str, Any]) -> None:
        if self.failure is not None:
            return
        output = Spooled(**spooled)
        self.spooled_bytes += output.size_bytes
        self._outputs_bytes += len(output.path) * 2 + len(output.mime) + 200
        if self._home.spooled_bytes() > self._home.scratch_bytes:
            self.stop(scratch_full(self._home.scratch_bytes), at_once=True)
        elif self._outputs_bytes > MAX_OUTPUTS_BYTES:
            self.stop(limit("outputs", "too many outputs for one execution", "write fewer files, or an archive"))
        else:
            self.uploads.add(output)

    def refused(self, message: str) -> None:
        self.stop(Failure(codes.RUNTIME, message, "let the handler answer from its inputs alone when mode is mock"))

    def handler_ended(self, end: dict[str, Any]) -> None:
        self.worker, self._ended = None, True
        self._rung = "interrupt" if end["interrupted"] else "handler"
        if self.failure is None and end["error"] is not None:
            self.failure = from_words(end["error"])
            self.uploads.abort()
        if self.failure is not None or self.uploads.settled:
            self._finish()

    def worker_died(self, failure: Failure) -> None:
        self.worker, self._ended = None, True
        if self.failure is None:
            self.failure = failure
            self.uploads.abort()
        self._finish()

    def never_began(self) -> None:
        """The worker ended before it took the request: another one shall."""
        self.worker = None
        if self.failure is not None:
            self._finish()
        else:
            self._home.began_never(self)

    def flush(self) -> None:
        self.followers.flush()

    # inside

    def _change_courier(self) -> None:
        if self.failure is None and not self.done:
            self.uploads.restart(ready=self.followers.latest is not None)
            if self.fetches is not None:
                self.fetches.restart(ready=self.followers.latest is not None)

    def _hold(self) -> None:
        """The client reads too slowly: let the handler wait."""
        if self.worker is not None and self.failure is None:
            self.worker.pause()

    def _go_on(self) -> None:
        if self.worker is not None:
            self.worker.resume()

    def _reserve(self, size_bytes: int) -> bool:
        """Whether an input of this size fits into scratch space; where not, the execution ends."""
        self.spooled_bytes += size_bytes
        if self._home.spooled_bytes() <= self._home.scratch_bytes:
            return True
        self.stop(scratch_full(self._home.scratch_bytes))
        return False

    def _inside(self, event: str, data: dict[str, Any]) -> None:
        self.events.add(events.fragment(event, data))

    def _stored(self, output: Spooled) -> None:
        self.spooled_bytes -= output.size_bytes
        if self.failure is not None:
            return
        self._outputs.append(output.document())
        path = self.request.write_prefix + output.path
        self._inside("output", {"path": path, "size_bytes": output.size_bytes, "digest": output.digest})
        if self._ended and self.uploads.settled:
            self._finish()
        self.followers.flush()

    def _climb(self, ladder: tuple[tuple[float, signal.Signals, str], ...]) -> None:
        loop = asyncio.get_running_loop()
        for delay_s, number, rung in ladder:
            self._timers.append(loop.call_later(delay_s, self._step, number, rung))

    def _step(self, number: signal.Signals, rung: str) -> None:
        if self.worker is not None:
            self._rung = rung
            self.worker.signal(number)

    def _finish(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        failure = self.failure
        if failure is not None and failure.code in (codes.CANCELLED, codes.TIMEOUT):
            failure = replace(failure, details={**failure.details, "step": self._rung})
        messages = [] if self._by is None else [encode(Cancelled(self.id, self._by, self._rung))]
        messages.append(encode(self._completed(failure)))
        self.ending = [message.encode() for message in messages]
        self.spooled_bytes = 0
        self.uploads.release()
        self.followers.end()
        with contextlib.suppress(FileNotFoundError):
            try:
                self._folder.rmdir()
            except OSError as exc:
                if isinstance(exc, FileNotFoundError):
                    raise
                scratch.remove_later(self._folder)
        self._home.finished(self)
        self.followers.flush()

    def _completed(self, failure: Failure | None) -> Completed:
        return Completed(
            self.id,
            "success" if failure is None else "error",
            None if failure is None else failure.words(),
            sorted(self._outputs, key=lambda output: str(output["path"])),
            meta(
                self.request.mode,
                self._inputs.digest,
                self._home.secrets_present,
                started_at=self.started_at,
            ),
        )


def meta(
    mode: str, inputs_digest: str | None, secrets_present: list[str], *, started_at: float | None = None
) -> dict[str, Any]:
    """The facts of `completed`."""
    return {
        "started_at": None if started_at is None else events.timestamp(started_at),
        "duration_ms": 0 if started_at is None else max(0, round((time.time() - started_at) * 1000)),
        "isolation": guard.ISOLATION.get(mode, "none"),
        "inputs_digest": inputs_digest,
        "secrets_present": secrets_present,
    }
