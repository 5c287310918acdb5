"""What real workers and load() print, on its way to the container's log: whole lines, secret values blanked.

Mock workers have no secrets and print to the log directly.
"""

import asyncio
import json
import os
from typing import Final

from processor_runtime.environment import MIN_REDACTED_CHARACTERS

READ_BYTES: Final = 64 * 1024
MAX_HELD_BYTES: Final = 64 * 1024
"""Of a line without end; a longer one goes out in pieces."""


class Prints:
    """One stream of them: read from `pipe`'s other end, written to the descriptor `target`."""

    def __init__(self, target: int, secrets: tuple[str, ...]) -> None:
        self.source, self.pipe = os.pipe()
        os.set_blocking(self.source, False)
        self._target = target
        self._values = spellings(secrets)
        self._held = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.source, self.read)

    def read(self) -> bool:
        """Pass on what is there; False when there is nothing now. Ends by itself with the last writer."""
        if self.source < 0:
            return False
        try:
            data = os.read(self.source, READ_BYTES)
        except BlockingIOError:
            return False
        self._held += data
        if data:
            self._pass_on(self._held.rfind(b"\n") + 1)
        else:
            self._pass_on(len(self._held))
            self._loop.remove_reader(self.source)
            os.close(self.source)
            self.source = -1
        return bool(data)

    def close(self) -> None:
        """Pass on the rest, when all that printed has ended or is about to."""
        while self.read():
            pass
        if self.source >= 0:
            self._pass_on(len(self._held))
            self._loop.remove_reader(self.source)
            os.close(self.source)
            self.source = -1

    def _pass_on(self, complete: int) -> None:
        if not complete and len(self._held) > MAX_HELD_BYTES:
            self._held = self._blank(self._held)
            # What could be the beginning of a value waits for its end.
            complete = len(self._held) - max(map(len, self._values), default=1) + 1
        ready, self._held = self._blank(self._held[:complete]), self._held[complete:]
        while ready:
            ready = ready[os.write(self._target, ready) :]

    def _blank(self, text: bytes) -> bytes:
        for value in self._values:
            text = text.replace(value, b"***")
        return text


def spellings(secrets: tuple[str, ...]) -> tuple[bytes, ...]:
    """How values show up in printed lines: plain, inside JSON, and one of several lines line by line."""
    found: set[str] = set()
    for value in secrets:
        found.update((value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]))
        found.update(value.splitlines())
    long_enough = (each.strip().encode() for each in found if len(each.strip()) >= MIN_REDACTED_CHARACTERS)
    return tuple(sorted(long_enough, key=len, reverse=True))
