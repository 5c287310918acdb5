"""Where a processor listens, and what opens it: one WebSocket, its failures told in our words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from processor_runtime import protocol

from apps.errors import ConnectionFailed, OperationError, Unauthorized

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

OPEN_TIMEOUT_S: Final = 10.0


class Unreachable(Exception):
    """Nothing listens where the processor should, or it went away in the middle. The engine knows why."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a processor listens, and what opens it."""

    url: str
    headers: Mapping[str, str] = field(repr=False)


@contextmanager
def opened(door: Door) -> Iterator["ClientConnection"]:
    """The open connection; what it raises inside is translated too."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    try:
        with connect(
            door.url,
            subprotocols=[Subprotocol(protocol.SUBPROTOCOL)],
            additional_headers=dict(door.headers),
            compression=None,
            proxy=None,  # the caller's proxy is not for a processor on this machine
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=2,
            max_size=protocol.MAX_MESSAGE_BYTES,
        ) as connection:
            yield connection
    except InvalidStatus as exc:
        raise _refused(exc.response.status_code) from exc
    except (ConnectionClosed, InvalidHandshake, protocol.ProtocolError) as exc:
        if isinstance(exc, ConnectionClosed) and exc.rcvd is None:
            raise Unreachable(str(exc)) from exc  # it went without a word
        raise ConnectionFailed(f"the connection to the processor ended: {exc}", hint="localctl status") from exc
    except TimeoutError as exc:
        raise ConnectionFailed(
            f"the processor did not answer within {OPEN_TIMEOUT_S:.0f} s", hint="localctl status"
        ) from exc
    except BrokenPipeError:
        raise  # our own stdout's reader left: not the connection
    except ConnectionError as exc:
        raise Unreachable(str(exc)) from exc


def _refused(status: int) -> OperationError:
    if status == 401:
        return Unauthorized("the processor refused the run token", hint="start it again: localctl start")
    return ConnectionFailed(
        f"the processor answered HTTP {status} instead of opening a WebSocket", hint="localctl status"
    )
