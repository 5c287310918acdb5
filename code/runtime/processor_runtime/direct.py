"""HTTP requests given by the controller, sent as they are from a file, over connections that are kept.

Proxies and certificates are those of the environment: HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE.
"""

import asyncio
import base64
import contextlib
import http.client
import os
import re
import select
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

CONNECT_S: Final = 10.0
SILENCE_S: Final = 60.0  # without progress, or without the answer once all was sent
BLOCK_BYTES: Final = 256 * 1024
ANSWER_BYTES: Final = 64 * 1024
PORTS: Final = {"http": 80, "https": 443}
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class Unreachable(Exception):
    """There is no way to the store from here: it never heard of the request."""


class NoAnswer(Exception):
    """The connection was cut or fell silent; what the store has of the request is unknown."""


class Answer(NamedTuple):
    """What the store said."""

    status: int
    etag: str
    code: str
    """The code of an S3 error; empty where it names none."""


class Piece(NamedTuple):
    """A range of an open file."""

    descriptor: int
    offset: int
    size_bytes: int


class Store:
    """The connections of one execution to wherever its grants lead."""

    def __init__(self) -> None:
        self.reached = False
        """Whether it has ever answered."""
        self._lock = threading.Lock()
        self._idle: list[_Line] = []
        self._context: Any = None
        self._closed = False

    async def send(self, request: Mapping[str, Any], piece: Piece) -> Answer:
        """Send `piece` with the method, url and headers of `request`, once.

        Raises Unreachable, NoAnswer, and ValueError for a request that can't be sent. Cancelling breaks the
        transfer off at once.
        """
        sending = _Sending(self, request, piece._replace(descriptor=os.dup(piece.descriptor)))
        try:
            answer: Answer = await in_thread(sending.run)
            return answer
        except asyncio.CancelledError:
            sending.abort()
            raise

    def close(self) -> None:
        """Keep no connection any more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            line.connection.close()

    def take(self, url: SplitResult) -> "_Line":
        """A connection that was used before, or a new one that is still to be made."""
        key = (url.scheme, url.hostname or "", url.port or PORTS[url.scheme])
        with self._lock:
            for at, line in enumerate(self._idle):
                if line.key == key:
                    return self._idle.pop(at)
        return _line(key, self._tls)

    def keep(self, line: "_Line") -> None:
        """Take back a connection whose request is done."""
        line.used = True
        with self._lock:
            if not self._closed:
                self._idle.append(line)
                return
        line.connection.close()

    def _tls(self) -> Any:
        """Certificates are read once for an execution; they may change between two."""
        import ssl  # not for a store that is reached in the clear

        if self._context is None:
            self._context = ssl.create_default_context()
        return self._context


@dataclass(slots=True)
class _Line:
    """One connection, and how to ask over it."""

    key: tuple[str, str, int]
    connection: http.client.HTTPConnection
    headers: dict[str, str]
    """For a proxy."""
    absolute: bool = False
    """Whether a proxy is asked, which needs the whole URL."""
    used: bool = False


def _line(key: tuple[str, str, int], tls: Callable[[], Any]) -> _Line:
    scheme, host, port = key
    proxy = _proxy(scheme, f"{host}:{port}")
    where, headers = (host, port), {}
    if proxy is not None:
        where = (proxy.hostname or "", proxy.port or PORTS["http"])
        if proxy.username:
            words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(words).decode()
    if scheme == "http":
        plain = http.client.HTTPConnection(*where, timeout=CONNECT_S, blocksize=BLOCK_BYTES)
        return _Line(key, plain, headers, absolute=proxy is not None)
    secure = http.client.HTTPSConnection(*where, timeout=CONNECT_S, blocksize=BLOCK_BYTES, context=tls())
    if proxy is not None:
        secure.set_tunnel(host, port, headers)
    return _Line(key, secure, {})


def _proxy(scheme: str, place: str) -> SplitResult | None:
    """The proxy that the environment names for this place."""
    from urllib.request import getproxies, proxy_bypass  # costs more than all else in here

    found = getproxies().get(scheme)
    if not found or proxy_bypass(place):
        return None
    proxy = urlsplit(found if "//" in found else f"//{found}")
    return proxy if proxy.hostname else None


class _Sending:
    """One request, in a thread of its own."""

    def __init__(self, store: Store, request: Mapping[str, Any], piece: Piece) -> None:
        self._store, self._request, self._piece = store, request, piece
        self._line: _Line | None = None
        self._aborted = False

    def run(self) -> Answer:
        try:
            while True:
                try:
                    return self._send()
                except NoAnswer:
                    # The store may close a kept connection at any moment: that is no failure of the store.
                    if self._aborted or self._line is None or not self._line.used:
                        raise
        finally:
            os.close(self._piece.descriptor)

    def abort(self) -> None:
        """From another thread: the one that sends gets an OSError."""
        self._aborted = True
        channel = self._line and self._line.connection.sock
        if channel:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)

    def _send(self) -> Answer:
        url = urlsplit(str(self._request["url"]))
        if url.scheme not in PORTS or not url.hostname:
            raise ValueError("its url is not http or https")
        self._line = line = self._store.take(url)
        whole = False
        try:
            self._connect(line)
            self._ask(line, url)
            answer, whole = self._converse(line)
        except (OSError, http.client.HTTPException) as exc:
            raise NoAnswer(words(exc)) from exc
        finally:
            if not whole:
                line.connection.close()
        self._store.reached = True
        if whole:
            self._store.keep(line)
        return answer

    def _connect(self, line: _Line) -> None:
        if line.connection.sock is None:
            try:
                line.connection.connect()
            except (OSError, http.client.HTTPException, ValueError) as exc:
                raise Unreachable(words(exc)) from exc
            channel: Any = line.connection.sock
            channel.settimeout(SILENCE_S)
        if self._aborted:
            raise ConnectionAbortedError("cancelled")

    def _ask(self, line: _Line, url: SplitResult) -> None:
        headers = {str(name): str(value) for name, value in dict(self._request.get("headers") or {}).items()}
        given = {name.lower() for name in headers}
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection = line.connection
        connection.putrequest(
            str(self._request.get("method", "PUT")),
            f"{url.scheme}://{url.netloc}{target}" if line.absolute else target,
            skip_host="host" in given,
            skip_accept_encoding=True,
        )
        if "content-length" not in given:
            headers["Content-Length"] = str(self._piece.size_bytes)
        for name, value in {**headers, **line.headers}.items():
            connection.putheader(name, value)
        connection.endheaders()

    def _converse(self, line: _Line) -> tuple[Answer, bool]:
        """The answer, and whether the connection may be used again."""
        connection, cut = line.connection, None
        try:
            sent = self._body(line)
        except OSError as exc:
            sent, cut = False, exc  # a store that refuses says why before it closes, and may not read to the end
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise cut or exc from None
        body = response.read(ANSWER_BYTES)
        whole = sent and response.isclosed() and not response.will_close
        if line.absolute and response.status >= 400 and response.getheader("x-amz-request-id") is None:
            raise Unreachable(f"the proxy answered {response.status}")
        code = _CODE.search(body)
        answer = Answer(response.status, response.getheader("ETag") or "", code[1].decode() if code else "")
        return answer, whole

    def _body(self, line: _Line) -> bool:
        """Send the piece; False when the store answered before its end."""
        connection, early = line.connection, None
        if line.key[0] == "http":
            early = select.poll()  # in TLS there may be something to read that is no answer
            early.register(connection.sock, select.POLLIN)
        offset, end = self._piece.offset, self._piece.offset + self._piece.size_bytes
        while offset < end:
            if early is not None and early.poll(0):
                return False
            block = os.pread(self._piece.descriptor, min(BLOCK_BYTES, end - offset), offset)
            if not block:
                raise ValueError("the file became shorter")
            connection.send(block)
            offset += len(block)
        return True


def words(exc: BaseException) -> str:
    """What happened, without the URL: whoever has it may use it."""
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    return type(exc).__name__


async def in_thread(work: Callable[[], Any]) -> Any:
    """`work` in a thread that nobody waits for: a name that resolves slowly must not delay the runtime's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as exc:  # told to whoever awaits
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="store", daemon=True).start()
    return await done
