"""Misuse that an S3 server must refuse: a lax server would make the tests of grants worth nothing."""

import base64
import hashlib
import time
from typing import Any, Final

import urllib3

from tests.integration.buckets import Bucket, Login

BODY: Final = b"the right body of a grant"
ALTERED: Final = b"a wrong body of this size"
REFUSALS: Final = {
    "as it should be": 200,
    "anonymous PUT": 403,
    "anonymous GET": 403,
    "anonymous listing": 403,
    "wrong secret in a header": 403,
    "wrong secret in a URL": 403,
    "unknown access key": 403,
    "known, but not allowed": 403,
    "another key": 403,
    "another method": 403,
    "another content type": 403,
    "a larger body": 403,
    "an altered body": 400,
    "a signed header left out": 403,
    "a second PUT": 412,
    "a second PUT without If-None-Match": 403,
    "expired": 403,
}
"""What each misuse is answered with."""


def answers(bucket: Bucket) -> dict[str, int]:
    """How the server answers each of REFUSALS; takes 2 s, for one of them has to expire."""
    return _Misuse(bucket).answers()


class _Misuse:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=30))
        self._headers = {
            "content-type": "text/plain",
            "content-length": str(len(BODY)),
            "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(BODY).digest()).decode(),
            "if-none-match": "*",
        }

    def answers(self) -> dict[str, int]:
        assert len(BODY) == len(ALTERED)
        expired, until = self._grant("expired", expires_s=1), time.monotonic() + 2.1
        found = {**self._of_clients(), **self._of_grants()}
        time.sleep(max(0.0, until - time.monotonic()))
        found["expired"] = self._put(expired)
        self._http.clear()
        return found

    def _of_clients(self) -> dict[str, int]:
        place = f"{self._bucket.server.endpoint}/{self._bucket.name}"
        owner = self._bucket.server.owner
        self._bucket.put("there", b"there")
        return {
            "anonymous PUT": self._http.request("PUT", f"{place}/anonymous", body=b"x").status,
            "anonymous GET": self._http.request("GET", f"{place}/there").status,
            "anonymous listing": self._http.request("GET", f"{place}?list-type=2").status,
            "wrong secret in a header": self._client_put(Login(access_key=owner.access_key)),
            "wrong secret in a URL": self._put(self._grant("wrong", login=Login(access_key=owner.access_key))),
            "unknown access key": self._put(self._grant("unknown", login=Login())),
            "known, but not allowed": self._client_put(self._bucket.server.stranger),
        }

    def _of_grants(self) -> dict[str, int]:
        first = self._grant("first")
        without = {name: value for name, value in self._headers.items() if name != "if-none-match"}
        unsummed = {name: value for name, value in self._headers.items() if name != "x-amz-checksum-sha256"}
        longer = {**self._headers, "content-length": str(len(BODY) + 1)}
        return {
            "as it should be": self._put(first),
            "another key": self._put(self._grant("granted").replace("/granted?", "/other?")),
            "another method": self._http.request("DELETE", first).status,
            "another content type": self._put(self._grant("type"), headers=self._headers | {"content-type": "a/b"}),
            "a larger body": self._put(self._grant("larger"), BODY + b"x", longer),
            "an altered body": self._put(self._grant("altered"), ALTERED),
            "a signed header left out": self._put(self._grant("unsummed"), headers=unsummed),
            "a second PUT": self._put(first),
            "a second PUT without If-None-Match": self._put(first, headers=without),
        }

    def _grant(self, key: str, *, expires_s: int = 60, login: Login | None = None) -> str:
        parameters: dict[str, Any] = {
            "Bucket": self._bucket.name,
            "Key": key,
            "ContentType": self._headers["content-type"],
            "ContentLength": len(BODY),
            "ChecksumSHA256": self._headers["x-amz-checksum-sha256"],
            "IfNoneMatch": "*",
        }
        client = self._bucket.server.client(login)
        url: str = client.generate_presigned_url("put_object", Params=parameters, ExpiresIn=expires_s)
        return url

    def _put(self, url: str, body: bytes = BODY, headers: dict[str, str] | None = None) -> int:
        return self._http.request("PUT", url, body=body, headers=headers or self._headers).status

    def _client_put(self, login: Login) -> int:
        client = self._bucket.server.client(login)
        try:
            client.put_object(Bucket=self._bucket.name, Key="refused", Body=b"x")
        except client.exceptions.ClientError as exc:
            return int(exc.response["ResponseMetadata"]["HTTPStatusCode"])
        return 200
