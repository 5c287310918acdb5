"""The artifacts that an execution's inputs name, on their way to its disk: before it begins, verified, read-only."""

import asyncio
import errno
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from processor_runtime import codes
from processor_runtime.artifacts import FOLDER
from processor_runtime.downloads import Downloads, Undelivered
from processor_runtime.failures import Failure, from_words, limit
from processor_runtime.protocol import WINDOW_BYTES, Fetch, ProtocolError, Pull, Source, Unavailable

log = logging.getLogger("processor_runtime")

PARALLEL: Final = 4  # fetches of one execution under way at once: hides round trips, bounds descriptors
PULL_BYTES: Final = 1024 * 1024  # asked for at once; a controller sees to nothing else meanwhile
LONG_AGO: Final = 315_532_800  # 1980: a file's time follows from nothing that changes between two runs


class FetchFailed(Exception):
    """An artifact can't be had; `failure` ends the execution."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Courier(Protocol):
    """The connection that answers."""

    def ask(self, message: Fetch | Pull) -> None: ...


class _UnderWay:
    """One fetch that was asked for."""

    def __init__(self) -> None:
        self.source: asyncio.Future[Source] = asyncio.get_running_loop().create_future()
        self.chunks: asyncio.Queue[bytes | FetchFailed] = asyncio.Queue()


class Fetches:
    """Brings the files of one execution, PARALLEL at a time."""

    def __init__(
        self,
        execution_id: str,
        paths: tuple[str, ...],
        folder: Path,
        courier: Courier,
        *,
        reserve: Callable[[int], bool],
        done: Callable[[], None],
        failed: Callable[[Failure], None],
    ) -> None:
        """`reserve` is asked for room on disk, and ends the execution itself when there is none."""
        self._execution_id, self._folder, self._courier = execution_id, folder, courier
        self._reserve, self._on_done, self._on_failed = reserve, done, failed
        self.files = {path: f"{FOLDER}/{number}/{PurePosixPath(path).name}" for number, path in enumerate(paths, 1)}
        """Where the handler finds each, relative to its working folder."""
        self._waiting = deque(paths)
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._under_way: dict[int, _UnderWay] = {}
        self._reserved: set[str] = set()
        self._arriving: dict[str, Arriving] = {}
        self._downloads = Downloads()
        self._begun = False
        self._ready = True  # somebody is there to be asked
        self._last = 0

    @property
    def complete(self) -> bool:
        """Whether every file is there."""
        return not self._waiting and not self._tasks

    def start(self) -> None:
        self._begun = True
        self._next()

    def restart(self, *, ready: bool) -> None:
        """Ask another courier for what is under way, now or, unless `ready`, later. What was pulled is kept."""
        self._ready = ready
        for task in self._tasks:
            task.cancel()
        self._waiting.extendleft(reversed(self._tasks.values()))
        self._tasks.clear()
        self._under_way.clear()  # what is said of them from here on is late
        self._next()

    def abort(self) -> None:
        """Bring no more, and forget who is told."""
        self._waiting.clear()
        self._on_done, self._on_failed = _nobody, _nobody
        self._downloads.close()
        for task in self._tasks:
            task.cancel()
        self._under_way.clear()
        for file in self._arriving.values():
            file.close()

    def receive(self, message: Source | Unavailable) -> None:
        """What the controller says of one fetch. Raises ProtocolError."""
        under_way = self._under_way.get(message.fetch)
        if under_way is None:  # aborted meanwhile
            return
        if isinstance(message, Unavailable):
            refusal = FetchFailed(from_words(message.error))
            under_way.chunks.put_nowait(refusal)
            if not under_way.source.done():
                under_way.source.set_exception(refusal)
        elif under_way.source.done():
            raise ProtocolError(f"fetch {message.fetch} was answered twice")
        else:
            under_way.source.set_result(message)

    def chunk(self, number: int, data: memoryview) -> None:
        """The next bytes of one fetch."""
        if (under_way := self._under_way.get(number)) is not None:
            under_way.chunks.put_nowait(bytes(data))

    # inside

    def _next(self) -> None:
        while self._begun and self._ready and self._waiting and len(self._tasks) < PARALLEL:
            path = self._waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._bring(path))
            self._tasks[task] = path
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._tasks.pop(task, None) is None or task.cancelled():
            return
        if isinstance(failed := task.exception(), FetchFailed):
            self._on_failed(failed.failure)
        elif failed is not None:
            log.error("a fetch broke", exc_info=failed)
            self._on_failed(Failure(codes.INTERNAL, f"a fetch broke: {type(failed).__name__}: {failed}", "report this"))
        elif self.complete:
            self._downloads.close()
            self._on_done()
        else:
            self._next()

    async def _bring(self, path: str) -> None:
        self._last = number = self._last + 1
        under_way = self._under_way[number] = _UnderWay()
        try:
            self._courier.ask(Fetch(self._execution_id, number, path))
            source = await under_way.source
            if path not in self._reserved:
                self._reserved.add(path)
                if not self._reserve(source.size_bytes):
                    raise asyncio.CancelledError
            await self._fill(path, number, source, under_way)
        except OSError as exc:
            raise _unwritten(path, exc) from exc
        finally:
            self._under_way.pop(number, None)

    async def _fill(self, path: str, number: int, source: Source, under_way: _UnderWay) -> None:
        file = await self._begun_file(path, source)
        if source.request is None or not await self._download(source.request, file):
            await self._pull(file, number, under_way)
        _compare(path, file)
        file.finish()
        del self._arriving[path]

    async def _begun_file(self, path: str, source: Source) -> "Arriving":
        """The file, with what an earlier courier brought of the very same one."""
        file = self._arriving.get(path)
        if file is not None and source.request is None and file.promised == source._replace(fetch=0):
            if file.writing is not None:
                await asyncio.wait((file.writing,))
            return file
        if file is not None:
            file.close()
        self._arriving[path] = file = Arriving(self._folder / self.files[path], source)
        return file

    async def _download(self, request: dict[str, Any], file: "Arriving") -> bool:
        """Whether it came; where not, the file may hold a beginning of it."""
        try:
            await self._downloads.get(request, file)
        except Undelivered as exc:
            log.warning("an input of %s comes over the connection: %s", self._execution_id, exc)
            return False
        return True

    async def _pull(self, file: "Arriving", number: int, under_way: _UnderWay) -> None:
        loop = asyncio.get_running_loop()
        asked = file.size_bytes
        while file.size_bytes < file.expected_bytes:
            while asked < file.expected_bytes and asked - file.size_bytes < WINDOW_BYTES:
                more = min(PULL_BYTES, file.expected_bytes - asked)
                self._courier.ask(Pull(number, asked, more))
                asked += more
            data = await under_way.chunks.get()
            if isinstance(data, FetchFailed):
                raise data
            # A disk may be slow: nobody else shall wait for it. What was begun ends, whatever becomes of this task.
            file.writing = loop.run_in_executor(None, file.write, data)
            file.writing.add_done_callback(_looked_at)
            await asyncio.shield(file.writing)


class Arriving:
    """A file on its way in, counted and hashed as it comes. Its methods may be called from any thread."""

    writing: asyncio.Future[None] | None = None
    """What goes on in a thread, or has ended."""

    def __init__(self, place: Path, source: Source) -> None:
        """Makes it, over what is left of an earlier try. Raises OSError."""
        self.promised = source._replace(fetch=0)
        self.expected_bytes = source.size_bytes
        self._lock = threading.Lock()
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        self._descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._open = True
        self.empty()

    def empty(self) -> None:
        """Forget what came: it comes again from the beginning."""
        with self._lock:
            self.size_bytes = 0
            self._sha256 = hashlib.sha256()
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises OSError, also once it is closed."""
        with self._lock:
            if not self._open:
                raise OSError(errno.EBADF, "the fetch was given up")
            rest = memoryview(data)
            self._sha256.update(rest)
            self.size_bytes += len(rest)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def finish(self) -> None:
        """Let nobody write it any more."""
        os.fchmod(self._descriptor, 0o444)
        os.utime(self._descriptor, (LONG_AGO, LONG_AGO))
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._descriptor)


def _compare(path: str, file: Arriving) -> None:
    if file.digest != file.promised.digest:
        raise FetchFailed(
            Failure(
                codes.STORAGE,
                f"{path} is not what the store says that it is: its SHA-256 differs",
                "upload it again, under another name",
                {"path": path, "expected": file.promised.digest, "found": file.digest},
            )
        )


def _unwritten(path: str, exc: OSError) -> FetchFailed:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchFailed(limit("disk", f"the disk is full: {path} does not fit", path=path))
    return FetchFailed(Failure(codes.RUNTIME, f"{path} can't be written: {exc.strerror or exc}", "", {"path": path}))


def _looked_at(writing: asyncio.Future[None]) -> None:
    """Nobody may wait for it any more: asyncio would complain of what went wrong."""
    if not writing.cancelled():
        writing.exception()


def _nobody(*_: object) -> None:
    pass
