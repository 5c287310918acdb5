"""One execution over one WebSocket, local and remote alike: ask, hand events on, store outputs, write the receipt."""

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from processor_runtime import protocol

from apps.errors import (
    Cancelled,
    ExecutionLost,
    ExecutionNotFound,
    OperationError,
    OutputExists,
    UploadFailed,
    from_words,
)
from apps.processors.door import OPEN_TIMEOUT_S, Door, Unreachable, opened
from apps.processors.envelope import Envelope, Meta, Output, decode, encode, index_document
from apps.processors.interrupts import signals_to
from apps.processors.uploading import Uploading
from apps.storage.artifacts import Artifacts

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from apps.processors.fetching import Fetching, Sources

CANCEL_TIMEOUT_S: Final = 10.0
"""How long a cancelled execution may take to end before we leave it."""

EventSink = Callable[[Mapping[str, Any]], None]
"""Takes one event, in the shape that `run --stream --json` prints."""


@dataclass(slots=True)
class Known:
    """What is known of an execution so far: enough for an error envelope at any moment."""

    execution_id: str
    ref: str
    meta: Meta
    write_prefix: str = ""
    sent: bool = False
    """Whether the runtime may have the request: from then on it may have had effects."""
    stored: dict[str, Output] = field(default_factory=dict)
    """By path."""

    def failed(self, error: OperationError) -> OperationError:
        """`error`, carrying the error envelope."""
        envelope = Envelope(
            self.execution_id, self.ref, self.meta, outputs=tuple(self.stored.values()), error=error.words()
        )
        error.envelope = envelope.document()
        return error

    def learn(self, **known: Any) -> None:
        """Put what was just learnt into the meta."""
        self.meta = self.meta._replace(**known)


def execute(
    request: protocol.Run,
    door: Door,
    *,
    known: Known,
    artifacts: Artifacts,
    sources: "Sources | None" = None,
    identify: Callable[[protocol.Hello], None],
    on_event: EventSink,
    is_gone: Callable[[], bool] = lambda: False,
) -> Envelope:
    """Run one execution to its end and store its outputs, receipt and index.

    `sources` are the artifacts that the inputs name. `identify` sees who answered before anything is sent and raises
    to refuse it. A connection that is lost later is opened again, until `is_gone` knows that the processor has ended.
    The first SIGINT or SIGTERM cancels the execution and waits for its end; a second one leaves at once.

    Raises Unreachable, and any OperationError that ends the execution; `known` then holds what was learnt.
    """
    execution = _Execution(request, known, artifacts, on_event)
    execution.sources = sources
    with signals_to(execution.interrupt):
        try:
            with opened(door) as connection:
                execution.begin(connection, identify)
        except Unreachable:
            if not known.sent:
                raise
            from apps.processors.reattaching import reattach  # a run that goes well needs none

            reattach(execution, door, is_gone=is_gone)
    return execution.conclude()


class _Execution:
    """The controller's end of one execution, over one connection after the other."""

    sources: "Sources | None" = None

    def __init__(self, request: protocol.Run, known: Known, artifacts: Artifacts, on_event: EventSink) -> None:
        self._request, self._known = request, known
        self._artifacts, self._on_event = artifacts, on_event
        self._connection: ClientConnection
        self._side = protocol.ControllerSide()
        self._uploading: Uploading
        self._fetching: Fetching | None = None
        self._instance = ""
        self._seen = 0
        self._leave_at: float | None = None
        self._asked = False
        self.connections = 0
        """How many have followed it: got as far as its events."""
        self.signal: int | None = None

    def begin(self, connection: "ClientConnection", identify: Callable[[protocol.Hello], None]) -> None:
        """Hear who answers, ask for the execution, and follow it until it has completed."""
        hello = self._meet(connection)
        self._instance = hello.instance
        self._known.learn(
            image_digest=hello.image_digest,
            spec_digest=hello.spec_digest,
            secrets_present=tuple(hello.secrets_present),
            runtime_version=hello.runtime_version,
        )
        identify(hello)
        self._known.sent = True
        self._ask(self._side.run(self._request))
        self._converse()

    def rejoin(self, connection: "ClientConnection") -> None:
        """Go on over another connection, where the last one ended. Raises ExecutionLost."""
        hello = self._meet(connection)
        if hello.instance != self._instance:
            raise self.lost()
        if self.connections:
            self._ask(self._side.attach(protocol.Attach(self._request.execution_id, self._seen)))
        else:  # it may never have come: the same id is the same execution
            self._ask(self._side.run(self._request))
        self._converse()
        error = self._side.completed and self._side.completed.error
        if error and error["code"] == ExecutionNotFound.code:
            raise self.lost()

    def wait(self, seconds: float) -> None:
        """For another connection. Raises Cancelled when a cancel had time enough."""
        self._look_at_the_clock()
        time.sleep(seconds)

    def _meet(self, connection: "ClientConnection") -> protocol.Hello:
        """Start anew on `connection`: who answers."""
        self._asked = False
        self._seen = max(self._seen, self._side.next_seq - 1)
        self._connection, self._side = connection, protocol.ControllerSide()
        self._uploading = Uploading(self._side, self._artifacts, send=connection.send, stored=self._stored)
        if self.sources is not None:
            self._fetching = self.sources.offer(self._side, self._artifacts.downloads, send=connection.send)
        hello = self._side.receive(connection.recv(timeout=OPEN_TIMEOUT_S))
        if not isinstance(hello, protocol.Hello):
            raise protocol.ProtocolError(f"{protocol.type_of(hello)} before hello")
        return hello

    def _ask(self, text: str) -> None:
        self._connection.send(text)
        self._asked = True
        if self.signal is not None:
            self._cancel()

    def lost(self) -> ExecutionLost:
        """For when another processor answers in its place."""
        return ExecutionLost(
            f"{self._known.ref} was started anew during the execution; its fate is unknown", hint="run it again"
        )

    def interrupt(self, number: int) -> None:
        """What a signal means: cancel the execution; before there is one, what it would have meant without us."""
        if not self._known.sent:
            signal.raise_signal(number)
            return
        self.signal = number
        if self._asked:
            self._cancel()

    def _cancel(self) -> None:
        """Ask the runtime to end it. From a thread of its own: the interrupted one may hold the connection's lock."""
        self._leave_at = self._leave_at or time.monotonic() + CANCEL_TIMEOUT_S
        text = protocol.encode(protocol.Cancel(self._request.execution_id, "user"))
        threading.Thread(target=_send_quietly, args=(self._connection, text), daemon=True).start()

    def _converse(self) -> None:
        """Until the execution has completed."""
        try:
            while self._side.completed is None:
                self._take(self._next())
        except BaseException:  # unless the connection is lost, we leave for good: the processor need not wait for us
            _send_quietly(self._connection, protocol.encode(protocol.Cancel(self._request.execution_id, "client")))
            raise
        finally:
            self._uploading.close()
            if self._fetching is not None:
                self._fetching.close()
            if self._known.meta.transfer != "relay":  # by an earlier connection
                self._known.learn(transfer=self._uploading.transfer)

    def _look_at_the_clock(self) -> None:
        if self._leave_at is not None and time.monotonic() > self._leave_at:
            raise Cancelled("cancelled; the processor did not confirm it", details={"by": "user"})

    def _next(self) -> str | bytes:
        while True:
            self._uploading.check()
            if self._fetching is not None:
                self._fetching.check()
            self._look_at_the_clock()
            try:
                return self._connection.recv(timeout=1.0)
            except TimeoutError:
                continue  # only to look at the clock: the runtime owns the execution's own deadline

    def _take(self, received: str | bytes) -> None:
        if isinstance(received, bytes):
            self._uploading.chunk(received)
            return
        message = self._side.receive(received)
        match message:
            case protocol.Accepted():
                self.connections += 1
            case protocol.Event():
                self._on_event(_event_document(message))
            case protocol.Upload():
                self._uploading.asked(message)
            case protocol.Uploaded():
                self._uploading.uploaded(message)
            case protocol.Fetch() | protocol.Pull():
                if self._fetching is None:
                    raise protocol.ProtocolError("a fetch, and the inputs name no artifact")
                self._fetching.take(message)

    def _stored(self, upload: protocol.Upload) -> None:
        path = self._known.write_prefix + upload.path
        self._known.stored[path] = Output(path, upload.digest, upload.size_bytes, upload.mime)

    def conclude(self) -> Envelope:
        """Receipt and index on success; raises what ended the execution otherwise."""
        completed = self._side.completed
        assert completed is not None  # noqa: S101  converse() returns only then
        meta = completed.meta
        isolation = [self._known.meta.isolation, meta.get("isolation")]
        self._known.learn(
            started_at=meta.get("started_at"),
            duration_ms=meta.get("duration_ms"),
            isolation=", ".join(filter(None, isolation)),
        )
        if completed.error is not None:
            with suppress(OperationError):  # what ended the execution is told, whatever the store says
                self._learn_outputs(completed.outputs)
            error = from_words(completed.error)
            if self.signal == signal.SIGTERM and isinstance(error, Cancelled):
                error.exit_status = 128 + signal.SIGTERM
            raise error
        self._agree(completed.outputs)
        envelope = Envelope(
            self._known.execution_id,
            self._known.ref,
            self._known.meta,
            outputs=tuple(self._known.stored.values()),
            index_path=self._known.write_prefix + "outputs.json",
        )
        try:
            self._artifacts.finish(encode(index_document(envelope)), encode(envelope.document()))
        except OutputExists:  # another that followed it was first
            if (receipt := self._artifacts.previous(self._known.execution_id)) is None:
                raise
            return decode(receipt)
        return envelope

    def _agree(self, listed: list[dict[str, Any]]) -> None:
        """Hold the processor's list against what is stored. Raises UploadFailed."""
        self._learn_outputs(listed)
        have = dict(self._known.stored)
        for output in listed:
            path = self._known.write_prefix + output["path"]
            found = have.pop(path, None)
            if found is None or found.digest != output["digest"]:
                raise UploadFailed(
                    f"{path} is not stored as the processor says",
                    hint="run it again under another --execution-id, or without one",
                    details={"path": path},
                )
        if have:
            raise UploadFailed(f"{min(have)} is stored, and not in the processor's list", details={"path": min(have)})

    def _learn_outputs(self, listed: list[dict[str, Any]]) -> None:
        """Those that another controller stored, of the same execution: each is read to be sure."""
        for output in listed:
            path = self._known.write_prefix + output["path"]
            if path in self._known.stored:
                continue
            if self._artifacts.holds(output["path"], output["digest"], output["size_bytes"]):
                self._known.stored[path] = Output(path, output["digest"], output["size_bytes"], output["mime"])


def _event_document(event: protocol.Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("event", "seq", "execution_id", "ts", "data")}


def _send_quietly(connection: "ClientConnection", text: str) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        connection.send(text)
    except ConnectionClosed:
        return  # it ended by itself
