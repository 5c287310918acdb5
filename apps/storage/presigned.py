"""Grants: requests that a container may send to a bucket, signed here, good for one object and a quarter of an hour."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from apps.errors import OperationError, StorageFailed, UploadFailed
from apps.storage import s3_client
from apps.storage.base import Grant, SignedRequest
from apps.storage.bucket_errors import Failures
from apps.storage.create_once import CreateOnce, part_bytes
from apps.storage.enforcement import put_request


class PresignedGrants:
    """Grants for one bucket under the address that containers use."""

    def __init__(
        self, signer: Any, bucket: str, uploads: CreateOnce, failures: Failures, lifetime_s: Callable[[], int]
    ) -> None:
        """`signer` is a boto3 client at the container's address: it signs and asks for nothing."""
        self._signer, self._bucket, self._uploads = signer, bucket, uploads
        self._failures, self._lifetime_s = failures, lifetime_s

    def upload(self, key: str, *, size_bytes: int, digest: str, mime: str) -> Grant:
        self._uploads.refuse_overwrite(key, size_bytes=size_bytes, digest=digest)
        if size_bytes > self._uploads.single_put_bytes:
            return self._parts(key, self._uploads.begin(key, mime=mime), size_bytes)
        expires_s, expires_at = self._expiry()
        url, headers = put_request(
            self._signer,
            self._bucket,
            key,
            size_bytes=size_bytes,
            digest=digest,
            mime=mime,
            expires_s=expires_s,
        )
        return Grant((SignedRequest("PUT", url, headers),), size_bytes, expires_at)

    def renew(self, key: str, grant: Grant, *, size_bytes: int, digest: str, mime: str) -> Grant:
        if grant.upload_id is None:
            return self.upload(key, size_bytes=size_bytes, digest=digest, mime=mime)
        return self._parts(key, grant.upload_id, size_bytes)

    def accept(self, key: str, grant: Grant, *, size_bytes: int, digest: str, etags: Sequence[str] = ()) -> None:
        made = False
        if grant.upload_id is not None:
            if len(etags) != len(grant.requests):
                raise UploadFailed(f"{key}: {len(etags)} of {len(grant.requests)} parts arrived")
            made = self._uploads.complete(key, grant.upload_id, etags)
        granted_at = grant.expires_at - s3_client.LIFETIMES_S[0]
        self._uploads.settle(key, size_bytes=size_bytes, digest=digest, since_s=time.time() - granted_at, made=made)

    def abandon(self, key: str, grant: Grant) -> None:
        if grant.upload_id is not None:
            with suppress(OperationError):
                self._uploads.abort(key, grant.upload_id)

    def download(self, key: str) -> SignedRequest:
        expires_s, _ = self._expiry()
        signer = self._signer
        with self._failures.told():
            url = signer.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=expires_s
            )
        return SignedRequest("GET", url, {})

    def _parts(self, key: str, upload_id: str, size_bytes: int) -> Grant:
        expires_s, expires_at = self._expiry()
        part = part_bytes(size_bytes, self._uploads.single_put_bytes)
        requests = tuple(
            self._part(key, upload_id, number, min(part, size_bytes - offset), expires_s)
            for number, offset in enumerate(range(0, size_bytes, part), 1)
        )
        return Grant(requests, part, expires_at, upload_id)

    def _part(self, key: str, upload_id: str, number: int, size_bytes: int, expires_s: int) -> SignedRequest:
        signer = self._signer
        with self._failures.told():
            url = signer.generate_presigned_url(
                "upload_part",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "UploadId": upload_id,
                    "PartNumber": number,
                    "ContentLength": size_bytes,
                },
                ExpiresIn=expires_s,
            )
        return SignedRequest("PUT", url, {"content-length": str(size_bytes)})

    def _expiry(self) -> tuple[int, float]:
        """Seconds from now, and the moment. Raises StorageFailed when the credentials are about to end."""
        try:
            with self._failures.told():
                expires_s = self._lifetime_s()
        except RuntimeError as exc:  # botocore's word for renewed credentials that have ended already
            raise self._ended() from exc
        if not expires_s:
            raise self._ended()
        return expires_s, time.time() + expires_s

    def _ended(self) -> StorageFailed:
        return StorageFailed("the temporary credentials of the bucket have ended", hint="log in again, then run again")
