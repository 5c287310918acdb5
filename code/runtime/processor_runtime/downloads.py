"""HTTP requests for artifacts, given by the controller: sent as they are, into files, on from where one was cut."""

import asyncio
import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from processor_runtime.direct import BLOCK_BYTES, PORTS, SILENCE_S, Store, in_thread, words

TRIES: Final = 5  # in a row without a byte
PAUSE_S: Final = 0.2  # before the second; each further one is twice as long
_AGAIN: Final = frozenset((408, 425, 429, *range(500, 600)))
_RANGE: Final = re.compile(r"bytes (\d+)-")


class Undelivered(Exception):
    """The store can't be reached from here, or does not give it."""


class Sink(Protocol):
    """The file that is filled."""

    size_bytes: int
    expected_bytes: int

    def empty(self) -> None: ...
    def write(self, data: bytes | memoryview) -> None: ...


class Downloads:
    """The connections of one execution to wherever its inputs lie."""

    def __init__(self) -> None:
        self._store = Store()

    async def get(self, request: Mapping[str, Any], file: Sink) -> None:
        """Fill `file`. Raises Undelivered, then it may hold a beginning; OSError when it can't be written.

        Cancelling breaks the transfer off at once.
        """
        getting = _Getting(self._store, request, file)
        try:
            await in_thread(getting.run)
        except asyncio.CancelledError:
            getting.abort()
            raise

    def close(self) -> None:
        """Keep no connection any more."""
        self._store.close()


class _Cut(Exception):
    """This try came to nothing; the next one may do better."""


class _Getting:
    """One artifact, in a thread of its own."""

    def __init__(self, store: Store, request: Mapping[str, Any], file: Sink) -> None:
        self._store, self._request, self._file = store, request, file
        self._aborted = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        failed = 0
        while True:
            before = self._file.size_bytes
            try:
                self._get()
            except _Cut as exc:
                failed = 1 if self._file.size_bytes > before else failed + 1
                if failed == TRIES or self._aborted.wait(PAUSE_S * 2 ** (failed - 1)):
                    raise Undelivered(str(exc)) from exc
            else:
                return

    def abort(self) -> None:
        """From another thread: the one that reads gets an OSError."""
        self._aborted.set()
        channel = self._connection and self._connection.sock
        if channel:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)

    def _get(self) -> None:
        url = urlsplit(str(self._request.get("url")))
        if url.scheme not in PORTS or not url.hostname:
            raise Undelivered("its url is not http or https")
        line = self._store.take(url)
        self._connection, answer = line.connection, None
        try:
            self._connect(line.connection)
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            answer = self._ask(f"{url.scheme}://{url.netloc}{target}" if line.absolute else target, line.headers)
            self._receive(answer)
        finally:
            if answer is not None and answer.isclosed() and not answer.will_close:
                self._store.keep(line)
            else:
                line.connection.close()

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is None:
            try:
                connection.connect()
            except (OSError, http.client.HTTPException, ValueError) as exc:
                # One that was there a moment ago is being started anew; another one is not for us.
                raise (_Cut if self._store.reached else Undelivered)(words(exc)) from exc
            channel: Any = connection.sock
            channel.settimeout(SILENCE_S)
        if self._aborted.is_set():
            raise Undelivered("cancelled")

    def _ask(self, target: str, extra: Mapping[str, str]) -> http.client.HTTPResponse:
        """Ask for what is missing; the answer, its body still to be read."""
        assert self._connection is not None  # noqa: S101
        headers = {str(name): str(value) for name, value in dict(self._request.get("headers") or {}).items()}
        if self._file.size_bytes:
            headers["Range"] = f"bytes={self._file.size_bytes}-"
        try:
            self._connection.request(str(self._request.get("method", "GET")), target, headers={**headers, **extra})
            answer = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise _Cut(words(exc)) from exc
        self._store.reached = True
        self._check(answer)
        return answer

    def _check(self, answer: http.client.HTTPResponse) -> None:
        """Whether what follows is what is missing."""
        if answer.status in _AGAIN:
            raise _Cut(f"the store answered {answer.status}")
        if answer.status == http.HTTPStatus.OK:
            if self._file.size_bytes:
                self._file.empty()
        elif answer.status != http.HTTPStatus.PARTIAL_CONTENT or not self._goes_on(answer):
            raise Undelivered(f"the store answered {answer.status}")
        if answer.length not in (None, self._file.expected_bytes - self._file.size_bytes):
            raise Undelivered("the store has another size of it")

    def _goes_on(self, answer: http.client.HTTPResponse) -> bool:
        found = _RANGE.match(answer.getheader("Content-Range") or "")
        return found is not None and int(found[1]) == self._file.size_bytes > 0

    def _receive(self, answer: http.client.HTTPResponse) -> None:
        while data := _read(answer):
            if self._file.size_bytes + len(data) > self._file.expected_bytes:
                raise Undelivered("the store has another size of it")
            self._file.write(data)
        if self._file.size_bytes < self._file.expected_bytes:
            raise _Cut("the connection was cut")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        raise _Cut(words(exc)) from exc
