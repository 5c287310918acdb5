"""Reading objects of a bucket: what a client must offer, and a reader that goes on where a connection was cut."""

import io
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, cast

from apps.errors import StorageFailed
from apps.storage.base import StoredObject
from apps.storage.bucket_errors import Failures

BUFFER_BYTES: Final = 1024 * 1024
RESUMED: Final = 5
"""How often in a row reading may go on without a byte."""


class Head(NamedTuple):
    """What a bucket says of an object."""

    size_bytes: int
    digest: str | None
    """The SHA-256 that it was put with: to be believed of a server alone that is known to check it."""
    etag: str
    age_s: float
    """By the server's own clock."""


def age_s(now: str | None, modified: datetime | None) -> float:
    """Between an answer's `Date` and an object's last change; 0 where either can't be read."""
    try:
        return (parsedate_to_datetime(now or "") - modified).total_seconds() if modified else 0.0
    except (TypeError, ValueError):
        return 0.0


class ObjectClient(Protocol):
    """One bucket by one SDK."""

    name: str
    """Of the backend."""
    failures: Failures

    def check(self) -> None:
        """Raises ConfigurationError or StorageFailed when the bucket can't be used now."""
        ...

    def head(self, key: str) -> Head | None:
        """None when absent. Raises StorageFailed."""
        ...

    def fetch(self, key: str, *, offset: int = 0, etag: str | None = None) -> "Fetched | None":
        """From `offset`, of that very object where `etag` is given; None when absent. Raises StorageFailed."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """In any order. Raises StorageFailed."""
        ...

    def delete(self, key: str) -> None:
        """Raises StorageFailed."""
        ...


class Fetched(NamedTuple):
    """An object's bytes on their way."""

    stream: Any
    """`read(n)` and `close()`."""
    etag: str


def opened(objects: ObjectClient, key: str, etag: str | None = None) -> BinaryIO | None:
    """An object for reading (that very one where `etag` is given); None when absent. Raises StorageFailed."""
    first = objects.fetch(key, etag=etag)
    return cast(BinaryIO, io.BufferedReader(_ObjectReader(objects, key, first), BUFFER_BYTES)) if first else None


class _ObjectReader(io.RawIOBase):
    """The bytes of one object. A cut connection is opened again where it was, as long as the object is the same."""

    def __init__(self, objects: ObjectClient, key: str, first: Fetched) -> None:
        super().__init__()
        self._objects, self._key, self._fetched = objects, key, first
        self._offset = self._failed = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                data = self._fetched.stream.read(len(buffer))
            except self._objects.failures.errors as exc:
                self._resume(exc)
                continue
            self._failed = 0
            self._offset += len(data)
            buffer[: len(data)] = data
            return len(data)

    def close(self) -> None:
        if not self.closed:
            self._fetched.stream.close()
        super().close()

    def _resume(self, exc: Exception) -> None:
        self._fetched.stream.close()
        self._failed += 1
        if self._failed > RESUMED:
            raise self._objects.failures.translated(exc) from exc
        again = self._objects.fetch(self._key, offset=self._offset, etag=self._fetched.etag)
        if again is None:
            raise StorageFailed(f"{self._key} went away while it was read") from exc
        self._fetched = again
