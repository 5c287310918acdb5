"""Back to an execution whose connection was lost: at once, then again and again for a bounded time."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from apps.errors import Busy, ConnectionFailed, ExecutionLost, Unauthorized
from apps.processors.door import Door, Unreachable, opened

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

WITHIN_S: Final = 25.0
"""From a loss on. The processor waits 30 s for somebody to come back."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0


class Following(Protocol):
    """An execution that was asked for."""

    connections: int
    """How many have followed it: got as far as its events."""

    def rejoin(self, connection: "ClientConnection") -> None:
        """Go on over this connection until the execution has completed. Raises ExecutionLost."""
        ...

    def wait(self, seconds: float) -> None:
        """Raises Cancelled when there is nothing to wait for any more."""
        ...

    def lost(self) -> ExecutionLost:
        """For when another processor answers in the place of the one that had it."""
        ...


def reattach(execution: Following, door: Door, *, is_gone: Callable[[], bool]) -> None:
    """Follow `execution` to its end, over as many connections as it takes.

    `is_gone` is asked after each try that came to nothing. Raises Unreachable once that says yes, or after WITHIN_S
    without a connection, and whatever else ends the execution.
    """
    until, pause_s = time.monotonic() + WITHIN_S, FIRST_PAUSE_S
    while True:
        before = execution.connections
        try:
            with opened(door) as connection:
                execution.rejoin(connection)
            return
        except Unauthorized as exc:  # `start` gives each container a token of its own
            raise execution.lost() from exc
        except (Unreachable, ConnectionFailed, Busy) as exc:
            if execution.connections > before:
                if not isinstance(exc, Unreachable):
                    raise
                until, pause_s = time.monotonic() + WITHIN_S, FIRST_PAUSE_S
            elif _leads_elsewhere(exc) or is_gone() or time.monotonic() > until:
                raise Unreachable(str(exc)) from exc
        execution.wait(pause_s)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


def _leads_elsewhere(exc: Exception) -> bool:
    """Whether what answers knows nothing of this door, which was open before: its session on Modal is over, say."""
    return isinstance(exc, ConnectionFailed) and 400 <= exc.details.get("status", 0) < 500
