"""What artifacts ask of a place that keeps bytes under keys."""

from typing import BinaryIO, NamedTuple, Protocol


class ObjectStat(NamedTuple):  # no dataclass: every run would pay for making it
    """A stored object. `digest` is `sha256:` + 64 hex, None where the service does not tell it."""

    size_bytes: int
    digest: str | None


class ObjectWriter(Protocol):
    """An object on its way in: create-once, visible only after `commit`."""

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises StorageFailed (disk full included)."""
        ...

    def commit(self, *, size_bytes: int, digest: str) -> None:
        """Check size and digest, make it durable and visible.

        Raises UploadFailed when either differs, OutputExists when the key is taken by other bytes
        (the same bytes are success), StorageFailed. Nothing is visible after a failure.
        """
        ...

    def abort(self) -> None:
        """Forget it, unless it was committed. Also after a failed commit; never raises."""
        ...


class StorageBackend(Protocol):
    """Bytes under keys. Keys have no first slash: `artifacts/outputs/…`."""

    name: str
    """filesystem, minio or s3."""

    def check(self) -> None:
        """Raises ConfigurationError or StorageFailed when outputs could not be written now."""
        ...

    def create(self, key: str, *, mime: str) -> ObjectWriter:
        """Start writing an object that must not exist. Raises InvalidInputs (a key that can't be), StorageFailed."""
        ...

    def read(self, key: str, *, limit_bytes: int) -> bytes | None:
        """A small object whole, None when absent. Raises StorageFailed, also when it is larger than the limit."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A stored object for reading. Raises StorageFailed when absent."""
        ...

    def stat(self, key: str) -> ObjectStat | None:
        """None when absent. Raises StorageFailed."""
        ...

    def locate(self, key: str) -> str:
        """Where a person finds the object: a path, or a URL of the bucket."""
        ...
