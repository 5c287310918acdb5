"""Where a processor listens, and what opens it: one WebSocket, its failures told in our words."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from processor_runtime import protocol

from apps.errors import Busy, ConnectionFailed, OperationError, Unauthorized

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

OPEN_TIMEOUT_S: Final = 10.0
BLAME: Final = frozenset((1002, 1003, 1007, 1008, 1009, 1010))
"""Close codes for what one end did wrong. Every other close is a connection that was lost."""


class Asleep(ConnectionFailed):
    """Nothing serves behind the URL yet (HTTP 503): on Modal the first request brings a container up."""


class Unreachable(Exception):
    """Nothing listens where the processor should, or it went away in the middle. The engine knows why."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a processor listens, and what opens it."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    is_remote: bool = False
    """On another machine: the caller's proxy settings count for it."""
    hint: str = "localctl status"
    """What to type when it does not open."""


@contextmanager
def opened(door: Door) -> Iterator["ClientConnection"]:
    """The open connection; what it raises inside is translated too."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    is_open = False
    try:
        with connect(
            door.url,
            subprotocols=[Subprotocol(protocol.SUBPROTOCOL)],
            additional_headers=dict(door.headers),
            compression=None,
            proxy=True if door.is_remote else None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=2,
            max_size=protocol.MAX_MESSAGE_BYTES,
        ) as connection:
            is_open = True
            with _leaving(connection):
                yield connection
    except InvalidStatus as exc:
        raise _refused(exc.response.status_code, door) from exc
    except (ConnectionClosed, InvalidHandshake, protocol.ProtocolError) as exc:
        if isinstance(exc, ConnectionClosed) and BLAME.isdisjoint(
            close.code for close in (exc.rcvd, exc.sent) if close
        ):
            raise Unreachable(str(exc)) from exc
        raise ConnectionFailed(f"the connection to the processor ended: {exc}", hint=door.hint) from exc
    except TimeoutError as exc:
        raise ConnectionFailed(f"the processor did not answer within {OPEN_TIMEOUT_S:.0f} s", hint=door.hint) from exc
    except BrokenPipeError:
        raise  # our own stdout's reader left: not the connection
    except ConnectionError as exc:
        raise Unreachable(str(exc)) from exc
    except OSError as exc:  # a name that does not resolve, TLS that fails
        if is_open:
            raise
        raise Unreachable(str(exc)) from exc


@contextmanager
def _leaving(connection: "ClientConnection") -> Iterator[None]:
    """Who leaves in the middle reads on for the handshake's sake: behind unread messages the answer is not seen."""
    try:
        yield
    except BaseException:
        threading.Thread(target=_read_on, args=(connection,), daemon=True).start()
        raise


def _read_on(connection: "ClientConnection") -> None:
    from websockets.exceptions import ConcurrencyError, ConnectionClosed

    with suppress(ConnectionClosed, ConcurrencyError):
        for _ in connection:
            pass


def _refused(status: int, door: Door) -> OperationError:
    """`details.status` has it as a number."""
    details = {"status": status}
    if status == 401:
        return Unauthorized(
            "the processor refused the run token", hint="start it again: localctl start", details=details
        )
    if status == 429:
        return Busy("the processor takes no more connections now", hint="try again", details=details)
    kind = Asleep if status == 503 else ConnectionFailed
    return kind(f"the processor answered HTTP {status} instead of opening a WebSocket", hint=door.hint, details=details)
