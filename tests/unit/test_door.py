"""What is left of a connection when its user leaves."""

from contextlib import suppress
from threading import Event, Thread

from processor_runtime.protocol import SUBPROTOCOL
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from apps.processors.door import Door, opened


def test_who_leaves_in_the_middle_of_many_messages_sees_the_other_end_take_leave() -> None:
    flooded = Event()

    def flood(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            for _ in range(1000):
                connection.send("token")
            flooded.set()
            connection.recv()

    with serve(flood, "127.0.0.1", 0, subprotocols=[Subprotocol(SUBPROTOCOL)]) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/run"

        with suppress(KeyboardInterrupt), opened(Door(url, {})) as connection:
            assert flooded.wait(10)
            raise KeyboardInterrupt
        server.shutdown()
        thread.join()

    assert connection.close_code == CloseCode.INTERNAL_ERROR  # by both, else it is ABNORMAL_CLOSURE, two seconds later
