"""The run protocol `theory.run.v1`: messages, their encoding, and what may follow what. No I/O.

Both ends import this module; it needs the standard library alone. `docs/protocol.md` is its prose,
`docs/protocol.schema.json` the JSON Schema of every message.

One connection carries one execution. Text messages are JSON objects with a `type`; binary messages are
chunks (`CHUNK_HEADER`, then bytes) of outputs from a runtime, of fetched inputs to it. Control messages go before
chunks at every turn.
"""

import json
import re
import struct
import types
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, get_args

SUBPROTOCOL: Final = "theory.run.v1"
PATH: Final = "/run"

MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024  # the largest text message to a runtime: inputs are in it
MAX_MESSAGE_BYTES: Final = 1024 * 1024  # the largest message from a runtime
CHUNK_BYTES: Final = 256 * 1024  # of one file in one binary message
WINDOW_BYTES: Final = 4 * 1024 * 1024  # relayed bytes of one file under way and not yet stored, at most
CHUNK_HEADER: Final = struct.Struct("!IQ")  # number of the upload or fetch, offset of the first byte

ARTIFACT: Final = "$artifact"  # {ARTIFACT: "/artifacts/…"} in the inputs names a file; see artifacts.py
ARTIFACT_MARK: Final = f'"{ARTIFACT}"'.encode()  # in canonical JSON wherever there is one: else nobody needs to look
EVENTS: Final = frozenset(("queued", "started", "token", "log", "progress", "output", "metric", "gap", "reattached"))
EXECUTION_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class ProtocolError(Exception):
    """The other end broke the protocol: close with 1002, the message as the reason."""


# Messages are named tuples: frozen dataclasses take four times as long to make, and every `run` would pay for it.

# What the controller sends


class Run(NamedTuple):
    """Ask for an execution. `timeout_s` counts from acceptance. The same id again is the same execution."""

    execution_id: str
    mode: str  # mock or real
    inputs: dict[str, Any]
    write_prefix: str  # /artifacts/…/, expanded
    timeout_s: float


class Attach(NamedTuple):
    """Ask for an execution that runs or ran: its events after number `after`, and its end.

    Whoever follows last is the one that is asked for uploads; what another was asked and did not store comes again.
    """

    execution_id: str
    after: int


class Cancel(NamedTuple):
    """End the execution. Answered by `cancelled`, then `completed`.

    By `client` it is one that will not come back: while others follow, nothing happens.
    """

    execution_id: str
    by: str  # user or client


class Grant(NamedTuple):
    """Permission to upload one output, the answer to `upload`.

    `transfer` is `relay` (send it here; `credit` is the first window in bytes) or `direct` (`request` holds
    method, url and headers of an HTTP request to send as they are; or `parts` one such request for each piece of
    `part_bytes`, the last of what is left, in order).
    """

    upload: int
    transfer: str
    credit: int = 0
    request: dict[str, Any] | None = None
    parts: list[dict[str, Any]] | None = None
    part_bytes: int = 0
    upload_id: str | None = None  # of the parts: a later grant with the same one goes on with what was sent
    lifetime_s: float = 0  # of a direct grant, from now on: the clocks of two machines differ; 0 for no end


class Credit(NamedTuple):
    """Allow so many more relayed bytes of this upload."""

    upload: int
    bytes: int


class Stored(NamedTuple):
    """The controller has verified size and digest of this upload where it lies."""

    upload: int


class Refused(NamedTuple):
    """This upload can't be: `error` (code, message, hint, details) ends the execution."""

    upload: int
    error: dict[str, Any]


class Source(NamedTuple):
    """Where an artifact of the inputs can be had, the answer to `fetch`.

    `request` is an HTTP request (method, url, headers) to send as it is; null, or leading nowhere: `pull` it here.
    """

    fetch: int
    size_bytes: int
    digest: str
    request: dict[str, Any] | None = None


class Unavailable(NamedTuple):
    """This fetch can't be: `error` (code, message, hint, details) ends the execution."""

    fetch: int
    error: dict[str, Any]


# What the runtime sends


class Hello(NamedTuple):
    """The first message on every connection: who this is."""

    ref: str
    image_digest: str
    spec_digest: str
    source: str  # pin or build
    runtime_version: str
    concurrency: int
    secrets_present: list[str]
    instance: str = ""  # another at each start: what one accepted, another does not know


class Accepted(NamedTuple):
    """The request was taken; its timeout counts from now."""

    execution_id: str
    inputs_digest: str


class Event(NamedTuple):
    """Something happened; `seq` counts from 1 without holes (a `gap` event says which numbers are gone)."""

    execution_id: str
    seq: int
    event: str
    ts: str
    data: dict[str, Any]


class Upload(NamedTuple):
    """An output is spooled; ask where it shall go. `path` is relative to the write prefix.

    The same path again, under a new number, takes the place of the former upload: its grant expired, or the
    store that it names can't be reached from here (`relay`: only this connection will do).
    """

    execution_id: str
    upload: int
    path: str
    size_bytes: int
    digest: str
    mime: str
    relay: bool = False


class Uploaded(NamedTuple):
    """All bytes of this upload were sent, or lie there already. `etags`: what the store called the parts, in order."""

    upload: int
    etags: list[str] | None = None


class Fetch(NamedTuple):
    """The inputs name an artifact, and it is needed now: ask where it can be had. `path` is as the inputs have it."""

    execution_id: str
    fetch: int
    path: str


class Pull(NamedTuple):
    """Send so many bytes of the artifact from `offset` on, as chunks: at most WINDOW_BYTES, within its size."""

    fetch: int
    offset: int
    bytes: int


class Cancelled(NamedTuple):
    """A cancel took effect. `step` says what ended the handler.

    One of `queued` (it never ran), `handler` (it returned by itself), `interrupt`, `terminate`, `kill`.
    """

    execution_id: str
    by: str  # user, client or shutdown
    step: str


class Completed(NamedTuple):
    """The end of the execution, always the last message.

    `outputs` are the stored ones (path relative to the write prefix, size_bytes, digest, mime), `error` is null
    on success. `meta` holds started_at (null when it never started), duration_ms and isolation.
    """

    execution_id: str
    status: str  # success or error
    error: dict[str, Any] | None
    outputs: list[dict[str, Any]]
    meta: dict[str, Any]


ControllerMessage = Run | Attach | Cancel | Grant | Credit | Stored | Refused | Source | Unavailable
RuntimeMessage = Hello | Accepted | Event | Upload | Uploaded | Fetch | Pull | Cancelled | Completed
Message = ControllerMessage | RuntimeMessage


def type_of(message: Message) -> str:
    """What a message says in `type`."""
    return _name(type(message))


def _name(kind: type[Any]) -> str:
    return kind.__name__.lower()


def _shape(kind: type[Any]) -> dict[str, tuple[tuple[type, ...], bool]]:
    """Field name → (accepted types, required)."""
    shape = {}
    for field, hint in kind.__annotations__.items():
        options = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
        accepted = tuple(getattr(option, "__origin__", option) for option in options)
        if float in accepted:  # JSON has one kind of number
            accepted += (int,)
        shape[field] = (accepted, field not in kind._field_defaults)
    return shape


_SHAPES: Final = {kind: _shape(kind) for kind in (*get_args(ControllerMessage), *get_args(RuntimeMessage))}
_CONTROLLER_TYPES: Final = {_name(kind): kind for kind in get_args(ControllerMessage)}
_RUNTIME_TYPES: Final = {_name(kind): kind for kind in get_args(RuntimeMessage)}


def encode(message: Message) -> str:
    """One message as JSON text, without line breaks."""
    return json.dumps({"type": type_of(message), **message._asdict()}, ensure_ascii=False, separators=(",", ":"))


def decode_controller(text: str | bytes) -> ControllerMessage:
    """What a runtime reads. Raises ProtocolError for anything but one well-formed message."""
    message: ControllerMessage = _decode(text, _CONTROLLER_TYPES)
    return message


def decode_runtime(text: str | bytes) -> RuntimeMessage:
    """What a controller reads. Raises ProtocolError for anything but one well-formed message."""
    message: RuntimeMessage = _decode(text, _RUNTIME_TYPES)
    return message


def _decode(text: str | bytes, kinds: dict[str, type[Any]]) -> Any:
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise ProtocolError("a message is a JSON object")
    name = document.pop("type", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"unknown message type {str(name)[:40]!r}")
    return kind(**_checked(name, document, _SHAPES[kind]))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _checked(name: str, document: dict[str, Any], shape: dict[str, tuple[tuple[type, ...], bool]]) -> dict[str, Any]:
    """The fields of a message; unknown ones are dropped, so that a newer peer may add some."""
    found = {}
    for field, (accepted, required) in shape.items():
        if field not in document:
            if required:
                raise ProtocolError(f"{name} without {field}")
            continue
        value = document[field]
        # bool is an int to Python, never to JSON
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            raise ProtocolError(f"{name}.{field} has the wrong type")
        found[field] = value
    return found


# What may follow what


class ControllerSide:
    """The controller's view of one execution: feed it what arrives, send what it returns.

    Enforces order, contiguous event numbers, and that relayed bytes keep to size, offset and credit.
    """

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.execution_id: str | None = None
        self.accepted = False
        self.completed: Completed | None = None
        self.next_seq = 1
        self._uploads: dict[int, _Relay] = {}
        self._fetches: dict[int, int | None] = {}  # sizes, once they were told

    def run(self, message: Run) -> str:
        """The text that asks for an execution, once, after `hello`."""
        if self.hello is None or self.execution_id is not None:
            raise ProtocolError("run is sent once, after hello")
        self.execution_id = message.execution_id
        return encode(message)

    def attach(self, message: Attach) -> str:
        """The text that asks for what is missing of an execution, instead of `run`."""
        if self.hello is None or self.execution_id is not None:
            raise ProtocolError("attach is sent once, after hello")
        self.execution_id, self.next_seq = message.execution_id, message.after + 1
        return encode(message)

    def receive(self, text: str | bytes) -> RuntimeMessage:
        """One text message, checked against what may come now. Raises ProtocolError."""
        message = decode_runtime(text)
        self._in_order(message)
        match message:
            case Hello():
                self.hello = message
            case Accepted():
                self.accepted = True
            case Event():
                self._number(message)
            case Upload():
                if message.upload in self._uploads:
                    raise ProtocolError(f"upload {message.upload} twice")
                self._uploads[message.upload] = _Relay(message.size_bytes)
            case Uploaded():
                self._relay(message.upload).end(message.upload)
            case Fetch():
                self._fetch(message)
            case Pull():
                self._pull(message)
            case Completed():
                self.completed = message
        return message

    def _in_order(self, message: RuntimeMessage) -> None:
        if self.completed is not None:
            raise ProtocolError(f"{type_of(message)} after completed")
        if isinstance(message, Hello):
            if self.hello is not None:
                raise ProtocolError("hello twice")
            return
        if not self.accepted and not isinstance(message, Accepted | Completed):
            raise ProtocolError(f"{type_of(message)} before accepted")
        if not isinstance(message, Uploaded | Pull) and message.execution_id != self.execution_id:
            raise ProtocolError(f"{type_of(message)} for another execution")

    def _number(self, event: Event) -> None:
        if event.event == "gap":
            gone = (event.data.get("from"), event.data.get("to"))
            if gone != (self.next_seq, event.seq) or event.seq < self.next_seq:
                raise ProtocolError(f"gap {event.data} where {self.next_seq} was due")
            self.next_seq = event.seq + 1
            return
        if event.seq != self.next_seq:
            raise ProtocolError(f"event {event.seq} where {self.next_seq} was due")
        self.next_seq += 1

    def _fetch(self, fetch: Fetch) -> None:
        if fetch.fetch in self._fetches:
            raise ProtocolError(f"fetch {fetch.fetch} twice")
        self._fetches[fetch.fetch] = None

    def _pull(self, pull: Pull) -> None:
        size_bytes = self._fetches.get(pull.fetch)
        if size_bytes is None:
            raise ProtocolError(f"pull of fetch {pull.fetch}, which has no source")
        if not (0 <= pull.offset < pull.offset + pull.bytes <= size_bytes and pull.bytes <= WINDOW_BYTES):
            raise ProtocolError(f"pull of fetch {pull.fetch} beyond its size or the window")

    def source(self, message: Source) -> str:
        """The text that says where an artifact can be had; from then on it may be pulled."""
        self._fetches[message.fetch] = message.size_bytes
        return encode(message)

    def _relay(self, upload: int) -> "_Relay":
        try:
            return self._uploads[upload]
        except KeyError:
            raise ProtocolError(f"unknown upload {upload}") from None

    def grant_relay(self, upload: int) -> str:
        """'Send it here', with the first window."""
        relay = self._relay(upload)
        relay.transfer = "relay"
        relay.credit = WINDOW_BYTES
        return encode(Grant(upload, "relay", credit=WINDOW_BYTES))

    def grant_direct(self, grant: Grant) -> str:
        """'Send it there'."""
        self._relay(grant.upload).transfer = "direct"
        return encode(grant)

    def receive_chunk(self, message: bytes) -> tuple[int, memoryview]:
        """Upload number and bytes of one binary message. Raises ProtocolError."""
        if len(message) < CHUNK_HEADER.size:
            raise ProtocolError("a chunk shorter than its header")
        upload, offset = CHUNK_HEADER.unpack_from(message)
        data = memoryview(message)[CHUNK_HEADER.size :]
        relay = self._relay(upload)
        if offset != relay.received or len(data) > CHUNK_BYTES:
            raise ProtocolError(f"chunk of upload {upload} out of place")
        if len(data) > relay.credit or relay.received + len(data) > relay.size_bytes:
            raise ProtocolError(f"chunk of upload {upload} beyond its credit or size")
        relay.received += len(data)
        relay.credit -= len(data)
        return upload, data

    def consumed(self, upload: int) -> str | None:
        """Call when a chunk was stored: the next credit to send, once half a window is used up."""
        relay = self._relay(upload)
        if relay.credit > WINDOW_BYTES // 2 or relay.received == relay.size_bytes:
            return None
        more = WINDOW_BYTES - relay.credit
        relay.credit += more
        return encode(Credit(upload, more))


@dataclass(slots=True)
class _Relay:
    """One upload as the controller counts it."""

    size_bytes: int
    transfer: str = ""
    received: int = 0
    credit: int = 0

    def end(self, upload: int) -> None:
        if not self.transfer:
            raise ProtocolError(f"upload {upload} ended before it was granted")
        if self.transfer == "relay" and self.received != self.size_bytes:
            raise ProtocolError(f"upload {upload} ended at {self.received} of {self.size_bytes} bytes")


class RuntimeSide:
    """The runtime's view of one connection: what the controller may say now."""

    def __init__(self) -> None:
        self.execution_id: str | None = None
        self.uploads: dict[int, Upload] = {}  # asked for and not settled
        self._fetches: dict[int, _Pulled] = {}

    def receive(self, text: str | bytes) -> ControllerMessage:
        """One text message, checked against what may come now. Raises ProtocolError."""
        message = decode_controller(text)
        match message:
            case Run() | Attach():
                self._begin(message)
            case Cancel():
                if message.execution_id != self.execution_id:
                    raise ProtocolError("cancel for another execution")
            case Grant() | Credit() | Stored() | Refused():
                if message.upload not in self.uploads:
                    raise ProtocolError(f"unknown upload {message.upload}")
            case Source() | Unavailable():
                if message.fetch not in self._fetches:
                    raise ProtocolError(f"unknown fetch {message.fetch}")
        if isinstance(message, Stored | Refused):
            del self.uploads[message.upload]
        return message

    def _begin(self, message: Run | Attach) -> None:
        if self.execution_id is not None:
            raise ProtocolError("one connection carries one execution")
        if not EXECUTION_ID.fullmatch(message.execution_id):
            raise ProtocolError("execution_id is not a UUIDv7")
        if isinstance(message, Attach) and message.after < 0:
            raise ProtocolError("attach after a number below 0")
        self.execution_id = message.execution_id

    def ask(self, message: Upload | Fetch | Pull) -> str:
        """The text that asks where an output shall go, where an artifact can be had, or for bytes of one."""
        match message:
            case Upload():
                self.uploads[message.upload] = message
            case Fetch():
                self._fetches[message.fetch] = _Pulled()
            case Pull():
                self._fetches[message.fetch].ask(message)
        return encode(message)

    def receive_chunk(self, message: bytes) -> tuple[int, memoryview]:
        """Fetch number and bytes of one binary message. Raises ProtocolError."""
        if len(message) < CHUNK_HEADER.size:
            raise ProtocolError("a chunk shorter than its header")
        fetch, offset = CHUNK_HEADER.unpack_from(message)
        data = memoryview(message)[CHUNK_HEADER.size :]
        pulled = self._fetches.get(fetch)
        if pulled is None or offset != pulled.at or not 0 < len(data) <= min(CHUNK_BYTES, pulled.end - pulled.at):
            raise ProtocolError(f"chunk of fetch {fetch} out of place")
        pulled.at += len(data)
        return fetch, data


@dataclass(slots=True)
class _Pulled:
    """One fetch as the runtime counts it: what comes next, and the end of what was asked for."""

    at: int = 0
    end: int = 0

    def ask(self, pull: Pull) -> None:
        if pull.offset != self.end:  # from elsewhere: only when nothing is under way
            assert self.at == self.end  # noqa: S101
            self.at = pull.offset
        self.end = pull.offset + pull.bytes


def chunk(number: int, offset: int, data: bytes | memoryview) -> bytes:
    """One binary message: at most CHUNK_BYTES of the file of an upload or a fetch, from `offset` on."""
    return CHUNK_HEADER.pack(number, offset) + data
