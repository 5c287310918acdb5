"""What a bucket's server enforces of a signed upload: proven by misuse, once, and remembered."""

import base64
import hashlib
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from apps.errors import StorageFailed
from apps.storage import s3_client
from apps.storage.bucket_errors import Failures

_BODY: Final = b"a body that was announced"
_ALTERED: Final = b"another one of equal size"


class Enforced(NamedTuple):
    """What a server was seen to do."""

    digest: bool
    """It refuses a body that is not of the signed SHA-256."""
    once: bool
    """It refuses to overwrite where If-None-Match is signed."""


class Proofs(Protocol):
    """What is remembered of servers, by endpoint and bucket."""

    def proof(self, place: str) -> Mapping[str, Any] | None: ...

    def record_proof(self, place: str, proof: Mapping[str, Any]) -> None: ...


class Enforcement:
    """What one bucket's server enforces; asked of it when first needed, unless it is remembered."""

    def __init__(self, client: Any, bucket: str, proofs: Proofs, failures: Failures, ca_file: str | None) -> None:
        self._client, self._bucket, self._proofs, self._failures = client, bucket, proofs, failures
        self._ca_file = ca_file
        self._lock, self._known = threading.Lock(), None

    _known: Enforced | None

    def enforced(self) -> Enforced:
        """Raises StorageFailed when the server takes not even what it should."""
        with self._lock:
            if self._known is None:
                self._known = self._remembered() or self._prove()
            return self._known

    @property
    def _place(self) -> str:
        return f"{self._client.meta.endpoint_url}/{self._bucket}"

    def _remembered(self) -> Enforced | None:
        proof = self._proofs.proof(self._place)
        return Enforced(bool(proof.get("digest")), bool(proof.get("once"))) if proof else None

    def _prove(self) -> Enforced:
        found = self._try()
        if found.digest:  # a server that does not is asked again by the next run: it may be a newer one
            self._proofs.record_proof(self._place, found._asdict())
        return found

    def _try(self) -> Enforced:
        key = f"artifacts/.probe-{secrets.token_hex(8)}"
        altered = self._put(f"{key}-altered", _ALTERED)
        first = self._put(key, _BODY)
        second = self._put(key, _BODY)
        for name, status in ((key, first), (f"{key}-altered", altered)):
            if _taken(status):
                self._remove(name)
        if not _taken(first):
            # A listing follows a redirect to the bucket's region; a signed URL is for one region.
            elsewhere = "set ARTIFACTS_REGION to the bucket's region"
            refused = f"look at {self._failures.credentials}, and at what they may do there"
            raise StorageFailed(
                f"the bucket {self._bucket!r} at {self._failures.endpoint} refuses a signed upload (status {first})",
                hint=elsewhere if first in (301, 307, 400) else refused,
            )
        return Enforced(digest=400 <= altered < 500, once=second == 412)

    def _put(self, key: str, body: bytes) -> int:
        """The status of a signed upload for _BODY that sends `body`."""
        url, headers = put_request(
            self._client,
            self._bucket,
            key,
            size_bytes=len(_BODY),
            digest=f"sha256:{hashlib.sha256(_BODY).hexdigest()}",
            mime="application/octet-stream",
            expires_s=60,
        )
        return self._send(url, headers, body)

    def _send(self, url: str, headers: dict[str, str], body: bytes) -> int:
        from botocore.awsrequest import AWSRequest
        from botocore.httpsession import URLLib3Session
        from botocore.utils import get_environ_proxies

        session = URLLib3Session(
            verify=self._ca_file or True,
            proxies=get_environ_proxies(url),
            timeout=(s3_client.CONNECT_S, s3_client.READ_S),
        )
        try:
            request = AWSRequest(method="PUT", url=url, headers=headers, data=body).prepare()
            return int(session.send(request).status_code)
        except self._failures.errors as exc:
            raise self._failures.translated(exc) from None  # in its words is the signed URL: --traceback shows them
        finally:
            session.close()

    def _remove(self, key: str) -> None:
        client = self._client
        with suppress(StorageFailed), self._failures.told():  # what it told is known already
            client.delete_object(Bucket=self._bucket, Key=key)


def _taken(status: int) -> bool:
    return 200 <= status < 300


def put_request(
    signer: Any, bucket: str, key: str, *, size_bytes: int, digest: str, mime: str, expires_s: int
) -> tuple[str, dict[str, str]]:
    """URL and headers of an upload of exactly this, which overwrites nothing: all of it is signed."""
    checksum = checksum_of(digest)
    url = signer.generate_presigned_url(
        "put_object",
        Params={
            "Bucket": bucket,
            "Key": key,
            "ContentLength": size_bytes,
            "ContentType": mime,
            "ChecksumSHA256": checksum,
            "IfNoneMatch": "*",
        },
        ExpiresIn=expires_s,
    )
    headers = {
        "content-length": str(size_bytes),
        "content-type": mime,
        "x-amz-checksum-sha256": checksum,
        "if-none-match": "*",
    }
    return url, headers


def checksum_of(digest: str) -> str:
    """`sha256:` + hex as S3 writes it: base64."""
    return base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()


def digest_of(checksum: str | None) -> str | None:
    """The reverse; None for no checksum, and for one that is of a multipart upload's parts (`…-3`)."""
    if not checksum or "-" in checksum:
        return None
    return f"sha256:{base64.b64decode(checksum).hex()}"
