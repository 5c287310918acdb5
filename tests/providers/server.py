"""`Provider`: an HTTP server with both wire formats, whose faults and pace a test chooses."""

import contextlib
import json
import select
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.providers.wire import Anthropic, OpenAI, Wire

WIRES: dict[str, Wire] = {wire.path: wire for wire in (OpenAI(), Anthropic())}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Provider:
    """A provider that answers every request with `tokens`.

    `fault` may be changed between requests: "" (none), a status such as "429", "hang" (no answer at all),
    "cut" (the connection breaks after the first token), "end" (a polite end of the stream there), "garbage"
    (an HTML page), "broken" (server-sent events that are not JSON), "uncounted" (no usage).
    `release` is set; a test that clears it holds the last token back until it sets it again.
    `gone` is set once a client hung up during a stream.
    """

    def __init__(self, *, tokens: tuple[str, ...] = ("Hel", "lo ", "there"), host: str = "127.0.0.1") -> None:
        self.tokens = tokens
        self.fault = ""
        self.received: list[Received] = []
        self.release, self.gone, self.closing = threading.Event(), threading.Event(), threading.Event()
        self.release.set()
        self._server = _Server((host, 0), _Handler)
        self._server.provider = self
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="provider")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def openai_url(self, host: str = "127.0.0.1") -> str:
        """What OPENAI_BASE_URL holds for it."""
        return f"http://{host}:{self.port}/v1"

    def anthropic_url(self, host: str = "127.0.0.1") -> str:
        """What ANTHROPIC_API_BASE holds for it."""
        return f"http://{host}:{self.port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close, so that no socket outlives the test
    provider: Provider


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        self.close_connection = True
        provider = self.server.provider
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        provider.received.append(Received(self.path, headers, body))
        wire = WIRES.get(self.path)
        if wire is None:
            self._error(OpenAI(), 404)
        elif provider.fault.isdigit():
            self._error(wire, int(provider.fault))
        elif provider.fault == "hang":
            self._hang()
        elif provider.fault == "garbage":
            self._whole(200, "text/html", b"<html><body>It works!</body></html>")
        else:
            with contextlib.suppress(ConnectionError):
                self._stream(wire, body)

    def _error(self, wire: Wire, status: int) -> None:
        # As unkind as a provider may be: the whole request's credentials are in its answer.
        secrets = [self.headers[name] for name in ("authorization", "x-api-key") if name in self.headers]
        message = f"no luck at http://user:hunter2@{self.headers['host']}{self.path} with {' '.join(secrets)}"
        self._whole(status, "application/json", json.dumps(wire.error(status, message)).encode())

    def _whole(self, status: int, mime: str, body: bytes) -> None:
        self._head(status, mime, ("content-length", str(len(body))))
        self.wfile.write(body)

    def _head(self, status: int, mime: str, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("content-type", mime), ("connection", "close"), *more):
            self.send_header(name, value)
        self.end_headers()

    def _hang(self) -> None:
        while not self.server.provider.closing.is_set() and not self._hung_up():
            pass

    def _stream(self, wire: Wire, body: dict[str, Any]) -> None:
        provider, model = self.server.provider, body["model"]
        politely = provider.fault == "end"
        self._chunked = not politely
        self._head(200, "text/event-stream", *([("transfer-encoding", "chunked")] if self._chunked else []))
        for text in wire.opening(model):
            self._send(text)
        for number, token in enumerate(provider.tokens):
            if number == len(provider.tokens) - 1 and not self._released():
                return
            self._send(wire.token(model, token))
            if provider.fault in ("cut", "end"):
                return
            if provider.fault == "broken":
                self._send("event: broken\ndata: {this is not JSON\n\n")
        asked = body.get("stream_options", {}).get("include_usage", False)
        for text in wire.closing(model, usage=asked and provider.fault != "uncounted"):
            self._send(text)
        if self._chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _released(self) -> bool:
        """Wait for the test's leave; false when the client hung up meanwhile."""
        while not self.server.provider.release.wait(0.01):
            if self._hung_up():
                return False
        return True

    def _hung_up(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0.02)
        if not readable:
            return False
        with contextlib.suppress(ConnectionError):
            if self.connection.recv(1, socket.MSG_PEEK):
                return False
        self.server.provider.gone.set()
        return True
