"""The outputs of one execution on their way to the store: asked for, granted, sent, stored."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from processor_runtime import codes, direct
from processor_runtime.delivery import Delivery, Expired, Failed
from processor_runtime.failures import Failure, from_words
from processor_runtime.protocol import (
    CHUNK_BYTES,
    Credit,
    Fetch,
    Grant,
    ProtocolError,
    Pull,
    Refused,
    Stored,
    Upload,
    Uploaded,
    chunk,
    encode,
)

log = logging.getLogger("processor_runtime")

PARALLEL: Final = 8  # uploads of one execution under way at once: hides round trips, bounds descriptors


class UploadFailed(Exception):
    """An upload can't be; `failure` ends the execution."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Courier(Protocol):
    """The connection that carries uploads."""

    def ask(self, message: Upload | Fetch | Pull) -> None: ...
    def say(self, text: str) -> None: ...
    async def send_chunk(self, data: bytes) -> None: ...


@dataclass(slots=True)
class Spooled:
    """One output on disk."""

    path: str
    file: str
    size_bytes: int
    digest: str
    mime: str

    def document(self) -> dict[str, Any]:
        """As `completed` lists it."""
        return {"path": self.path, "size_bytes": self.size_bytes, "digest": self.digest, "mime": self.mime}


@dataclass(slots=True)
class _UnderWay:
    """What the controller has said of one upload so far."""

    answer: asyncio.Future[Grant]
    stored: asyncio.Future[None]
    more: asyncio.Event
    relay: bool
    """Whether it was asked for over the connection."""
    credit: int = 0
    sent: bool = False

    async def room(self) -> None:
        """Wait until more may be sent. Raises UploadFailed once the upload is refused."""
        while True:
            if self.stored.done():
                self.stored.result()
            if self.credit > 0:
                return
            self.more.clear()
            await self.more.wait()


class Uploads:
    """Carries outputs in the order written, PARALLEL at a time."""

    def __init__(
        self,
        execution_id: str,
        folder: Path,
        courier: Courier,
        *,
        stored: Callable[[Spooled], None],
        failed: Callable[[Failure], None],
    ) -> None:
        self._execution_id, self._folder, self._courier = execution_id, folder, courier
        self._on_stored, self._on_failed = stored, failed
        self._waiting: deque[Spooled] = deque()
        self._tasks: dict[asyncio.Task[None], Spooled] = {}
        self._ready = True  # somebody is there to be asked
        self._under_way: dict[int, _UnderWay] = {}
        self._last = 0
        self._store = direct.Store()
        self._unreachable = False

    @property
    def settled(self) -> bool:
        """Whether nothing is waiting or under way."""
        return not self._waiting and not self._tasks

    def add(self, output: Spooled) -> None:
        self._waiting.append(output)
        self._next()

    def restart(self, *, ready: bool) -> None:
        """Carry what is under way from its beginning: another courier is asked now, or, unless `ready`, none yet."""
        self._ready = ready
        for task in self._tasks:
            task.cancel()
        self._waiting.extendleft(reversed(self._tasks.values()))
        self._tasks.clear()
        self._under_way.clear()  # what is said of them from here on is late
        self._next()

    def release(self) -> None:
        """Forget who is told: the execution has ended, and need not wait for the garbage collector."""
        self._on_stored = self._on_failed = _nobody
        self._store.close()

    def abort(self) -> None:
        """Send no more."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        self._under_way.clear()

    def receive(self, message: Grant | Credit | Stored | Refused) -> None:
        """What the controller says of one upload. Raises ProtocolError."""
        under_way = self._under_way.get(message.upload)
        if under_way is None:  # aborted meanwhile
            return
        match message:
            case Grant():
                if under_way.answer.done():
                    raise ProtocolError(f"upload {message.upload} was granted twice")
                under_way.credit = message.credit
                under_way.answer.set_result(message)
            case Credit():
                under_way.credit += message.bytes
                under_way.more.set()
            case Stored():
                if not under_way.sent:
                    raise ProtocolError(f"upload {message.upload} was stored before it was sent")
                under_way.stored.set_result(None)
            case Refused():
                refusal = UploadFailed(from_words(message.error))
                for future in (under_way.answer, under_way.stored):
                    if not future.done():
                        future.set_exception(refusal)
                        future.exception()  # looked at: one of the two may never be awaited
                under_way.more.set()

    def _next(self) -> None:
        while self._ready and self._waiting and len(self._tasks) < PARALLEL:
            output = self._waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._carry(output))
            self._tasks[task] = output
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("an upload broke", exc_info=bug)
            self._on_failed(Failure(codes.INTERNAL, f"an upload broke: {type(bug).__name__}: {bug}", "report this"))
        self._next()

    async def _carry(self, output: Spooled) -> None:
        try:
            with self._open(output) as file:
                await self._bring(output, file)
        except UploadFailed as exc:
            self._on_failed(exc.failure)
            return
        (self._folder / output.file).unlink(missing_ok=True)
        # the task is over in all that matters: what looks at `settled` next must see that
        if (task := asyncio.current_task()) is not None:
            self._tasks.pop(task, None)
        self._on_stored(output)
        self._next()

    async def _bring(self, output: Spooled, file: "_File") -> None:
        """Ask, and send as it is granted, until it is stored. Asks again when a grant leads nowhere."""
        delivery = Delivery(self._store, output.path, file.descriptor, output.size_bytes)
        while True:
            with self._asked(output) as (number, under_way):
                grant = await under_way.answer
                try:
                    etags = await self._send(number, grant, delivery, file, output, under_way)
                except Expired:
                    continue
                except direct.Unreachable as exc:
                    if under_way.relay:  # it was told so, and named a store all the same
                        text = f"the upload of {output.path!r} failed: there is no way to the store: {exc}"
                        raise UploadFailed(Failure(codes.STORAGE, text, "", {"path": output.path})) from exc
                    log.warning("outputs of %s go over the connection: %s", self._execution_id, exc)
                    self._unreachable = True
                    continue
                under_way.sent = True
                self._courier.say(encode(Uploaded(number, etags)))
                await under_way.stored
                return

    @contextmanager
    def _asked(self, output: Spooled) -> Iterator[tuple[int, _UnderWay]]:
        """An upload that was asked for, with its number."""
        loop = asyncio.get_running_loop()
        self._last = number = self._last + 1
        relay, facts = self._unreachable, (output.path, output.size_bytes, output.digest, output.mime)
        under_way = _UnderWay(loop.create_future(), loop.create_future(), asyncio.Event(), relay)
        self._under_way[number] = under_way
        try:
            self._courier.ask(Upload(self._execution_id, number, *facts, relay=relay))
            yield number, under_way
        finally:
            self._under_way.pop(number, None)

    async def _send(
        self, number: int, grant: Grant, delivery: Delivery, file: "_File", output: Spooled, under_way: _UnderWay
    ) -> list[str] | None:
        if grant.transfer == "relay":
            await self._relay(number, file, output, under_way)
            return None
        if grant.transfer != "direct":
            text = f"a grant to upload {output.path!r} by {grant.transfer!r}"
            raise UploadFailed(Failure(codes.UPLOAD, text))
        following = asyncio.ensure_future(delivery.follow(grant))
        try:
            await asyncio.wait((following, under_way.stored), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                under_way.stored.result()  # refused meanwhile
            return following.result()
        except Failed as exc:
            raise UploadFailed(exc.failure) from exc
        finally:
            following.cancel()

    def _open(self, output: Spooled) -> "_File":
        try:
            return _File(self._folder, output)
        except OSError as exc:
            raise UploadFailed(_changed(output)) from exc

    async def _relay(self, number: int, file: "_File", output: Spooled, under_way: _UnderWay) -> None:
        sent = 0
        while sent < output.size_bytes:
            await under_way.room()
            data = file.read(min(CHUNK_BYTES, under_way.credit, output.size_bytes - sent), sent)
            if not data:
                raise UploadFailed(_changed(output))
            under_way.credit -= len(data)
            await self._courier.send_chunk(chunk(number, sent, data))
            sent += len(data)


class _File:
    """A spooled file, opened so that no symlink chooses what is sent."""

    def __init__(self, folder: Path, output: Spooled) -> None:
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self.descriptor = os.open(output.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        finally:
            os.close(parent)

    def read(self, size: int, at: int) -> bytes:
        return os.pread(self.descriptor, size, at)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _nobody(_: object) -> None:
    pass


def _changed(output: Spooled) -> Failure:
    return Failure(codes.UPLOAD, f"the spooled file of {output.path!r} was changed before it was sent")
