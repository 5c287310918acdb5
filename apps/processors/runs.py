"""One execution over one WebSocket, local and remote alike: ask, hand events on, store outputs, write the receipt."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from processor_runtime import protocol

from apps.errors import Cancelled, OperationError, UploadFailed, from_words
from apps.processors.door import OPEN_TIMEOUT_S, Door, opened
from apps.processors.envelope import Envelope, Meta, Output, encode, index_document
from apps.processors.uploading import Uploading
from apps.storage.artifacts import Artifacts

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

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
    stored: list[Output] = field(default_factory=list)

    def failed(self, error: OperationError) -> OperationError:
        """`error`, carrying the error envelope."""
        envelope = Envelope(self.execution_id, self.ref, self.meta, outputs=tuple(self.stored), error=error.words())
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
    identify: Callable[[protocol.Hello], None],
    on_event: EventSink,
) -> Envelope:
    """Run one execution to its end and store its outputs, receipt and index.

    `identify` sees who answered before anything is sent and raises to refuse it. The first SIGINT or SIGTERM
    cancels the execution and waits for its end; a second one leaves at once.

    Raises Unreachable, and any OperationError that ends the execution; `known` then holds what was learnt.
    """
    with opened(door) as connection:
        execution = _Execution(request, connection, known, artifacts, on_event)
        with _cancelling(execution):
            execution.greet(identify)
            execution.converse()
        return execution.conclude()


class _Execution:
    """The controller's end of one conversation."""

    def __init__(
        self,
        request: protocol.Run,
        connection: "ClientConnection",
        known: Known,
        artifacts: Artifacts,
        on_event: EventSink,
    ) -> None:
        self._request, self._connection, self._known = request, connection, known
        self._artifacts, self._on_event = artifacts, on_event
        self._side = protocol.ControllerSide()
        self._uploading = Uploading(self._side, artifacts, send=connection.send, stored=self._stored)
        self._leave_at: float | None = None
        self._asked = False
        self.signal: int | None = None

    def greet(self, identify: Callable[[protocol.Hello], None]) -> None:
        """Hear who answers, then ask for the execution."""
        hello = self._side.receive(self._connection.recv(timeout=OPEN_TIMEOUT_S))
        if not isinstance(hello, protocol.Hello):
            raise protocol.ProtocolError(f"{protocol.type_of(hello)} before hello")
        self._known.learn(
            image_digest=hello.image_digest,
            spec_digest=hello.spec_digest,
            secrets_present=tuple(hello.secrets_present),
            runtime_version=hello.runtime_version,
        )
        identify(hello)
        self._known.sent = True
        self._connection.send(self._side.run(self._request))
        self._asked = True
        if self.signal is not None:
            self._cancel()

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
        self._leave_at = time.monotonic() + CANCEL_TIMEOUT_S
        text = protocol.encode(protocol.Cancel(self._request.execution_id, "user"))
        threading.Thread(target=_send_quietly, args=(self._connection, text), daemon=True).start()

    def converse(self) -> None:
        """Until the execution has completed."""
        try:
            while self._side.completed is None:
                self._take(self._next())
        finally:
            self._uploading.close()
            self._known.learn(transfer=self._uploading.transfer)

    def _next(self) -> str | bytes:
        while True:
            self._uploading.check()
            if self._leave_at is not None and time.monotonic() > self._leave_at:
                raise Cancelled("cancelled; the processor did not confirm it", details={"by": "user"})
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
            case protocol.Event():
                self._on_event(_event_document(message))
            case protocol.Upload():
                self._uploading.asked(message)
            case protocol.Uploaded():
                self._uploading.uploaded(message)

    def _stored(self, upload: protocol.Upload) -> None:
        self._known.stored.append(
            Output(self._known.write_prefix + upload.path, upload.digest, upload.size_bytes, upload.mime)
        )

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
            error = from_words(completed.error)
            if self.signal == signal.SIGTERM and isinstance(error, Cancelled):
                error.exit_status = 128 + signal.SIGTERM
            raise error
        self._agree(completed.outputs)
        envelope = Envelope(
            self._known.execution_id,
            self._known.ref,
            self._known.meta,
            outputs=tuple(self._known.stored),
            index_path=self._known.write_prefix + "outputs.json",
        )
        self._artifacts.finish(encode(index_document(envelope)), encode(envelope.document()))
        return envelope

    def _agree(self, listed: list[dict[str, Any]]) -> None:
        """Hold the processor's list against what is stored.

        An execution that ended before, for a controller that was killed, comes back with its list alone: its
        outputs were stored then, and are read to be sure.
        """
        have = {output.path: output for output in self._known.stored}
        for output in listed:
            path = self._known.write_prefix + output["path"]
            found = have.pop(path, None)
            if found is None and self._artifacts.holds(output["path"], output["digest"], output["size_bytes"]):
                self._known.stored.append(Output(path, output["digest"], output["size_bytes"], output["mime"]))
            elif found is None or found.digest != output["digest"]:
                raise UploadFailed(
                    f"{path} is not stored as the processor says",
                    hint="run it again under another --execution-id, or without one",
                    details={"path": path},
                )
        if have:
            raise UploadFailed(f"{min(have)} is stored, and not in the processor's list", details={"path": min(have)})


def _event_document(event: protocol.Event) -> dict[str, Any]:
    return {
        "event": event.event,
        "seq": event.seq,
        "execution_id": event.execution_id,
        "ts": event.ts,
        "data": event.data,
    }


def _send_quietly(connection: "ClientConnection", text: str) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        connection.send(text)
    except ConnectionClosed:
        return  # it ended by itself


@contextmanager
def _cancelling(execution: _Execution) -> Iterator[None]:
    """The first SIGINT or SIGTERM goes to the execution; the second does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        execution.interrupt(number)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
