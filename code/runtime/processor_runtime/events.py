"""Events of an execution: their text, their numbers, and the ring that keeps the last of them."""

import time
from collections import deque
from typing import Any, Final

import orjson

RING_BYTES: Final = 1024 * 1024  # of event text kept for a reader that is behind
RING_EVENTS: Final = 10_000

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

    def after(self, seq: int) -> list[bytes]:
        """The messages after number `seq`; a `gap` first when some of them are gone."""
        wanted, kept = self.last - seq, len(self._texts)
        if wanted <= 0:
            return []
        if wanted <= kept:
            return [self._texts[i] for i in range(kept - wanted, kept)]
        lost = self.last - kept
        gap = b"%b%d,%b}" % (self._head, lost, fragment("gap", {"from": seq + 1, "to": lost}))
        return [gap, *self._texts]
