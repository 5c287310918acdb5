"""Who follows an execution. Of several connections the latest answers for its outputs, and it alone may hold it up."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from processor_runtime.protocol import Fetch, Pull, Upload
from processor_runtime.uploads import Courier

MAX_FOLLOWERS: Final = 16  # of one execution; one more and the first has to go
GRACE_S: Final = 30.0  # for a client to come back, before the execution that nobody follows is cancelled


class Follower(Courier, Protocol):
    """A connection that follows an execution."""

    @property
    def is_behind(self) -> bool:
        """Whether it takes nothing more for now."""
        ...

    def flush(self) -> None: ...
    def flush_soon(self) -> None: ...
    def dismiss(self) -> None: ...


class Followers:
    """The connections of one execution, in the order they came. As a courier they are the latest of them."""

    def __init__(self, *, hold: Callable[[], None], go_on: Callable[[], None], deserted: Callable[[], None]) -> None:
        """`deserted` is called once nobody has followed for GRACE_S; the other two stop its handler's events."""
        self._hold, self._go_on, self._on_deserted = hold, go_on, deserted
        self._all: list[Follower] = []
        self._grace: asyncio.TimerHandle | None = None
        self._over = False

    @property
    def latest(self) -> Follower | None:
        return self._all[-1] if self._all else None

    def is_alone(self, follower: Follower) -> bool:
        return self._all == [follower]

    def join(self, follower: Follower) -> None:
        if len(self._all) == MAX_FOLLOWERS:
            self._all.pop(0).dismiss()
        self._all.append(follower)
        self._stop_waiting()
        self.pace()

    def leave(self, follower: Follower) -> bool:
        """Returns whether another one, or nobody, is the latest now."""
        if follower not in self._all:
            return False
        was_latest = self.latest is follower
        self._all.remove(follower)
        if not self._all and not self._over:
            self._grace = asyncio.get_running_loop().call_later(GRACE_S, self._on_deserted)
        self.pace()
        return was_latest

    def pace(self) -> None:
        """Let the handler wait while the latest is behind. An earlier one gets a gap, and nobody means no hurry."""
        if self._all and self._all[-1].is_behind:
            self._hold()
        else:
            self._go_on()

    def flush(self) -> None:
        for follower in self._all:
            follower.flush()

    def flush_soon(self) -> None:
        for follower in self._all:
            follower.flush_soon()

    def end(self) -> None:
        """The execution has ended: there is nobody to wait for any more."""
        self._over = True
        self._stop_waiting()
        self._hold = self._go_on = self._on_deserted = _nothing

    # Courier

    def ask(self, message: Upload | Fetch | Pull) -> None:
        self._all[-1].ask(message)

    def say(self, text: str) -> None:
        self._all[-1].say(text)

    async def send_chunk(self, data: bytes) -> None:
        await self._all[-1].send_chunk(data)

    def _stop_waiting(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None


def _nothing() -> None:
    pass
