"""A proxy between a client and registries with TLS."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.integration.middlemen import PIECE, Line


@dataclass
class Proxy:
    """A proxy for TLS, and what it was asked for."""

    address: str
    heads: list[str] = field(default_factory=list)
    """What came before each tunnel: CONNECT and its headers."""


@contextmanager
def proxy(*, refusal: str = "") -> Iterator[Proxy]:
    """An HTTP proxy that makes tunnels (CONNECT), or answers `refusal`, e.g. `407 Proxy Authentication Required`."""
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = []

    def tunnel(near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (piece := near.recv(PIECE)):
            head += piece
        made.heads.append(head.decode())
        near.sendall(f"HTTP/1.1 {refusal or '200 OK'}\r\n\r\n".encode())
        if refusal or not head:
            near.shutdown(socket.SHUT_RDWR)
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        far = socket.create_connection((host, int(port)), timeout=10)
        far.settimeout(None)
        ends.append(far)
        carrier = Line("")
        back = threading.Thread(target=carrier.carry, args=(far, near), kwargs={"upward": False})
        back.start()
        carrier.carry(near, far, upward=True)
        back.join()

    with socket.create_server(("127.0.0.1", 0)) as server:
        made = Proxy(f"127.0.0.1:{server.getsockname()[1]}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near = server.accept()[0]
                    ends.append(near)
                    threads.append(threading.Thread(target=tunnel, args=(near,)))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield made
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in ends:
                end.close()
