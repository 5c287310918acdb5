"""What stands between a command and a processor's WebSocket: it keeps what passes, and may change it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from processor_runtime.protocol import SUBPROTOCOL
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

Message = dict[str, Any]


@dataclass
class Tap:
    """A line between the two, in whose middle one listens."""

    port: int
    heard: list[Message] = field(default_factory=list)
    """Text messages both ways, as they came."""
    alter: Callable[[Message], Message | None] = lambda message: message
    """What goes on in the place of a grant. None: nothing; the controller hears that the upload is done."""

    def grants(self) -> list[Message]:
        return [message for message in self.heard if message["type"] == "grant"]


@contextmanager
def tap(to: int) -> Iterator[Tap]:
    """A tap in front of the processor on port `to` of this machine."""

    def carry(near: ServerConnection) -> None:
        token = {"Authorization": near.request.headers["Authorization"]} if near.request else {}
        with connect(
            f"ws://127.0.0.1:{to}/run",
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=token,
            compression=None,
            proxy=None,
        ) as far:

            def back() -> None:
                with suppress(ConnectionClosed):
                    for received in far:
                        note(received)
                        near.send(received)
                near.close()

            thread = threading.Thread(target=back)
            thread.start()
            with suppress(ConnectionClosed):
                for received in near:
                    message = note(received)
                    if message and message["type"] == "grant":
                        if (altered := made.alter(message)) is None:
                            near.send(json.dumps({"type": "uploaded", "upload": message["upload"]}))
                            continue
                        received = json.dumps(altered)
                    far.send(received)
            far.close()
            thread.join()

    def note(received: str | bytes) -> Message | None:
        if isinstance(received, bytes):
            return None
        message: Message = json.loads(received)
        made.heard.append(message)
        return message

    with serve(carry, "127.0.0.1", 0, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None) as server:
        made = Tap(server.socket.getsockname()[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
