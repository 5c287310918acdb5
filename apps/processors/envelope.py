"""The one document that an execution ends with, and the index of its outputs. Their shapes and bytes; no I/O."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

# Named tuples: frozen dataclasses take four times as long to make, and every run pays for it.


class Output(NamedTuple):
    """A file that an execution wrote. The fields are the document's keys, in its order."""

    path: str
    """Whole: the expanded write prefix and the name below it."""
    digest: str
    """`sha256:` + 64 hex."""
    size_bytes: int
    mime: str


class Meta(NamedTuple):
    """What is known about an execution; None where it is not. The fields are the document's keys, in its order.

    A run learns as it goes: `_replace`.
    """

    adapter: str | None = None
    """local or modal."""
    engine: str | None = None
    """docker, process or modal."""
    mode: str | None = None
    """mock or real."""
    image_digest: str | None = None
    spec_digest: str | None = None
    inputs_digest: str | None = None
    """SHA-256 of the inputs' RFC 8785 canonical JSON."""
    secrets_present: tuple[str, ...] | None = None
    """Names, never values."""
    storage: str | None = None
    transfer: str | None = None
    """direct or relay."""
    isolation: str | None = None
    started_at: str | None = None
    """RFC 3339, UTC, milliseconds."""
    duration_ms: int | None = None
    runtime_version: str | None = None

    def document(self) -> dict[str, Any]:
        names = None if self.secrets_present is None else list(self.secrets_present)
        return {**self._asdict(), "secrets_present": names}


class Envelope(NamedTuple):
    """How an execution ended: in success, or with `error` (the four keys of `OperationError.words`)."""

    execution_id: str
    ref: str
    meta: Meta
    outputs: tuple[Output, ...] = ()
    """In any order; after an error those that were stored by then."""
    index_path: str | None = None
    """Where the index is; success has one, an error none."""
    error: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        head: dict[str, Any] = {
            "schema": 1,
            "status": "success" if self.error is None else "error",
            "execution_id": self.execution_id,
            "ref": self.ref,
        }
        if self.error is None:
            middle: dict[str, Any] = {"outputs": _sorted(self.outputs), "index_path": self.index_path}
        else:
            middle = {"error": dict(self.error), "partial_outputs": _sorted(self.outputs)}
        return {**head, **middle, "meta": self.meta.document()}


def index_document(envelope: Envelope) -> dict[str, Any]:
    """The index of a successful execution: what a complete prefix holds."""
    return {
        "schema": 1,
        "execution_id": envelope.execution_id,
        "ref": envelope.ref,
        "outputs": _sorted(envelope.outputs),
    }


def _sorted(outputs: tuple[Output, ...]) -> list[dict[str, Any]]:
    return [output._asdict() for output in sorted(outputs, key=lambda output: output.path)]


def encode(document: Mapping[str, Any]) -> bytes:
    """An envelope or index as it is stored: byte for byte what --json prints, without the line's end.

    ASCII alone, so that no terminal's encoding can make the two differ.
    """
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(receipt: bytes) -> Envelope:
    """The envelope of a success, as it was encoded. Raises ValueError, KeyError, TypeError for anything else."""
    document = json.loads(receipt)
    meta = document["meta"]
    names = meta["secrets_present"]
    return Envelope(
        document["execution_id"],
        document["ref"],
        Meta(**{**meta, "secrets_present": None if names is None else tuple(names)}),
        outputs=tuple(Output(**output) for output in document["outputs"]),
        index_path=document["index_path"],
    )


def new_execution_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): milliseconds since 1970, then 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def now() -> str:
    """The time as every document of ours gives it: RFC 3339, UTC, milliseconds, `Z`."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(milliseconds // 1000))}.{milliseconds % 1000:03d}Z"
