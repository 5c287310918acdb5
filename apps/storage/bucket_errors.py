"""What a bucket's SDKs raise, in our words: the only place that knows their exceptions and codes."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from apps.errors import ConfigurationError, OperationError, StorageFailed

_ABSENT: Final = frozenset({"NoSuchBucket"})
_REFUSED: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"}
)
_ELSEWHERE: Final = frozenset(
    {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_SKEWED: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_FULL: Final = frozenset({"507", "XMinioStorageFull", "InsufficientStorage", "QuotaExceeded"})
_MISSING: Final = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})
_UNKNOWN: Final = frozenset({"CredentialRetrievalError", "TokenRetrievalError", "UnauthorizedSSOTokenError"})
_CUT_TLS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

NOT_THERE: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchObject"})
TAKEN: Final = frozenset({"412", "PreconditionFailed"})
CONFLICT: Final = frozenset({"409", "ConditionalRequestConflict"})
NO_UPLOAD: Final = frozenset({"NoSuchUpload"})
BAD_PARTS: Final = frozenset(
    {"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "BadDigest", "XAmzContentChecksumMismatch"}
)


class Failures(NamedTuple):
    """How the failures of one bucket are told."""

    bucket: str
    endpoint: str
    absent: str
    """What to do when there is no such bucket."""
    credentials: str
    """Which variables hold them."""
    address: str
    """Which variable holds the endpoint."""
    errors: tuple[type[Exception], ...]
    """What the SDK raises."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """What the SDK raises → ConfigurationError or StorageFailed."""
        try:
            yield
        except self.errors as exc:
            raise self.translated(exc) from exc

    def translated(self, exc: Exception) -> OperationError:
        code, said = code_of(exc), _message(exc)
        details = {"bucket": self.bucket, "endpoint": self.endpoint, **({"code": code} if code else {})}
        if type(exc).__name__ in _MISSING:
            return ConfigurationError(
                f"no credentials for the bucket {self.bucket!r}: {said}", hint=f"set {self.credentials}"
            )
        if not code:
            return self._unanswered(exc, details)
        words, hint = self._words(code, said)
        return StorageFailed(f"the bucket {self.bucket!r} at {self.endpoint} {words}", hint=hint, details=details)

    def foreign(self) -> StorageFailed:
        """What answers is no S3 server: a proxy's page, say."""
        return StorageFailed(f"{self.endpoint} does not answer as S3 does", hint=f"look at {self.address}")

    def _words(self, code: str, said: str) -> tuple[str, str]:
        if code in _ABSENT:
            return "is not there", self.absent
        if code in _REFUSED:
            return f"refuses the credentials: {said} ({code})", f"look at {self.credentials}"
        if code in ("403", "AccessDenied", "AllAccessDisabled"):
            return f"does not allow it: {said} ({code})", f"look at {self.credentials}, and at what they may do there"
        if code in _ELSEWHERE:
            return f"is in another region: {said} ({code})", "set ARTIFACTS_REGION to the bucket's"
        if code in _SKEWED:
            return "has another time than this machine, by more than it allows", "set this machine's clock"
        if code in _FULL:
            return f"has no room left ({code})", "free some space there"
        return f"failed: {said} ({code})", "try again later; look at the storage server's log"

    def _unanswered(self, exc: Exception, details: dict[str, Any]) -> StorageFailed:
        if type(exc).__name__ in _UNKNOWN:
            return StorageFailed(
                f"the credentials can't be had: {_message(exc)}", hint=f"look at {self.credentials}", details=details
            )
        chain = list(_chain(exc))
        if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
            return StorageFailed(
                f"{self.endpoint} is not trusted: {_reason(exc)}",
                hint="name its authority's certificate in SSL_CERT_FILE",
                details=details,
            )
        if any(isinstance(each, ssl.SSLError) and not isinstance(each, _CUT_TLS) for each in chain):
            return StorageFailed(
                f"{self.endpoint} does not speak TLS as it should: {_reason(exc)}",
                hint=f"look at {self.address}",
                details=details,
            )
        return StorageFailed(
            f"{self.endpoint} does not answer: {_reason(exc)}",
            hint=f"look whether it runs, and at {self.address}",
            details=details,
        )


def code_of(exc: Exception) -> str:
    """S3's error code, or the status where a HEAD's answer has none; empty for what is no answer at all."""
    response: Any = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code") or response["ResponseMetadata"]["HTTPStatusCode"])
    code = getattr(exc, "code", None) or getattr(exc, "status_code", None) or getattr(exc, "_code", None)  # minio
    return str(code) if code else ""


def _message(exc: Exception) -> str:
    response: Any = getattr(exc, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Message") or "no reason given")
    return str(getattr(exc, "message", None) or exc)


def _reason(exc: Exception) -> str:
    """What an exception of the network comes from. Never its own words: they hold whole URLs, signed ones too."""
    chain = list(_chain(exc))
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            return each.verify_message or "its certificate is not valid"
    for each in chain:
        if isinstance(each, TimeoutError) or "Timeout" in type(each).__name__:
            return "no answer in time"
    for each in chain:
        if isinstance(each, ssl.SSLError) and each.reason:
            return each.reason.replace("_", " ").lower()
    for each in reversed(chain):
        if isinstance(each, OSError | socket.gaierror) and each.strerror:
            return each.strerror
    return "the connection was cut"


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while isinstance(exc, BaseException):
        yield exc
        exc = exc.__cause__ or exc.__context__ or getattr(exc, "reason", None)
