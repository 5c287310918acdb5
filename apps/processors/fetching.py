"""The artifacts that a run's inputs name: looked up before anything is sent, then handed to the runtime that asks.

Only what the inputs name is ever handed out. Files of this machine are read at once; what asks a store is done in
lanes, one for each fetch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from processor_runtime import artifacts, protocol

from apps.errors import InvalidInputs, OperationError, StorageFailed
from apps.storage import keys
from apps.storage.base import Grants, ObjectStat, StorageBackend

if TYPE_CHECKING:
    from apps.processors.lanes import Lane, Workers

LEAVE_S: Final = 0.5
"""How long a read that was begun may take, once the conversation is over: nothing has to be undone."""


class Sources(NamedTuple):
    """What the inputs of one run name, by path, and the store that has it."""

    backend: StorageBackend
    found: Mapping[str, ObjectStat]

    def offer(
        self, side: protocol.ControllerSide, grants: Grants | None, *, send: Callable[[str | bytes], None]
    ) -> "Fetching":
        """Hand them out, and nothing else, over one connection."""
        return Fetching(side, self, grants, send=send)


def look_up(inputs: Mapping[str, Any], backend: StorageBackend) -> Sources:
    """Size and digest of every artifact that `inputs` name.

    Raises InvalidInputs (details.pointer says where) for one that is malformed or absent, StorageFailed.
    """
    found: dict[str, ObjectStat] = {}
    try:
        for pointer, path in artifacts.named(inputs):
            if path not in found:
                found[path] = _stat(pointer, path, backend)
    except artifacts.Malformed as exc:
        raise InvalidInputs(
            f"inputs at {exc.pointer or 'the top'}: {exc.message}", details={"pointer": exc.pointer}
        ) from exc
    return Sources(backend, found)


def _stat(pointer: str, path: str, backend: StorageBackend) -> ObjectStat:
    key = path[1:]
    # What names its own digest need not be read for it: the runtime takes it in any case.
    named = keys.ATTACHED.fullmatch(key)
    found = backend.stat(key) if named else backend.digest(key)
    if found is None:
        raise InvalidInputs(
            f"inputs at {pointer}: there is no {backend.locate(key)}",
            hint="run --attach NAME=PATH puts a file into the store and names it",
            details={"pointer": pointer, "path": path},
        )
    return found._replace(digest=f"sha256:{named[1]}") if named else found


class Fetching:
    """The fetches that come over one connection."""

    def __init__(
        self,
        side: protocol.ControllerSide,
        sources: Sources,
        grants: Grants | None,
        *,
        send: Callable[[str | bytes], None],
    ) -> None:
        """`grants`: of the store, for the container; None where it can't reach it. `send` takes messages for the
        runtime, from other threads too."""
        self._side, self._sources, self._grants, self._send = side, sources, grants, send
        self._readers: dict[int, _Reader] = {}
        self._lanes: dict[int, Lane] = {}
        # Reading it may mean waiting for another machine, with grants or without.
        self._workers = _workers() if sources.backend.name != "filesystem" else None
        self._over = False

    def take(self, message: protocol.Fetch | protocol.Pull) -> None:
        """Answer a fetch with where it can be had, or with why it can't; a pull with what it asks for."""
        if isinstance(message, protocol.Fetch):
            self._asked(message)
        else:
            self._do(message.fetch, partial(self._give, message))

    def check(self) -> None:
        """Raise what went wrong where nobody could be told."""
        if self._workers is not None:
            self._workers.check()

    def close(self) -> None:
        """Hand out no more."""
        self._over = True
        for number, reader in self._readers.items():
            lane = self._lanes.get(number)
            if lane is None:
                reader.close()
            else:
                lane.do(reader.close)
        if self._workers is not None:
            self._workers.close(LEAVE_S)

    # inside

    def _asked(self, fetch: protocol.Fetch) -> None:
        found = self._sources.found.get(fetch.path)
        if found is None:
            error = InvalidInputs(f"the processor asked for {fetch.path!r}, which the inputs do not name")
            self._tell(protocol.encode(protocol.Unavailable(fetch.fetch, error.words())))
            return
        self._readers[fetch.fetch] = _Reader(self._sources.backend, fetch.path, found.size_bytes)
        self._do(fetch.fetch, partial(self._answer, fetch, found))

    # in the fetch's lane

    def _answer(self, fetch: protocol.Fetch, found: ObjectStat) -> None:
        request = None
        if self._grants is not None:
            signed = self._grants.download(fetch.path[1:])
            request = {**signed._asdict(), "headers": dict(signed.headers)}
        self._tell(self._side.source(protocol.Source(fetch.fetch, found.size_bytes, str(found.digest), request)))

    def _give(self, pull: protocol.Pull) -> None:
        offset, end, reader = pull.offset, pull.offset + pull.bytes, self._readers[pull.fetch]
        while offset < end and not self._over:
            data = reader.read(offset, min(protocol.CHUNK_BYTES, end - offset))
            self._tell(protocol.chunk(pull.fetch, offset, data))
            offset += len(data)

    # where work is done

    def _do(self, number: int, work: Callable[[], None]) -> None:
        if self._workers is None:
            self._try(number, work)
            return
        if number not in self._lanes:
            from apps.processors.lanes import Lane

            self._lanes[number] = Lane(self._workers)
        self._lanes[number].do(partial(self._try, number, work))

    def _try(self, number: int, work: Callable[[], None]) -> None:
        if self._over:
            return
        try:
            work()
        except OperationError as error:
            self._tell(protocol.encode(protocol.Unavailable(number, error.words())))

    def _tell(self, message: str | bytes) -> None:
        if self._workers is None:
            self._send(message)
            return
        from websockets.exceptions import ConnectionClosed

        try:
            self._send(message)
        except ConnectionClosed:
            self._over = True  # the thread that reads sees it too, and says why


class _Reader:
    """One artifact, read from anywhere; in order costs least."""

    def __init__(self, backend: StorageBackend, path: str, size_bytes: int) -> None:
        self._backend, self._path, self._size_bytes = backend, path, size_bytes
        self._file: BinaryIO | None = None
        self._at = 0

    def read(self, offset: int, size: int) -> bytes:
        """Exactly so many bytes. Raises StorageFailed."""
        try:
            if self._file is None or offset < self._at:
                self.close()
                self._file, self._at = self._backend.open(self._path[1:]), 0
            if self._file.seekable():  # a bucket's are not
                self._at = self._file.seek(offset)
            while self._at < offset:
                self._take(self._file, min(protocol.WINDOW_BYTES, offset - self._at))
            data = self._take(self._file, size)
            if self._at == self._size_bytes:  # most likely it was the last of it, and there may be a thousand more
                self.close()
            return data
        except OSError as exc:
            raise StorageFailed(f"{self._where()} can't be read: {exc.strerror or exc}") from exc

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, file: BinaryIO, size: int) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise StorageFailed(f"{self._where()} became shorter while it was read", details={"path": self._path})
        self._at += size
        return data

    def _where(self) -> str:
        return self._backend.locate(self._path[1:])


def _workers() -> "Workers":
    from apps.processors.lanes import Workers  # a run on the filesystem needs no thread

    return Workers()
