"""The backend `minio`: a development server that speaks S3, MinIO's own or any other."""

import socket
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from apps.settings import BucketSettings
from apps.storage import bucket_errors, s3_client
from apps.storage.base import StoredObject
from apps.storage.bucket import BucketBackend, Local
from apps.storage.bucket_errors import Failures
from apps.storage.enforcement import digest_of
from apps.storage.objects import Fetched, Head, age_s

_MADE: Final = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
_BROKEN: Final = (500, 502, 503, 504)
_CANONICAL: Final = "minio.local"


def backend(bucket: BucketSettings, local: Local) -> BucketBackend:
    found = _found(bucket)
    return BucketBackend(found, MinioObjects(found), local)


def _found(bucket: BucketSettings) -> BucketSettings:
    """With `minio.local` where it is: this machine, when nothing knows the name, as containers are told too."""
    parts = urlsplit(str(bucket.endpoint))
    if parts.hostname != _CANONICAL:
        return bucket
    try:
        socket.getaddrinfo(_CANONICAL, None)
    except OSError:
        return bucket._replace(endpoint=parts._replace(netloc=parts.netloc.replace(_CANONICAL, "127.0.0.1")).geturl())
    return bucket


class MinioObjects:
    """One bucket, read by the minio client."""

    name = "minio"

    def __init__(self, bucket: BucketSettings) -> None:
        from botocore.exceptions import BotoCoreError, ClientError
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError

        self._bucket = bucket.name
        self.failures = Failures(
            bucket=bucket.name,
            endpoint=str(bucket.endpoint),
            absent="run again: a run makes it",
            credentials="MINIO_STORAGE_ACCESS_KEY and MINIO_STORAGE_SECRET_KEY",
            address="MINIO_STORAGE_ENDPOINT and MINIO_STORAGE_USE_HTTPS",
            errors=(MinioException, HTTPError, BotoCoreError, ClientError),
        )
        self._minio = _client(bucket, attempts=s3_client.ATTEMPTS, read_s=s3_client.READ_S)
        self._checker = _client(bucket, attempts=s3_client.CHECK_ATTEMPTS, read_s=s3_client.CHECK_READ_S)

    def check(self) -> None:
        """Makes the bucket when it is absent: this backend is for development."""
        with self.failures.told():
            if self._checker.bucket_exists(self._bucket):
                return
        try:
            self._checker.make_bucket(self._bucket)
        except self.failures.errors as exc:
            if bucket_errors.code_of(exc) not in _MADE:  # by another run
                raise self.failures.translated(exc) from exc

    def head(self, key: str) -> Head | None:
        try:
            found = self._minio.stat_object(self._bucket, key, extra_headers={"x-amz-checksum-mode": "ENABLED"})
        except self.failures.errors as exc:
            if bucket_errors.code_of(exc) in bucket_errors.NOT_THERE:
                return None
            raise self.failures.translated(exc) from exc
        if not found.etag:
            raise self.failures.foreign()
        told = found.metadata or {}
        return Head(
            int(found.size or 0),
            digest_of(told.get("x-amz-checksum-sha256")),
            f'"{found.etag}"',
            age_s(told.get("date"), found.last_modified),
        )

    def fetch(self, key: str, *, offset: int = 0, etag: str | None = None) -> Fetched | None:
        try:
            answer = self._minio.get_object(
                self._bucket, key, offset=offset, request_headers={"If-Match": etag} if etag else None
            )
        except self.failures.errors as exc:
            if bucket_errors.code_of(exc) in bucket_errors.NOT_THERE:
                return None
            raise self.failures.translated(exc) from exc
        return Fetched(_Released(answer), answer.headers.get("etag", ""))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self.failures.told():
            for found in self._minio.list_objects(self._bucket, prefix=prefix, recursive=True):
                yield StoredObject(str(found.object_name), int(found.size or 0))

    def delete(self, key: str) -> None:
        with self.failures.told():
            self._minio.remove_object(self._bucket, key)


class _Released:
    """An answer's body that gives its connection back when it is closed."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def read(self, size_bytes: int) -> bytes:
        data: bytes = self._answer.read(size_bytes)
        return data

    def close(self) -> None:
        self._answer.close()
        self._answer.release_conn()


def _client(bucket: BucketSettings, *, attempts: int, read_s: float) -> Any:
    import urllib3
    from minio import Minio

    parts = urlsplit(str(bucket.endpoint))
    retries = urllib3.Retry(
        total=attempts - 1, backoff_factor=0.5, status_forcelist=_BROKEN, raise_on_status=False, redirect=False
    )
    http = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=s3_client.CONNECT_S, read=read_s),
        maxsize=16,
        retries=retries,
        ssl_context=s3_client.trust(bucket.ca_file) if parts.scheme == "https" else None,
    )
    return Minio(
        parts.netloc,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        secure=parts.scheme == "https",
        region=bucket.region,  # else it would ask
        http_client=http,
    )
