"""What stands between a client and its registry: a line that breaks or stalls, and one that lies."""

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 16384


@dataclass
class Line:
    """A TCP line to a server, and what went over it. Works for TLS too. Set a fault while it runs."""

    address: str
    upward_bytes: int = 0
    """From the client to the server, so far."""
    downward_bytes: int = 0
    rate_bytes_s: float | None = None
    """Slows each direction down, evenly."""
    only_answers: bool = False
    """Whether `rate_bytes_s` is for the way from the server alone."""
    cut_every_bytes: int | None = None
    """Resets each connection after so many bytes from its client."""
    _fault: str = ""
    _upward: bool = True
    _allowance: int = 0
    _connections: int = 0
    _marks: list[tuple[bytes, bool]] = field(default_factory=list)
    _passed: bytes = b""
    _sockets: list[socket.socket] = field(default_factory=list)

    def fault(self, kind: str, *, after_bytes: int = 0, upward: bool = True, connections: int = 1_000_000) -> None:
        """From now on let `after_bytes` through in that direction; then `cut` (reset) or `stall` (silence).

        Further connections fare alike, at once, until so many `connections` have; then the line is whole again.
        """
        self._fault, self._upward, self._allowance, self._connections = kind, upward, after_bytes, connections

    def cut_before(self, *marks: bytes, upward: bool = False) -> None:
        """Cut the connection before the first of these comes by, the next one before the second, and so on.

        More calls add to them.
        """
        self._marks += [(mark, upward) for mark in marks]

    @property
    def cuts_to_come(self) -> list[bytes]:
        return [mark for mark, _ in self._marks]

    def repair(self) -> None:
        self._fault = ""

    def carry(self, source: socket.socket, target: socket.socket, *, upward: bool) -> None:
        passed = 0
        with suppress(OSError):
            while piece := source.recv(PIECE):
                passing = self._passing(piece, upward=upward)
                self._send(target, passing, upward=upward)
                passed += len(passing)
                if upward and self.cut_every_bytes and passed >= self.cut_every_bytes:
                    self._strike(source, target, "cut")
                    return
                if len(passing) < len(piece):
                    self._connections -= 1
                    self._strike(source, target, self._fault)
                    return
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _passing(self, piece: bytes, *, upward: bool) -> bytes:
        if self._marks and self._marks[0][1] == upward:
            return self._unmarked(piece)
        if not self._fault or upward != self._upward:
            return piece
        passing = piece[: self._allowance]
        self._allowance -= len(passing)
        return passing

    def _unmarked(self, piece: bytes) -> bytes:
        """What comes before the mark; a part of the mark may have passed in the piece before."""
        mark, seen = self._marks[0][0], self._passed + piece
        at = seen.find(mark)
        if at < 0:
            self._passed = seen[len(seen) - len(mark) + 1 :]
            return piece
        before = max(0, at - len(self._passed))
        self._passed = b""
        self._marks.pop(0)
        self._fault, self._connections = "cut", 1
        return piece[:before]

    def _strike(self, source: socket.socket, target: socket.socket, kind: str) -> None:
        if self._connections <= 0:
            self.repair()
        if kind == "stall":
            return  # both ends stay open: nobody hears anything any more
        for end in (source, target):
            with suppress(OSError):  # a reset, not an orderly end
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _send(self, target: socket.socket, data: bytes, *, upward: bool) -> None:
        while data:
            rate_bytes_s = None if upward and self.only_answers else self.rate_bytes_s
            size = max(1, int(rate_bytes_s / 20)) if rate_bytes_s else PIECE
            target.sendall(data[:size])
            self._count(len(data[:size]), upward=upward)
            if rate_bytes_s:
                time.sleep(len(data[:size]) / rate_bytes_s)
            data = data[size:]

    def _count(self, size: int, *, upward: bool) -> None:
        if upward:
            self.upward_bytes += size
        else:
            self.downward_bytes += size


@contextmanager
def line(to: str, *, host: str = "127.0.0.1") -> Iterator[Line]:
    """A line to the server at `to` (host:port)."""
    upstream, _, port = to.rpartition(":")
    threads: list[threading.Thread] = []
    with socket.create_server((host, 0)) as server:
        made = Line(f"{host}:{server.getsockname()[1]}")

        def accept() -> None:
            while True:
                try:
                    near = server.accept()[0]
                except OSError:
                    return
                try:
                    far = socket.create_connection((upstream, int(port)), timeout=10)
                except OSError:  # the server is down, and so is the line
                    near.close()
                    continue
                far.settimeout(None)
                made._sockets.extend((near, far))
                for source, target, upward in ((near, far, True), (far, near, False)):
                    carry = threading.Thread(target=made.carry, args=(source, target), kwargs={"upward": upward})
                    carry.start()
                    threads.append(carry)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield made
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for end in made._sockets:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in made._sockets:
                end.close()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it goes out."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""

    def but(self, **changes: Any) -> "Answer":
        """This answer with `status`, `body`, or `headers` (added; None removes) changed."""
        headers = {**self.headers, **changes.pop("headers", {})}
        return replace(self, headers={k: v for k, v in headers.items() if v is not None}, **changes)


def json_answer(status: int, document: object, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"content-type": "application/json", **names}, json.dumps(document).encode())


@dataclass
class Middleman:
    """An HTTP server that asks a registry and may change the answer. Bodies are held in memory."""

    address: str
    asked: list[tuple[Asked, int]] = field(default_factory=list)
    """Each request, with the status that it was answered with."""

    def repository(self, name: str = "org/image") -> str:
        return f"{self.address}/{name}"

    def methods(self) -> list[str]:
        """`METHOD path` of each request."""
        return [f"{asked.method} {asked.path}" for asked, _ in self.asked]

    def uploaded_bytes(self) -> int:
        """Sizes of all bodies of PATCH and PUT to blobs."""
        return sum(len(asked.body) for asked, _ in self.asked if "/blobs/uploads/" in asked.path)


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    default_request_version = "HTTP/1.0"  # engines try TLS first, and know a plain server by its answer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def handle(self) -> None:
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":  # TLS, of which we would await the end of a line
            self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")  # tells an engine to ask without
            return
        super().handle()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self._body())
        given = self.server.respond(asked)
        self.server.made.asked.append((asked, given.status))
        self.send_response(given.status)
        for name, value in given.headers.items():
            self.send_header(name, value)
        if "content-length" not in given.headers:
            self.send_header("content-length", str(len(given.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(given.body)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, host: str, respond: Callable[[Asked], Answer]) -> None:
        super().__init__((host, 0), _Handler)
        self.respond, self.connections = respond, list[socket.socket]()
        self.made = Middleman(f"{host}:{self.server_port}")

    def handle_error(self, *_: object) -> None:  # the client left
        return


@contextmanager
def middleman(
    to: str,
    *,
    answer: Callable[[Asked], Answer | None] = lambda asked: None,
    alter: Callable[[Asked, Answer], Answer] = lambda asked, answer: answer,
    host: str = "127.0.0.1",
) -> Iterator[Middleman]:
    """A middleman to the plain registry at `to`: what `answer` gives goes out at once, else the registry's, altered."""

    with _Server(host, lambda asked: answer(asked) or alter(asked, _ask(to, asked))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.made
        finally:
            server.shutdown()
            thread.join()
            for connection in server.connections:
                with suppress(OSError):  # else a connection kept alive would be waited for
                    connection.shutdown(socket.SHUT_RDWR)


_OF_ONE_HOP = {"transfer-encoding", "connection", "content-length", "expect"}


def _ask(to: str, asked: Asked) -> Answer:
    connection = http.client.HTTPConnection(to, timeout=30)
    try:
        headers = {name: value for name, value in asked.headers.items() if name not in _OF_ONE_HOP}
        connection.request(asked.method, asked.path, asked.body or None, headers)
        response = connection.getresponse()
        body = response.read()
        kept = {name.lower(): value for name, value in response.getheaders() if name.lower() not in _OF_ONE_HOP}
        if asked.method == "HEAD" and (length := response.getheader("Content-Length")):
            kept["content-length"] = length
        return Answer(response.status, kept, body)
    finally:
        connection.close()
