"""A store of a few lines that keeps what it is sent, under keys that nobody may write twice, and fails on request."""

import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

PIECE = 64 * 1024


@dataclass
class FakeStore:
    """What was sent, and what is to go wrong.

    A fault is used up by one request: a status to answer (`early` before the body is read), `cut` in the middle of
    the body, or `lost`: stored, and the connection ends without an answer.
    """

    port: int
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Paths and headers."""
    faults: list[str | int] = field(default_factory=list)
    always: str | int | None = None
    """The fault of every request that has none of its own."""
    connections: int = 0
    early: bool = False
    error_code: str = ""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def request(self, path: str, **headers: str) -> dict[str, Any]:
        return {"method": "PUT", "url": self.url(path), "headers": headers}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        super().setup()
        self.server.store.connections += 1
        self.server.open.append(self.connection)

    def do_PUT(self) -> None:
        store = self.server.store
        store.requests.append((self.path, dict(self.headers)))
        fault = store.faults.pop(0) if store.faults else store.always
        if isinstance(fault, int) and store.early:
            self.close_connection = True
            return self._answer(fault)
        size = int(self.headers["Content-Length"])
        body = self._read(size // 2 if fault == "cut" else size)
        if fault == "cut":
            return self._reset()
        if isinstance(fault, int):
            return self._answer(fault)
        if "If-None-Match" in self.headers and self.path in store.objects:
            return self._answer(412)
        store.objects[self.path] = body
        return self._reset() if fault == "lost" else self._answer(200)

    def _read(self, size: int) -> bytes:
        body = bytearray()
        while len(body) < size and (piece := self.rfile.read(min(PIECE, size - len(body)))):
            body += piece
        return bytes(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _answer(self, status: int) -> None:
        body = f"<Error><Code>{self.server.store.error_code}</Code></Error>".encode() if status >= 400 else b""
        self.send_response(status, HTTPStatus(status).phrase)
        self.send_header("ETag", f'"{len(self.server.store.requests)}"')
        self.send_header("x-amz-request-id", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = FakeStore(self.server_port)
        self.open: list[socket.socket] = []

    def handle_error(self, *_: object) -> None:  # the client left
        return


@contextmanager
def fake_store() -> Iterator[FakeStore]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.store
        finally:
            server.shutdown()
            thread.join()
            for connection in server.open:
                with suppress(OSError):  # else one that is kept alive would be waited for
                    connection.shutdown(socket.SHUT_RDWR)
