"""boto3 clients for one bucket: for what we ask of it, and for URLs that a container can use."""

import os
import ssl
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from apps.errors import ConfigurationError
from apps.settings import BucketSettings

CONNECT_S: Final = 3
READ_S: Final = 60
CHECK_READ_S: Final = 10
CHECK_ATTEMPTS: Final = 2
"""A bucket that is not to be had is told in seconds."""
ATTEMPTS: Final = 5
"""With waits of up to 1, 2, 4 and 8 s between them."""
LIFETIMES_S: Final = (900, 600, 300, 60)
"""How long a grant may be good for: 15 minutes, or less where the credentials end before."""


def session(bucket: BucketSettings) -> Any:
    """Credentials: those of the settings, else the standard AWS chain (variables, profile, role)."""
    import boto3
    import botocore.session

    # The profile comes from the settings, where an empty variable is none; with keys of its own, a bucket needs none.
    variables: dict[str, Any] = {"profile": (None, None, None if bucket.access_key else bucket.profile, None)}
    if bucket.access_key:
        variables |= dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    return boto3.Session(
        botocore_session=botocore.session.Session(session_vars=variables),
        aws_access_key_id=bucket.access_key,
        aws_secret_access_key=bucket.secret_key,
        region_name=bucket.region,
    )


def client(session: Any, bucket: BucketSettings, *, endpoint: str | None, quick: bool = False) -> Any:
    """A client that asks for no checksum that a server might not know, and waits for nothing for ever.

    A `quick` one gives up in seconds.
    """
    from botocore.config import Config

    if bucket.ca_file and not (endpoint or "").startswith("http:"):
        trust(bucket.ca_file)  # botocore's own words for a file that is none don't name it
    # `auto` would sign URLs for AWS's global name, which redirects to the region's, for a day or so after a bucket was
    # made; and the certificate of `*.s3…` is for no name with a dot.
    addressing = "path" if endpoint or "." in bucket.name else "virtual"
    config = Config(
        signature_version="s3v4",  # by default it presigns with SigV2, which signs neither size nor digest
        s3={"addressing_style": addressing},
        retries={"mode": "standard", "total_max_attempts": CHECK_ATTEMPTS if quick else ATTEMPTS},
        connect_timeout=CONNECT_S,
        read_timeout=CHECK_READ_S if quick else READ_S,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=16,
    )
    return session.client("s3", endpoint_url=endpoint, config=config, verify=bucket.ca_file)


def trust(ca_file: str | None) -> ssl.SSLContext:
    """Whom to believe to be a server: those in the file, else the system's. Raises ConfigurationError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        said = "it holds no certificates" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigurationError(
            f"the environment names {ca_file} for certificates: {said}",
            hint="name a file of certificates in PEM in SSL_CERT_FILE",
        ) from exc


def container_endpoint(bucket: BucketSettings, loopback: str | None) -> str | None:
    """The address by which a container reaches the bucket; None where that is AWS's own."""
    if bucket.container_endpoint or bucket.endpoint is None or loopback is None:
        return bucket.container_endpoint or bucket.endpoint
    parts = urlsplit(bucket.endpoint)
    return f"{parts.scheme}://{loopback}{_port(parts)}" if _is_loopback(parts.hostname or "") else bucket.endpoint


def _port(parts: SplitResult) -> str:
    return f":{parts.port}" if parts.port else ""


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.") or host.endswith(".localhost")


def lifetime_s(session: Any) -> int:
    """How long what is signed now may be good for; 0 when the credentials are about to end.

    Raises what botocore raises when they can't be had.
    """
    from botocore.exceptions import NoCredentialsError

    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    credentials.get_frozen_credentials()  # renews those that end soon
    ends_within = getattr(credentials, "refresh_needed", lambda _: False)
    return next((seconds for seconds in LIFETIMES_S if not ends_within(seconds)), 0)
