"""What artifacts ask of a place that keeps bytes under keys."""

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, Protocol


class ObjectStat(NamedTuple):  # no dataclass: every run would pay for making it
    """A stored object. `digest` is `sha256:` + 64 hex, None where the service does not tell it."""

    size_bytes: int
    digest: str | None


class StoredObject(NamedTuple):
    """One row of a listing."""

    key: str
    size_bytes: int


class SignedRequest(NamedTuple):
    """A presigned HTTP request, to be sent as it is: whoever has it may send it, until it expires."""

    method: str
    url: str
    headers: Mapping[str, str]
    """All that must be sent; each is signed where the scheme can."""


class Grant(NamedTuple):
    """Permission to upload one object of known size and SHA-256."""

    requests: tuple[SignedRequest, ...]
    """One for the whole object, or one for each of its parts, in order."""
    part_bytes: int
    """The size of each part but the last; the object's where it goes in one."""
    expires_at: float
    """Seconds since 1970."""
    upload_id: str | None = None
    """Of a multipart upload."""


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


class Grants(Protocol):
    """A store that others may reach by presigned requests, good for at most 15 minutes, never to overwrite."""

    def upload(self, key: str, *, size_bytes: int, digest: str, mime: str) -> Grant:
        """Permission to upload exactly this. Raises StorageFailed, OutputExists where it is sure already."""
        ...

    def accept(self, key: str, grant: Grant, *, size_bytes: int, digest: str, etags: Sequence[str] = ()) -> None:
        """Complete what was uploaded by `grant` (`etags`: of its parts, in order) and be sure of size and SHA-256.

        Also after an upload whose answer was lost: what counts is what is stored. Raises OutputExists when the key
        holds other bytes that were there before, UploadFailed when nothing or something else arrived, StorageFailed.
        """
        ...

    def renew(self, key: str, grant: Grant, *, size_bytes: int, digest: str, mime: str) -> Grant:
        """Fresh permission in the place of one that expired; parts that arrived stay. Raises as `upload` does."""
        ...

    def abandon(self, key: str, grant: Grant) -> None:
        """Forget an upload that will not be completed. Never raises."""
        ...

    def download(self, key: str) -> SignedRequest:
        """Permission to read the object. Raises StorageFailed."""
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

    def digest(self, key: str) -> ObjectStat | None:
        """`stat` with the digest known: read and hashed where the service does not tell it. Raises StorageFailed."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key starts with `prefix`, which ends with a slash; sorted by key. Raises StorageFailed."""
        ...

    def delete(self, key: str) -> None:
        """Remove one object; an absent one is success. Raises StorageFailed."""
        ...

    def grants(self, loopback: str | None) -> Grants | None:
        """Presigned requests for a container; None where the store can't be reached by any (the filesystem).

        `loopback` is the name by which the container reaches this machine's loopback (`host.docker.internal`), None
        when it shares this machine's network. URLs are signed for the address that the container uses.
        """
        ...

    def locate(self, key: str) -> str:
        """Where a person finds the object: a path, or a URL of the bucket."""
        ...
