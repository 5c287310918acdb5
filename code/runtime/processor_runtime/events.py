"""Events of an execution: their text, their numbers, and the ring that keeps the last of them."""

import time
from collections import deque
from typing import Any, Final

import orjson

RING_BYTES: Final = 1024 * 1024  # of event text kept for a reader that is behind
RING_EVENTS: Final = 10_000
PIECE_EVENTS: Final = 256  # in one write: a reader that is far behind gets the ring piece by piece

_NONE: Final = deque[bytes]()

_second = -1
_second_text = ""


def timestamp(at: float | None = None) -> str:
    """`at` (seconds since 1970; now without it) in RFC 3339, UTC, milliseconds."""
    global _second, _second_text
    milliseconds = int((time.time() if at is None else at) * 1000)
    second = milliseconds // 1000
    if second != _second:  # most events share their second with the one before
        _second, _second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_second_text}.{milliseconds % 1000:03d}Z"


def fragment(event: str, data: dict[str, Any]) -> bytes:
    """The inside of an event message, all but its number; raises TypeError for what is not JSON."""
    return b'"event":"%b","ts":"%b","data":%b' % (event.encode(), timestamp().encode(), orjson.dumps(data))


class EventLog:
    """The numbered events of one execution, the last RING_BYTES of them."""

    def __init__(self, execution_id: str) -> None:
        self._head = b'{"type":"event","execution_id":"%b","seq":' % execution_id.encode()
        self._texts: deque[bytes] = deque()
        self._bytes = 0
        self.last = 0
        """Number of the newest event; 0 before the first."""

    def add(self, inside: bytes) -> None:
        """Number one event, given as `fragment` made it."""
        self.last += 1
        text = b"%b%d,%b}" % (self._head, self.last, inside)
        self._texts.append(text)
        self._bytes += len(text)
        while self._bytes > RING_BYTES or len(self._texts) > RING_EVENTS:
            if len(self._texts) == 1:  # one event larger than the ring is kept all the same
                break
            self._bytes -= len(self._texts.popleft())

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def forget(self) -> None:
        """Keep the numbers alone; nothing is added any more."""
        self._texts, self._bytes = _NONE, 0

    def after(self, seq: int) -> tuple[list[bytes], int]:
        """The next messages after number `seq`, and the number of the last of them.

        At most PIECE_EVENTS, so ask again. A `gap` comes first when some are gone.
        """
        wanted, kept = self.last - seq, len(self._texts)
        if wanted <= 0:
            return [], seq
        gap: list[bytes] = []
        if wanted > kept:
            lost = self.last - kept
            gap.append(b"%b%d,%b}" % (self._head, lost, fragment("gap", {"from": seq + 1, "to": lost})))
            wanted = kept
        stop = min(kept, kept - wanted + PIECE_EVENTS)
        return gap + [self._texts[i] for i in range(kept - wanted, stop)], self.last - kept + stop
