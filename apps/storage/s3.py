"""The backend `s3`: AWS, and any S3-compatible service by AWS_ENDPOINT_URL_S3."""

from collections.abc import Iterator
from typing import Any

from apps.settings import BucketSettings
from apps.storage import bucket_errors, s3_client
from apps.storage.base import StoredObject
from apps.storage.bucket import BucketBackend, Local
from apps.storage.bucket_errors import Failures
from apps.storage.enforcement import digest_of
from apps.storage.objects import Fetched, Head, age_s


def backend(bucket: BucketSettings, local: Local) -> BucketBackend:
    objects = S3Objects(bucket)
    return BucketBackend(bucket, objects, local, session=objects.session)


class S3Objects:
    """One bucket, read by boto3."""

    name = "s3"

    def __init__(self, bucket: BucketSettings) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        self._bucket = bucket.name
        self.failures = Failures(
            bucket=bucket.name,
            endpoint=bucket.endpoint or f"AWS ({bucket.region})",
            absent="make it: terraform/ has it ready, and it is never made by a run; or correct ARTIFACTS_BUCKET",
            credentials="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            address="AWS_ENDPOINT_URL_S3" if bucket.endpoint else "this machine's network",
            errors=(BotoCoreError, ClientError),
        )
        with self.failures.told():
            self.session = s3_client.session(bucket)
            self._client = s3_client.client(self.session, bucket, endpoint=bucket.endpoint)
            self._checker = s3_client.client(self.session, bucket, endpoint=bucket.endpoint, quick=True)

    def check(self) -> None:
        """A listing, because a HEAD's refusal says nothing of why."""
        client = self._checker
        with self.failures.told():
            answer = client.list_objects_v2(Bucket=self._bucket, Prefix="artifacts/", MaxKeys=1)
        if not answer.get("Name"):
            raise self.failures.foreign()

    def head(self, key: str) -> Head | None:
        client = self._client
        try:
            answer = client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        except self.failures.errors as exc:
            if bucket_errors.code_of(exc) in bucket_errors.NOT_THERE:
                return None
            raise self.failures.translated(exc) from exc
        if not answer.get("ETag"):
            raise self.failures.foreign()
        now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return Head(
            int(answer["ContentLength"]),
            digest_of(answer.get("ChecksumSHA256")),
            str(answer["ETag"]),
            age_s(now, answer.get("LastModified")),
        )

    def fetch(self, key: str, *, offset: int = 0, etag: str | None = None) -> Fetched | None:
        client = self._client
        wanted: dict[str, Any] = {"Range": f"bytes={offset}-"} if offset else {}
        if etag:
            wanted["IfMatch"] = etag
        try:
            answer = client.get_object(Bucket=self._bucket, Key=key, **wanted)
        except self.failures.errors as exc:
            if bucket_errors.code_of(exc) in bucket_errors.NOT_THERE:
                return None
            raise self.failures.translated(exc) from exc
        return Fetched(answer["Body"], str(answer.get("ETag", "")))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        client, page = self._client, {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            with self.failures.told():
                answer = client.list_objects_v2(**page)
            for found in answer.get("Contents", []):
                yield StoredObject(found["Key"], found["Size"])
            if not answer.get("IsTruncated"):
                return
            page["ContinuationToken"] = answer["NextContinuationToken"]

    def delete(self, key: str) -> None:
        client = self._client
        with self.failures.told():
            client.delete_object(Bucket=self._bucket, Key=key)
