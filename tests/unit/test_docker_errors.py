"""What the Docker Engine says, in its several dialects, and what it means to a user."""

from types import SimpleNamespace

import docker.errors
import pytest
import requests.exceptions
import urllib3.exceptions

from apps.errors import (
    EngineFailed,
    ImageNotFound,
    ImagePullFailed,
    ImageRegistryFailed,
    OperationError,
    PushFailed,
    RuntimeFailed,
    Unauthorized,
)
from apps.processors.adapters.base import NameTaken, PortTaken
from apps.processors.adapters.docker_errors import Conflict, Gone, pull_failure, push_failure, translate
from apps.processors.reference import ImageReference

URL = "unix:///var/run/docker.sock"
IMAGE = ImageReference("ghcr.io/org/image", "sha256:" + "a" * 64)


def answered(status: int, text: str) -> docker.errors.APIError:
    return docker.errors.APIError("", response=SimpleNamespace(status_code=status), explanation=text)


# dockerd 20 to 29, Docker Desktop and podman, word by word.
@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (409, 'Conflict. The container name "/x" is already in use by container "a1". You have to remove', NameTaken),
        (500, 'creating container storage: the container name "x" is already in use by a1. You have to', NameTaken),
        (500, "driver failed programming external connectivity on endpoint x (a1): Bind for 127.0.0.1:18000 failed: "
              "port is already allocated", PortTaken),
        (500, "driver failed programming external connectivity on endpoint x (a1): failed to bind port "
              "127.0.0.1:18000/tcp: Error starting userland proxy: listen tcp4 127.0.0.1:18000: bind: address "
              "already in use", PortTaken),
        (500, "Ports are not available: exposing port TCP 127.0.0.1:18000 -> 0.0.0.0:0: listen tcp", PortTaken),
        (404, "No such image: x:1", ImageNotFound),
        (404, "x:1: image not known", ImageNotFound),
        (404, "image with reference x was found but does not match the specified platform: wanted linux/arm64",
         ImageNotFound),
        (404, "image with reference x was found but does not provide the specified platform (linux/arm64)",
         ImageNotFound),
        (404, "No such container: a1", Gone),
        (404, "get x-scratch: no such volume", Gone),
        (409, "removal of container a1 is already in progress", Conflict),
        (409, "remove x-scratch: volume is in use - [a1]", Conflict),
        (500, 'could not select device driver "" with capabilities: [[gpu]]', EngineFailed),
        (500, "failed to create shim task: write /var/lib: no space left on device", EngineFailed),
        (400, 'failed to create task for container: exec: "/absent": stat /absent: no such file', RuntimeFailed),
        (500, "something never heard of", EngineFailed),
    ],
)  # fmt: skip
def test_an_answer_becomes_the_error_that_it_means(status: int, text: str, error: type[Exception]) -> None:
    found = translate(answered(status, text), "start container x", URL)

    assert type(found) is error
    assert text in str(found)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "runtime.gpu"),
        ("no space left on device", "docker system df"),
    ],
)
def test_a_hint_says_what_to_do(text: str, hint: str) -> None:
    found = translate(answered(500, text), "start container x", URL)

    assert isinstance(found, EngineFailed)
    assert hint in found.hint
    assert found.message == f"docker could not start container x: {text}"


def aborted(cause: OSError) -> Exception:
    """As requests and urllib3 wrap what the socket said."""
    return requests.exceptions.ConnectionError(urllib3.exceptions.ProtocolError("Connection aborted.", cause))


def test_a_permission_lost_meanwhile_is_told_from_an_engine_that_went_away() -> None:
    refused = translate(aborted(PermissionError(13, "Permission denied")), "list containers", URL)
    gone = translate(aborted(FileNotFoundError(2, "No such file or directory")), "list containers", URL)

    assert isinstance(refused, EngineFailed)
    assert isinstance(gone, EngineFailed)
    assert refused.message == f"no permission to use the Docker Engine at {URL}"
    assert "usermod -aG docker" in refused.hint
    assert gone.message == f"no Docker Engine answers at {URL}: No such file or directory"
    assert "LOCAL_ENGINE=process" in gone.hint


def test_the_sdk_wrapping_it_once_more_changes_nothing() -> None:
    wrapped = docker.errors.DockerException("Error while fetching server API version")
    wrapped.__cause__ = aborted(ConnectionRefusedError(111, "Connection refused"))

    found = translate(wrapped, "say its version", URL)

    assert isinstance(found, EngineFailed)
    assert found.message == f"no Docker Engine answers at {URL}: Connection refused"


def test_a_connection_that_breaks_without_a_reason_is_the_engines_failure() -> None:
    found = translate(requests.exceptions.ChunkedEncodingError("Connection broken"), "read the logs of x", URL)

    assert type(found) is EngineFailed
    assert found.message == "docker could not read the logs of x: Connection broken"


def test_no_answer_in_time_says_what_was_asked() -> None:
    found = translate(requests.exceptions.ReadTimeout(TimeoutError("timed out")), "start container x", URL)

    assert isinstance(found, EngineFailed)
    assert found.message == f"the Docker Engine at {URL} took too long to start container x"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"manifest for {IMAGE} not found: manifest unknown: manifest unknown", ImageNotFound),
        (f'failed to resolve reference "{IMAGE}": {IMAGE}: not found', ImageNotFound),
        ("no match for platform in manifest: not found", ImageNotFound),
        ("no matching manifest for linux/arm64 in the manifest list entries", ImageNotFound),
        ("pull access denied for x, repository does not exist or may require 'docker login'", Unauthorized),
        ('Head "https://ghcr.io/v2/org/image/manifests/x": unauthorized', Unauthorized),
        ("failed to authorize: failed to fetch oauth token: unexpected status: 403 Forbidden", Unauthorized),
        ('Get "https://ghcr.io/v2/": no basic auth credentials', Unauthorized),
        ('Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io: no such host', ImagePullFailed),
        ('Get "https://ghcr.io/v2/": x509: certificate signed by unknown authority', ImagePullFailed),
        ('Get "https://ghcr.io/v2/": net/http: TLS handshake timeout', ImagePullFailed),
        ("toomanyrequests: You have reached your unauthenticated pull rate limit", ImagePullFailed),
        ("http: server gave HTTP response to HTTPS client", ImagePullFailed),
        ("unexpected status from HEAD request: 500 Internal Server Error", ImagePullFailed),
        ("write /var/lib/docker/tmp/x: no space left on device", EngineFailed),
    ],
)
def test_a_failed_pull_becomes_the_error_that_it_means(text: str, error: type[OperationError]) -> None:
    found = pull_failure(text, IMAGE)

    assert type(found) is error
    assert found.message == f"can't pull {IMAGE}: {text}"
    assert found.hint


def test_a_refused_pull_names_the_login_to_make() -> None:
    assert pull_failure("unauthorized", IMAGE).hint == "docker login ghcr.io"


HEX = "403405507" * 7 + "e"
UPLOAD = "https://ghcr.io/v2/org/image/blobs/uploads/5173892b"
PUT = f'failed commit on ref "layer-sha256:{HEX}": unexpected status from PUT request to {UPLOAD}'
DO = f'failed to do request: Put "{UPLOAD}"'


# The containerd store, then the classic one, word by word.
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("push access denied, repository does not exist or may require authorization: server message: "
         "insufficient_scope: authorization failed", Unauthorized),
        ("push access denied, repository does not exist or may require authorization: authorization failed: no basic "
         "auth credentials", Unauthorized),
        (f"unexpected status from HEAD request to https://ghcr.io/v2/org/image/blobs/sha256:{HEX}: 401 Unauthorized",
         Unauthorized),
        (f"{PUT}: 403 Forbidden", Unauthorized),
        (f"unexpected status from POST request to {UPLOAD}: 405 Method Not Allowed", PushFailed),
        (f"{PUT}: 507 Insufficient Storage", PushFailed),
        (f"{PUT}: 500 Internal Server Error", PushFailed),
        (f"{PUT}: 418 I'm a teapot", PushFailed),
        ("failed to authorize: failed to fetch oauth token: unexpected status from POST request to "
         "https://ghcr.io/token: 503 Service Unavailable", ImageRegistryFailed),
        (f"{DO}: write tcp 127.0.0.1:1->127.0.0.1:2: use of closed network connection", ImageRegistryFailed),
        (f"{DO}: net/http: HTTP/1.x transport connection broken: unexpected EOF", ImageRegistryFailed),
        (f"{DO}: write: connection reset by peer", ImageRegistryFailed),
        (f"{DO}: dial tcp 127.0.0.1:1: connect: connection refused", ImageRegistryFailed),
        (f"{DO}: net/http: TLS handshake timeout", ImageRegistryFailed),
        (f"{DO}: tls: failed to verify certificate: x509: certificate signed by unknown authority",
         ImageRegistryFailed),
        (f"{DO}: http: server gave HTTP response to HTTPS client", ImageRegistryFailed),
        ("denied: requested access to the resource is denied", Unauthorized),
        ("unauthorized: authentication required", Unauthorized),
        ("unauthorized: incorrect username or password", Unauthorized),
        ("unsupported: The operation is unsupported.", PushFailed),
        ("received unexpected HTTP status: 500 Internal Server Error", PushFailed),
        ("received unexpected HTTP status: 503 Service Unavailable", ImageRegistryFailed),
    ],
)  # fmt: skip
def test_a_failed_push_becomes_the_error_that_it_means(text: str, error: type[OperationError]) -> None:
    found = push_failure(text, IMAGE.repository)

    assert type(found) is error
    assert found.message == f"can't push to {IMAGE.repository}: {text}"
    assert found.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("unauthorized: authentication required", "docker login ghcr.io"),
        ("x509: certificate signed by unknown authority", "/etc/docker/certs.d/ghcr.io/ca.crt"),
        ("http: server gave HTTP response to HTTPS client", "insecure-registries"),
        ("unexpected status: 507 Insufficient Storage", "make room at ghcr.io"),
        ("unexpected status: 500 Internal Server Error", "has ghcr.io room left?"),
        ("405 Method Not Allowed", "PROCESSOR_REPOSITORY_PREFIX"),
        ("unexpected EOF", "the same command again sends only what is missing"),
    ],
)
def test_the_hint_of_a_failed_push_says_what_to_do(text: str, hint: str) -> None:
    assert hint in push_failure(text, IMAGE.repository).hint


@pytest.mark.parametrize("where", ['Put "{}": EOF', "request to {}: 500 Internal Server Error", "request to {}"])
def test_what_lets_anybody_upload_stays_out_of_the_message(where: str) -> None:
    found = push_failure(where.format(f"{UPLOAD}?_state=open%3Dsesame&digest=sha256%3A{HEX}"), IMAGE.repository)

    assert found.message == f"can't push to {IMAGE.repository}: {where.format(UPLOAD)}"
