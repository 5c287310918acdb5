"""Objects go into a bucket once: conditional uploads, and what is stored afterwards, be it verified or refused."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final

from apps.errors import OperationError, OutputExists, StorageFailed, UploadFailed
from apps.storage import bucket_errors
from apps.storage.base import ObjectStat
from apps.storage.enforcement import Enforcement, checksum_of
from apps.storage.objects import Head, ObjectClient, opened

SINGLE_PUT_BYTES: Final = 5 * 1024**3
"""S3's limit for one PUT."""
PART_BYTES: Final = 512 * 1024**2
MOST_PARTS: Final = 10_000
_MIB: Final = 1024**2
_CONFLICT_WAITS_S: Final = (0.5, 1.0, 2.0)
_SETTLED_S: Final = 2.0
"""Servers tell times in whole seconds."""


class CreateOnce:
    """Uploads into one bucket by one boto3 client; what is there is read by `objects`."""

    def __init__(
        self, client: Any, bucket: str, objects: ObjectClient, enforcement: Enforcement, single_put_bytes: int
    ) -> None:
        self._client, self._bucket, self._objects, self._enforcement = client, bucket, objects, enforcement
        self.single_put_bytes = single_put_bytes

    def put(self, key: str, file: BinaryIO, *, size_bytes: int, digest: str, mime: str) -> None:
        """Store the whole `file`. Raises OutputExists, UploadFailed, StorageFailed."""
        self.refuse_overwrite(key, size_bytes=size_bytes, digest=digest)
        made = False
        if size_bytes > self.single_put_bytes:
            made = self._put_in_parts(key, file, size_bytes=size_bytes, mime=mime)
        elif self._put_whole(key, file, size_bytes=size_bytes, digest=digest, mime=mime):
            return
        self.settle(key, size_bytes=size_bytes, digest=digest, made=made)

    def refuse_overwrite(self, key: str, *, size_bytes: int, digest: str) -> None:
        """Where the server itself would overwrite, look before. Raises OutputExists, StorageFailed."""
        if self._enforcement.enforced().once:
            return
        found = self.digest(key)
        if found and found != (size_bytes, digest):
            raise self._taken(key)

    def begin(self, key: str, *, mime: str) -> str:
        """Start an upload in parts. Raises StorageFailed."""
        client = self._client
        with self._objects.failures.told():
            answer = client.create_multipart_upload(Bucket=self._bucket, Key=key, ContentType=mime)
        return str(answer["UploadId"])

    def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> bool:
        """Make one object of its parts; False when there is one, or this was done before: `settle` tells.

        Raises UploadFailed, StorageFailed.
        """
        client = self._client
        parts = [{"ETag": etag, "PartNumber": number} for number, etag in enumerate(etags, 1)]
        with self._unless_taken() as taken:
            client.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        if taken:
            self.abort(key, upload_id)
        return not taken

    def abort(self, key: str, upload_id: str) -> None:
        """Forget the parts. Never raises: the bucket's lifecycle rules are there for what is left."""
        client = self._client
        with suppress(OperationError), self._objects.failures.told():
            client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def settle(
        self, key: str, *, size_bytes: int, digest: str, since_s: float | None = None, made: bool = False
    ) -> None:
        """Be sure that exactly this is stored: told by a server that is known to check it, else read once.

        `since_s`: seconds since others were allowed to write it; `made`: of parts, which no server checked. Raises
        OutputExists for other bytes that were there before, UploadFailed when nothing or something else arrived,
        StorageFailed.
        """
        head = self._objects.head(key)
        if head is None:
            # No bucket, no object. Not `check`, which may make one: what was stored before would be missing in it.
            next(self._objects.list(f"{key}/"), None)
            raise UploadFailed(f"{key}: nothing arrived")
        found = self._digest(key, head) if head.size_bytes == size_bytes else None
        if found == digest:
            return
        before = all(self._enforcement.enforced()) or (since_s is not None and head.age_s > since_s + _SETTLED_S)
        if before and not made:
            raise self._taken(key)
        raise UploadFailed(
            f"{key}: {found or f'{head.size_bytes} bytes'} arrived, {digest} of {size_bytes} bytes was announced"
        )

    def stat(self, key: str) -> ObjectStat | None:
        """With the digest where the server tells one that can be believed. Raises StorageFailed."""
        head = self._objects.head(key)
        return ObjectStat(head.size_bytes, self._believed(head)) if head else None

    def digest(self, key: str) -> ObjectStat | None:
        """With the digest in any case. Raises StorageFailed."""
        head = self._objects.head(key)
        return ObjectStat(head.size_bytes, self._digest(key, head)) if head else None

    def _believed(self, head: Head) -> str | None:
        return head.digest if head.digest and self._enforcement.enforced().digest else None

    def _digest(self, key: str, head: Head) -> str:
        return self._believed(head) or self._read(key, head)

    def _read(self, key: str, head: Head) -> str:
        file = opened(self._objects, key, head.etag)
        if file is None:
            raise StorageFailed(f"{key} went away while it was verified")
        with file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]

    def _put_whole(self, key: str, file: BinaryIO, *, size_bytes: int, digest: str, mime: str) -> bool:
        """Whether it is stored and was checked; else `settle` tells."""
        client = self._client
        for wait_s in _CONFLICT_WAITS_S:
            file.seek(0)
            with self._unless_taken() as taken:
                client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=file,
                    ContentLength=size_bytes,
                    ContentType=mime,
                    ChecksumSHA256=checksum_of(digest),
                    IfNoneMatch="*",
                )
            if not taken:
                return self._enforcement.enforced().digest
            if taken[0] not in bucket_errors.CONFLICT:
                break
            time.sleep(wait_s)  # another writer is at it: S3 knows only afterwards who was first
        return False

    def _put_in_parts(self, key: str, file: BinaryIO, *, size_bytes: int, mime: str) -> bool:
        """As `complete`."""
        upload_id = self.begin(key, mime=mime)
        try:
            return self.complete(key, upload_id, self._put_parts(key, upload_id, file, size_bytes))
        except BaseException:
            self.abort(key, upload_id)
            raise

    def _put_parts(self, key: str, upload_id: str, file: BinaryIO, size_bytes: int) -> list[str]:
        from s3transfer.utils import ReadFileChunk

        client, etags = self._client, []
        size = part_bytes(size_bytes, self.single_put_bytes)
        for number, offset in enumerate(range(0, size_bytes, size), 1):
            file.seek(offset)
            with self._objects.failures.told():
                answer = client.upload_part(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=ReadFileChunk(file, chunk_size=size, full_file_size=size_bytes),
                )
            etags.append(str(answer["ETag"]))
        return etags

    @contextmanager
    def _unless_taken(self) -> Iterator[list[str]]:
        """A conditional request; the list has a word in it when the object was there, or its upload is over."""
        taken: list[str] = []
        try:
            yield taken
        except self._objects.failures.errors as exc:
            code = bucket_errors.code_of(exc)
            if code in bucket_errors.BAD_PARTS:
                raise UploadFailed(f"the bucket refuses what arrived ({code})") from exc
            if code not in bucket_errors.TAKEN | bucket_errors.CONFLICT | bucket_errors.NO_UPLOAD:
                raise self._objects.failures.translated(exc) from exc
            taken.append(code)

    def _taken(self, key: str) -> OutputExists:
        return OutputExists(
            f"{key} exists already with other content", hint="choose another --write-prefix: a run never overwrites"
        )


def part_bytes(size_bytes: int, single_put_bytes: int) -> int:
    """How large each part but the last is; no more parts than a bucket takes."""
    usual, least = min(PART_BYTES, single_put_bytes), -(-size_bytes // MOST_PARTS)
    return usual if least <= usual else -(-least // _MIB) * _MIB
