"""Direct uploads: one HTTP request, given by the controller, sent as it is from a file."""

import asyncio
import contextlib
import http.client
import os
import socket
from typing import Any, Final
from urllib.parse import urlsplit

CONNECT_S: Final = 30.0  # without an answer or progress
BLOCK_BYTES: Final = 256 * 1024


class PutFailed(Exception):
    """The store did not take it; `status` is its HTTP status, None when there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


async def put(request: dict[str, Any], descriptor: int, size_bytes: int) -> None:
    """Send the file behind `descriptor` (closed in the end) with the method, url and headers of `request`.

    Raises PutFailed. Cancelling breaks the transfer off at once.
    """
    sending = _Sending(request, descriptor, size_bytes)
    try:
        await asyncio.get_running_loop().run_in_executor(None, sending.run)
    except asyncio.CancelledError:
        sending.abort()
        raise


class _Sending:
    """One request, run in a thread."""

    def __init__(self, request: dict[str, Any], descriptor: int, size_bytes: int) -> None:
        self._request, self._descriptor, self._size_bytes = request, descriptor, size_bytes
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def run(self) -> None:
        with open(self._descriptor, "rb", buffering=0) as file:
            try:
                self._send(file)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                raise PutFailed(f"{type(exc).__name__}: {exc}") from exc
            finally:
                if self._connection is not None:
                    self._connection.close()

    def abort(self) -> None:
        """From another thread: the one that sends gets an OSError."""
        self._aborted = True
        channel = self._connection and self._connection.sock
        if channel:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)

    def _send(self, file: Any) -> None:
        url = urlsplit(str(self._request["url"]))
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if url.scheme not in kinds or not url.hostname:
            raise ValueError("the grant's url is not http or https")
        self._connection = kinds[url.scheme](url.hostname, url.port, timeout=CONNECT_S, blocksize=BLOCK_BYTES)
        self._connection.connect()
        if self._aborted:
            raise ConnectionAbortedError("cancelled")
        headers = {str(name): str(value) for name, value in dict(self._request.get("headers") or {}).items()}
        if not any(name.lower() == "content-length" for name in headers):
            headers["Content-Length"] = str(self._size_bytes)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        target = url.path + (f"?{url.query}" if url.query else "")
        self._connection.request(str(self._request.get("method", "PUT")), target or "/", body=file, headers=headers)
        answer = self._connection.getresponse()
        answer.read(BLOCK_BYTES)
        if not 200 <= answer.status < 300:
            raise PutFailed(f"the store answered {answer.status} {answer.reason}", answer.status)
