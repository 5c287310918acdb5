"""A StorageBackend over one bucket of an S3 server, whichever SDK reads it. Every upload goes by boto3.

That holds for minio too: its own client can neither sign size and digest into a URL nor put without overwriting.
"""

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from apps.errors import StorageFailed
from apps.settings import BucketSettings
from apps.storage import keys, s3_client
from apps.storage.base import Grants, ObjectStat, ObjectWriter, StoredObject
from apps.storage.create_once import SINGLE_PUT_BYTES, CreateOnce
from apps.storage.enforcement import Enforcement, Proofs
from apps.storage.objects import ObjectClient, opened
from apps.storage.presigned import PresignedGrants
from apps.storage.spooling import SpooledWriter


class Local(NamedTuple):
    """What a bucket needs of this machine."""

    spool: Path
    """Where what arrives over the socket waits, on disk."""
    proofs: Proofs
    single_put_bytes: int = SINGLE_PUT_BYTES
    """Larger objects go in parts."""


class BucketBackend:
    """Objects of `bucket`, read by `objects`."""

    def __init__(self, bucket: BucketSettings, objects: ObjectClient, local: Local, *, session: Any = None) -> None:
        """`session` is boto3's, where there is one already: another would read the same files again."""
        for name in ("botocore", "urllib3"):  # each of their retries would be a line, with URLs in it
            logging.getLogger(name).setLevel(logging.ERROR)
        self.name = objects.name
        self._bucket, self._objects, self._local, self._given = bucket, objects, local, session

    def check(self) -> None:
        self._objects.check()

    def create(self, key: str, *, mime: str) -> ObjectWriter:
        """Start writing. What was not committed leaves nothing, neither here nor there."""
        keys.split(key)

        def put(file: BinaryIO, size_bytes: int, digest: str) -> None:
            self._uploads.put(key, file, size_bytes=size_bytes, digest=digest, mime=mime)

        return SpooledWriter(key, self._local.spool, put)

    def read(self, key: str, *, limit_bytes: int) -> bytes | None:
        keys.split(key)
        file = opened(self._objects, key)
        if file is None:
            return None
        with file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise StorageFailed(f"{self.locate(key)} has more than {limit_bytes} bytes", hint="move it away")
        return data

    def open(self, key: str) -> BinaryIO:
        keys.split(key)
        file = opened(self._objects, key)
        if file is None:
            raise StorageFailed(f"{self.locate(key)} is not there")
        return file

    def stat(self, key: str) -> ObjectStat | None:
        keys.split(key)
        return self._uploads.stat(key)

    def digest(self, key: str) -> ObjectStat | None:
        keys.split(key)
        return self._uploads.digest(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        yield from sorted(self._objects.list(prefix))  # not every server lists in the order of keys

    def delete(self, key: str) -> None:
        keys.split(key)
        self._objects.delete(key)

    def grants(self, loopback: str | None) -> Grants:
        endpoint = s3_client.container_endpoint(self._bucket, loopback)
        signer = s3_client.client(self._session, self._bucket, endpoint=endpoint)
        return PresignedGrants(
            signer,
            self._bucket.name,
            self._uploads,
            self._objects.failures,
            lambda: s3_client.lifetime_s(self._session),
        )

    def locate(self, key: str) -> str:
        place = f"{self._bucket.endpoint}/" if self._bucket.endpoint else "s3://"
        return f"{place}{self._bucket.name}/{key}"

    @cached_property
    def _session(self) -> Any:
        return self._given or s3_client.session(self._bucket)

    @cached_property
    def _uploads(self) -> CreateOnce:
        with self._objects.failures.told():
            client = s3_client.client(self._session, self._bucket, endpoint=self._bucket.endpoint)
        failures, bucket = self._objects.failures, self._bucket
        enforcement = Enforcement(client, bucket.name, self._local.proofs, failures, bucket.ca_file)
        return CreateOnce(client, bucket.name, self._objects, enforcement, self._local.single_put_bytes)
