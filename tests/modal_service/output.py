"""From the bytes that a container writes, in a thread, to lines in the event loop."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from modal_proto import api_pb2 as pb

from tests.modal_service.logs import STDERR, STDOUT


class Output:
    """`said` and `ended` are the thread's to call; `line` and `end` are called in the loop."""

    def __init__(self, line: Callable[[str, pb.FileDescriptor.ValueType], None], end: Callable[[int], None]) -> None:
        self._line, self._end = line, end
        self._loop = asyncio.get_running_loop()
        self._rest = {STDOUT: b"", STDERR: b""}

    def said(self, out: bytes, err: bytes) -> None:
        for source, data in ((STDOUT, out), (STDERR, err)):
            if data:
                self._soon(self._split, source, data)

    def ended(self, status: int) -> None:
        self._soon(self._finish, status)

    def _split(self, source: pb.FileDescriptor.ValueType, data: bytes) -> None:
        *lines, self._rest[source] = (self._rest[source] + data).split(b"\n")
        for line in lines:
            self._line(line.decode("utf-8", "replace") + "\n", source)

    def _finish(self, status: int) -> None:
        for source, rest in self._rest.items():
            if rest:  # the last words had no line feed
                self._line(rest.decode("utf-8", "replace") + "\n", source)
        self._end(status)

    def _soon(self, work: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the peer has ended
            self._loop.call_soon_threadsafe(work, *arguments)
