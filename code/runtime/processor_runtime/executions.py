"""All executions of a runtime: which may come in, which run, which wait, and what the last ones ended with."""

import asyncio
import logging
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processor_runtime import codes
from processor_runtime.environment import Environment
from processor_runtime.events import EventLog
from processor_runtime.execution import Execution, Request, meta
from processor_runtime.failures import Failure, timed_out
from processor_runtime.followers import Follower
from processor_runtime.inputs import Canonical, InvalidInputs, Validator, canonical
from processor_runtime.pool import MODES, Pool
from processor_runtime.protocol import Attach, Completed, Run, encode
from processor_runtime.space import Space

MAX_WAITING: Final = 1024
MAX_RETAINED: Final = 4096
MAX_RETAINED_BYTES: Final = 8 * 1024 * 1024
MAX_RETAINED_EVENTS_BYTES: Final = 4 * 1024 * 1024  # for who loses the connection just before the end
MAX_TIMEOUT_S: Final = 30 * 24 * 3600.0

log = logging.getLogger("processor_runtime")


class Refusal(Exception):
    """The request does not become an execution; `failure` says why."""

    def __init__(self, failure: Failure, inputs_digest: str | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.inputs_digest = failure, inputs_digest


@dataclass(frozen=True, slots=True)
class Ended:
    """What is kept of an execution after its end."""

    request: Request
    accepted: bytes
    ending: list[bytes]
    """completed alone."""
    events: EventLog
    """Its last events as long as there is room, then their numbers."""
    deserted: bool
    """Nobody was there to see it: `attach` gets it, `run` runs again."""

    done = True

    @property
    def size_bytes(self) -> int:
        return len(self.accepted) + len(self.ending[-1])


class Executions:
    """The queue and everything that runs."""

    def __init__(self, environment: Environment, secrets_present: list[str], pool: Pool) -> None:
        self.secrets_present = secrets_present
        self.scratch_bytes = environment.spec.scratch_bytes
        self.ended_by_code: dict[tuple[str, str], int] = {}
        """How many ended, by (mode, code); the code of a success is the empty string."""
        self._environment, self._pool = environment, pool
        self._validator = Validator(environment.spec.inputs)
        self._live: dict[str, Execution] = {}
        self._running: set[Execution] = set()
        self._waiting: dict[str, deque[Execution]] = {mode: deque() for mode in MODES}
        self._timeouts: dict[Execution, asyncio.TimerHandle] = {}
        self._retained: OrderedDict[str, Ended] = OrderedDict()
        self._retained_bytes = 0
        self._retained_events: deque[EventLog] = deque()
        self._retained_events_bytes = 0
        self._last_number = 0
        self._draining = False
        self._drained = asyncio.Event()
        self._space = Space(environment, self._running, cleaned=self.dispatch)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def full(self) -> bool:
        """Whether one more execution would have to wait for another's end."""
        return self.running >= self._environment.spec.concurrency

    @property
    def draining(self) -> bool:
        return self._draining

    # what connections ask

    def run(self, message: Run, client: Follower) -> Execution | Ended | list[bytes]:
        """The execution that was made of a request, or that it is already; or the messages that answer it at once."""
        try:
            inputs = self._inputs(message)
            request = Request(message.mode, inputs.digest, message.write_prefix)
            if (live := self._live.get(message.execution_id)) is not None:
                self._same(live.request, request, message.execution_id)
                live.rejoin(client)
                return live
            ended = self._retained.get(message.execution_id)
            if ended is not None and not ended.deserted:
                self._same(ended.request, request, message.execution_id)
                return ended
            self._check(message, inputs)
        except Refusal as exc:
            return [self.refusal(message.execution_id, exc, message.mode)]
        return self._accept(message, inputs, client)

    def attach(self, message: Attach, client: Follower) -> Execution | Ended | list[bytes]:
        """The execution to follow, or the messages that answer at once."""
        found = self._live.get(message.execution_id) or self._retained.get(message.execution_id)
        if found is not None and message.after <= found.events.last:  # else it had events of another of this id
            if isinstance(found, Execution):
                found.rejoin(client)
            return found
        text = f"no execution {message.execution_id} here"
        failure = Failure(codes.EXECUTION_NOT_FOUND, text, "the runtime was started anew, or it ended long ago")
        return [self.refusal(message.execution_id, Refusal(failure), "")]

    def refusal(self, execution_id: str, refusal: Refusal, mode: str) -> bytes:
        """The `completed` of what never was accepted."""
        failure = refusal.failure
        facts = meta(mode, refusal.inputs_digest, self.secrets_present)
        return encode(Completed(execution_id, "error", failure.words(), [], facts)).encode()

    async def drain(self) -> None:
        """Take nothing more, end what is there, and return when all of it has ended."""
        self._draining = True
        for execution in list(self._live.values()):
            execution.cancel("shutdown")
        while self._live:
            self._drained.clear()
            await self._drained.wait()

    # what executions ask (Home)

    def spool_folder(self, execution: Execution) -> Path:
        return self._environment.scratch / f"spool-{execution.number}"

    def spooled_bytes(self) -> int:
        return sum(execution.spooled_bytes for execution in self._live.values())

    def began_never(self, execution: Execution) -> None:
        self._running.discard(execution)
        self._waiting[execution.request.mode].appendleft(execution)
        self.dispatch()

    def fetched(self, execution: Execution) -> None:
        """Its inputs are here: it begins before all that wait, on a worker that another may have taken meanwhile."""
        self.began_never(execution)

    def finished(self, execution: Execution) -> None:
        self._timeouts.pop(execution).cancel()
        self._live.pop(execution.id, None)
        if execution in self._running:
            self._running.discard(execution)
        else:
            self._waiting[execution.request.mode].remove(execution)
        self._retain(execution)
        failure = execution.failure
        key = (execution.request.mode, "" if failure is None else failure.code)
        self.ended_by_code[key] = self.ended_by_code.get(key, 0) + 1
        if failure is not None:
            log.info("execution %s ended: %s: %s", execution.id, failure.code, " ".join(failure.message.split()))
        self._space.ended(execution, failure)
        self._drained.set()
        self.dispatch()

    # inside

    def dispatch(self) -> None:
        """Start what can start, oldest first; have workers made for the rest."""
        if self._space.cleaning:
            return
        while len(self._running) < self._environment.spec.concurrency:
            heads = [queue[0] for mode, queue in self._waiting.items() if queue and self._pool.has_idle(mode)]
            if not heads:
                break
            execution = min(heads, key=lambda head: head.number)
            self._waiting[execution.request.mode].popleft()
            self._running.add(execution)
            if execution.fetches is None or execution.fetches.complete:
                execution.began(self._pool.take(execution.request.mode))
            else:
                execution.fetches.start()
            self._space.began(execution)
        free = self._environment.spec.concurrency - len(self._running)
        for mode in MODES:
            self._pool.want(mode, min(len(self._waiting[mode]), free))
        self._fail_unloadable()

    def stillborn(self, mode: str, failure: Failure) -> None:
        """A worker ended before it was ready: so does the execution that waited for it."""
        if self._waiting[mode]:
            self._waiting[mode][0].stop(failure)

    def _inputs(self, message: Run) -> Canonical:
        try:
            return canonical(message.inputs)
        except InvalidInputs as exc:
            raise Refusal(exc.failure) from exc

    def _same(self, before: Request, now: Request, execution_id: str) -> None:
        """Raise Refusal unless both are one request."""
        if before != now:
            text = f"execution {execution_id} was another request: its mode, inputs or prefix differ"
            raise Refusal(Failure(codes.EXECUTION_CONFLICT, text, "use a new execution id"), now.inputs_digest)

    def _check(self, message: Run, inputs: Canonical) -> None:
        """Raise Refusal unless the request may become an execution."""
        failure = self._stopping() or self._wrong(message)
        if failure is None:
            try:
                self._validator.check(message.inputs)
            except InvalidInputs as exc:
                failure = exc.failure
        if failure is None and message.mode == "real":
            failure = self._missing_secrets()
        if failure is None and self.waiting >= MAX_WAITING:
            failure = Failure(codes.BUSY, f"{MAX_WAITING} executions wait already", "try again later")
        if failure is not None:
            raise Refusal(failure, inputs.digest)

    def _stopping(self) -> Failure | None:
        return (
            Failure(codes.BUSY, "the runtime is stopping", "start it again, then run again") if self._draining else None
        )

    def _wrong(self, message: Run) -> Failure | None:
        if message.mode not in MODES:
            return Failure(codes.INPUTS, f"mode {message.mode!r} is neither mock nor real")
        if not 0 < message.timeout_s <= MAX_TIMEOUT_S:
            return Failure(codes.INPUTS, f"timeout_s {message.timeout_s!r} is not between 0 and {MAX_TIMEOUT_S:g}")
        if not _is_prefix(message.write_prefix):
            text = f"write prefix {message.write_prefix!r} is not /artifacts/…/"
            return Failure(codes.INPUTS, text, "start it with /artifacts/, end it with /, without .. or //")
        return None

    def _missing_secrets(self) -> Failure | None:
        missing = [name for name in self._environment.spec.required_secrets if name not in self.secrets_present]
        if not missing:
            return None
        text = f"missing secrets: {', '.join(missing)}"
        return Failure(codes.MISSING_SECRET, text, "set them, then start the processor again", {"missing": missing})

    def _accept(self, message: Run, inputs: Canonical, client: Follower) -> Execution:
        self._last_number += 1
        execution = Execution(message, inputs, self._last_number, self)
        execution.follow(client)
        self._live[execution.id] = execution
        self._waiting[message.mode].append(execution)
        loop = asyncio.get_running_loop()
        self._timeouts[execution] = loop.call_later(message.timeout_s, self._time_out, execution)
        self.dispatch()
        waits = execution in self._waiting[message.mode]
        if waits and (self.full or not self._pool.can_start(message.mode)):
            execution.queued(self.waiting)
        return execution

    def _time_out(self, execution: Execution) -> None:
        execution.stop(timed_out(execution.timeout_s))

    def _fail_unloadable(self) -> None:
        """Real runs that wait for a load() which failed."""
        if (failure := self._pool.load_failure) is not None:
            for execution in list(self._waiting["real"]):
                execution.stop(failure)

    def _retain(self, execution: Execution) -> None:
        self._forget(execution.id)  # it may have run before, with nobody there at its end
        ended = Ended(
            execution.request, execution.accepted, execution.ending[-1:], execution.events, execution.deserted
        )
        self._retained[execution.id] = ended
        self._retained_bytes += ended.size_bytes
        while len(self._retained) > MAX_RETAINED or self._retained_bytes > MAX_RETAINED_BYTES:
            self._forget(next(iter(self._retained)))
        self._retained_events.append(ended.events)
        self._retained_events_bytes += ended.events.size_bytes
        while len(self._retained_events) > MAX_RETAINED or self._retained_events_bytes > MAX_RETAINED_EVENTS_BYTES:
            oldest = self._retained_events.popleft()
            self._retained_events_bytes -= oldest.size_bytes
            oldest.forget()

    def _forget(self, execution_id: str) -> None:
        if (ended := self._retained.pop(execution_id, None)) is not None:
            self._retained_bytes -= ended.size_bytes


def _is_prefix(text: str) -> bool:
    if not text.startswith("/artifacts/") or not text.endswith("/"):
        return False
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text):
        return False
    return all(segment not in ("", ".", "..") for segment in text[1:-1].split("/"))
