"""How the runtime's own processes talk: length, kind, body over stream sockets between one program's processes."""

import struct
from typing import Final

HEADER: Final = struct.Struct("<IB")  # length of the body, kind
MAX_BODY_BYTES: Final = 32 * 1024 * 1024  # a request of MAX_REQUEST_BYTES, and room
READ_BYTES: Final = 64 * 1024  # more, and malloc would map and unmap memory for every read

# To a worker
RUN: Final = 1  # JSON: one execution

# From a worker
READY: Final = 16  # JSON: {"pid"}
EVENT: Final = 17  # a JSON object's inside: "event":…,"ts":…,"data":…
OUTPUT: Final = 18  # JSON: one spooled output
REFUSED: Final = 19  # JSON: {"message"}, what the guard refused
END: Final = 20  # JSON: how the handler ended

# Between the supervisor and a template process, both ways
CONTROL: Final = 32  # JSON; a file descriptor may ride on its first byte


class BrokenFrame(Exception):
    """The other process wrote what is no frame: nothing after it can be trusted."""


def pack(kind: int, body: bytes) -> bytes:
    """One frame, ready to be written in one piece."""
    return HEADER.pack(len(body), kind) + body


class Splitter:
    """Cuts what a socket delivers into frames, however it was split on the way."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames that `data` completes, as (kind, body). Raises BrokenFrame."""
        if self._rest:
            self._rest += data
            frames, used = _split(self._rest)
            del self._rest[:used]
            return frames
        frames, used = _split(data)
        if used < len(data):
            self._rest += data[used:]
        return frames


def _split(data: bytes | bytearray) -> tuple[list[tuple[int, bytes]], int]:
    frames, at, end = [], 0, len(data)
    while end - at >= HEADER.size:
        length, kind = HEADER.unpack_from(data, at)
        if length > MAX_BODY_BYTES:
            raise BrokenFrame(f"a frame of {length} bytes")
        if end - at - HEADER.size < length:
            break
        at += HEADER.size
        frames.append((kind, bytes(data[at : at + length])))
        at += length
    return frames, at
