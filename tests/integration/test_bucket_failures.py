"""How a bucket that can't be used is told, in bounded time; lines that break; servers that enforce less."""

import hashlib
import os
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import urllib3

from apps.errors import OperationError, OutputExists, StorageFailed, UploadFailed
from apps.processors.state import LocalState
from apps.settings import Settings
from apps.storage import s3_client, select
from apps.storage.base import Grant, StorageBackend
from apps.storage.bucket import Local
from apps.storage.enforcement import Enforced, Enforcement
from tests.integration.buckets import Bucket, BucketServer, Login, bucket_server
from tests.integration.middlemen import Answer, Asked, line, middleman
from tests.integration.registries import free_port

pytestmark = pytest.mark.bucket

MIB = 1024**2
KEY = "artifacts/outputs/test/a"
Make = Callable[..., StorageBackend]


@pytest.fixture(params=["minio", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A backend over a bucket; `login` and `address` in the place of the right ones."""
    (tmp_path / "state").mkdir()

    def make(bucket: Bucket, *, login: Login | None = None, address: str | None = None) -> StorageBackend:
        variables = bucket.variables(kind, login)
        if address:
            right = bucket.server.address
            variables = {name: value.replace(right, address) for name, value in variables.items()}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings = Settings.read(variables)
        local = Local(tmp_path / "spool", LocalState(tmp_path / "state"), 5 * MIB)
        return select.backend(kind, artifacts_root=tmp_path, bucket=settings.bucket, local=local)

    return make


def failed(backend: StorageBackend) -> OperationError:
    with pytest.raises(StorageFailed) as caught:
        backend.check()
    return caught.value


def use(backend: StorageBackend) -> None:
    backend.check()
    put(backend, b"data")


def put(backend: StorageBackend, data: bytes, key: str = KEY) -> None:
    writer = backend.create(key, mime="text/plain")
    try:
        writer.write(data)
        writer.commit(size_bytes=len(data), digest=digest_of(data))
    finally:
        writer.abort()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def granted(backend: StorageBackend, data: bytes) -> Grant:
    grants = backend.grants(None)
    assert grants
    return grants.upload(KEY, size_bytes=len(data), digest=digest_of(data), mime="text/plain")


def send(grant: Grant, body: bytes) -> int:
    (request,) = grant.requests
    with urllib3.PoolManager(retries=False, timeout=30) as http:
        return http.request(request.method, request.url, body=body, headers=dict(request.headers)).status


def accept(backend: StorageBackend, grant: Grant, data: bytes) -> None:
    grants = backend.grants(None)
    assert grants
    grants.accept(KEY, grant, size_bytes=len(data), digest=digest_of(data))


# What can't be used


def test_minio_makes_its_bucket_and_s3_says_who_does(bucket_server: BucketServer, kind: str, make: Make) -> None:
    absent = Bucket(bucket_server, "not-made-yet")
    backend = make(absent)

    if kind == "minio":
        backend.check()
        backend.check()
        put(backend, b"data")
        assert absent.read(KEY) == b"data"
        absent.remove()
    else:
        error = failed(backend)
        assert error.message == f"the bucket 'not-made-yet' at {bucket_server.endpoint} is not there"
        assert "terraform/" in error.hint
        assert error.details["code"] == "NoSuchBucket"


@pytest.mark.parametrize("login", ["secret", "key", "stranger"])
def test_refused_credentials_are_told_without_showing_them(bucket: Bucket, kind: str, make: Make, login: str) -> None:
    owner = bucket.server.owner
    wrong = {"secret": Login(access_key=owner.access_key), "key": Login(), "stranger": bucket.server.stranger}[login]

    error = failed(make(bucket, login=wrong))

    assert "refuses the credentials" in error.message or "does not allow it" in error.message
    assert ("MINIO_STORAGE_ACCESS_KEY" if kind == "minio" else "AWS_ACCESS_KEY_ID") in error.hint
    assert wrong.secret_key not in str(error.words())


def test_a_store_that_is_not_there_is_told_in_seconds(bucket: Bucket, make: Make) -> None:
    began = time.monotonic()

    error = failed(make(bucket, address=f"127.0.0.1:{free_port()}"))

    assert error.message.endswith("does not answer: Connection refused")
    assert time.monotonic() - began < 8


def test_a_name_that_nobody_has_is_told(bucket: Bucket, make: Make) -> None:
    error = failed(make(bucket, address="no-such-host.invalid:9000"))

    assert "http://no-such-host.invalid:9000 does not answer: " in error.message


def test_a_store_that_says_nothing_is_not_waited_for(
    bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "CHECK_READ_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = failed(make(bucket, address=f"127.0.0.1:{silent.getsockname()[1]}"))

    assert error.message.endswith("does not answer: no answer in time")


@pytest.mark.parametrize("status", [HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_GATEWAY])
def test_what_is_no_s3_server_is_told(bucket: Bucket, make: Make, status: HTTPStatus) -> None:
    page = Answer(status, {"content-type": "text/html"}, b"<html>hello</html>")
    with middleman(bucket.server.address, answer=lambda _: page) as other:
        backend = make(bucket, address=other.address)
        with pytest.raises(StorageFailed):
            use(backend)


def test_a_bucket_that_goes_away_meanwhile_is_told_and_not_made_again(bucket_server: BucketServer, make: Make) -> None:
    bucket = bucket_server.make_bucket()
    backend = make(bucket)
    grant = granted(backend, b"data")
    bucket.remove()

    assert send(grant, b"data") == 404
    with pytest.raises(StorageFailed, match="is not there"):
        accept(backend, grant, b"data")
    with pytest.raises(StorageFailed, match="is not there"):
        put(backend, b"data")


def test_a_server_that_comes_back_is_waited_for(tmp_path: Path, make: Make) -> None:
    (tmp_path / "server").mkdir()
    with bucket_server(tmp_path / "server") as server:
        bucket = server.make_bucket()
        backend = make(bucket)
        put(backend, b"data")
        server.kill()
        with pytest.raises(StorageFailed, match="does not answer"):
            backend.check()
        server.start()

        backend.check()
        assert backend.digest(KEY) == (4, digest_of(b"data"))


# Lines that break


def test_reading_goes_on_where_the_line_was_cut(bucket: Bucket, make: Make) -> None:
    data = os.urandom(12 * MIB)
    bucket.put(KEY, data)
    with line(bucket.server.address) as cut:
        backend = make(bucket, address=cut.address)
        cut.fault("cut", after_bytes=5 * MIB, upward=False, connections=1)

        with backend.open(KEY) as file:
            assert file.read() == data


def test_a_line_that_is_always_cut_ends_in_an_error(
    bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(KEY, os.urandom(12 * MIB))
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    with line(bucket.server.address) as cut:
        backend = make(bucket, address=cut.address)
        with backend.open(KEY) as file:
            cut.fault("cut", after_bytes=0, upward=False)
            with pytest.raises(StorageFailed, match=r"the connection was cut|does not answer"):
                file.read()


def test_an_object_that_changes_while_it_is_read_is_never_mixed(bucket: Bucket, make: Make) -> None:
    bucket.put(KEY, bytes(12 * MIB))
    with line(bucket.server.address) as cut:
        backend = make(bucket, address=cut.address)
        cut.fault("cut", after_bytes=5 * MIB, upward=False, connections=1)
        with backend.open(KEY) as file:
            file.read(MIB)
            bucket.put(KEY, b"\x01" * (12 * MIB))

            with pytest.raises(StorageFailed):
                file.read()


def test_a_put_whose_answer_was_lost_is_success(bucket: Bucket, make: Make) -> None:
    data, lost = os.urandom(MIB), list[str]()

    def lose(asked: Asked, answer: Answer) -> Answer:
        if asked.method == "PUT" and KEY in asked.path and answer.status == 200 and not lost:
            lost.append(asked.path)
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, {}, b"")
        return answer

    with middleman(bucket.server.address, alter=lose) as between:
        put(make(bucket, address=between.address), data)

    assert lost
    assert bucket.read(KEY) == data


# Servers that enforce less


@pytest.fixture
def lax(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was seen to enforce nothing."""
    monkeypatch.setattr(Enforcement, "_prove", lambda _: Enforced(digest=False, once=False))


@pytest.mark.usefixtures("lax")
def test_what_is_not_enforced_is_read_once(bucket: Bucket, make: Make) -> None:
    backend = make(bucket)
    grant = granted(backend, b"data")
    bucket.put(KEY, b"DATA")  # as a server would store it that checks nothing

    with pytest.raises(UploadFailed, match="arrived"):
        accept(backend, grant, b"data")

    bucket.put(KEY, b"data")
    accept(backend, grant, b"data")
    assert backend.stat(KEY) == (4, None)
    assert backend.digest(KEY) == (4, digest_of(b"data"))


@pytest.mark.usefixtures("lax")
def test_what_is_there_is_looked_for_before_a_server_that_would_overwrite_it(bucket: Bucket, make: Make) -> None:
    backend = make(bucket)
    bucket.put(KEY, b"first")

    with pytest.raises(OutputExists):
        put(backend, b"other")
    with pytest.raises(OutputExists):
        granted(backend, b"other")

    put(backend, b"first")
    assert granted(backend, b"first")
    assert bucket.read(KEY) == b"first"


@pytest.mark.usefixtures("lax")
def test_what_was_there_before_the_grant_is_told_from_what_arrived(bucket: Bucket, make: Make) -> None:
    backend = make(bucket)
    bucket.put(KEY, b"first")
    later = Grant((), 5, expires_at=time.time() + 900 + 60)  # as if it were given in a minute

    with pytest.raises(UploadFailed):
        accept(backend, Grant((), 5, expires_at=time.time() + 900 - 60), b"other")
    with pytest.raises(OutputExists):
        accept(backend, later, b"other")


def test_a_server_that_refuses_signed_uploads_is_told(
    bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Enforcement, "_send", lambda *_: 403)

    with pytest.raises(StorageFailed, match=r"refuses a signed upload \(status 403\)"):
        put(make(bucket), b"data")


@pytest.mark.parametrize(
    ("altered", "second", "found"),
    [
        (400, 412, Enforced(digest=True, once=True)),
        (200, 412, Enforced(digest=False, once=True)),
        (400, 200, Enforced(digest=True, once=False)),
        (200, 200, Enforced(digest=False, once=False)),
        (503, 412, Enforced(digest=False, once=True)),
    ],
)
def test_what_a_server_enforces_is_seen_by_misuse(
    tmp_path: Path, bucket: Bucket, altered: int, second: int, found: Enforced
) -> None:
    statuses, state = iter((altered, 200, second)), LocalState(tmp_path)

    class Asking(Enforcement):
        def _send(self, *_: Any) -> int:
            return next(statuses)

    settings = Settings.read(bucket.variables("minio")).bucket
    assert settings
    client = s3_client.client(s3_client.session(settings), settings, endpoint=settings.endpoint)
    failures = select.backend(
        "minio", artifacts_root=tmp_path, bucket=settings, local=Local(tmp_path / "spool", state)
    )._objects.failures  # type: ignore[attr-defined]

    assert Asking(client, bucket.name, state, failures, None).enforced() == found
    kept = state.proof(f"{bucket.server.endpoint}/{bucket.name}")
    assert kept == (found._asdict() if found.digest else None)  # what is not proven is asked again


@pytest.mark.parametrize("conflicts", [1, 2])
def test_a_writer_that_met_another_tries_again(bucket: Bucket, make: Make, conflicts: int) -> None:
    """SeaweedFS answers 412 at once; S3 says 409 while it does not know yet who was first."""
    left = [conflicts]
    words = b"<Error><Code>ConditionalRequestConflict</Code><Message>conflict</Message></Error>"

    def answer(asked: Asked) -> Answer | None:
        if asked.method == "PUT" and KEY in asked.path and left[0]:
            left[0] -= 1
            return Answer(HTTPStatus.CONFLICT, {"content-type": "application/xml"}, words)
        return None

    with middleman(bucket.server.address, answer=answer) as between:
        put(make(bucket, address=between.address), b"data")

    assert (left, bucket.read(KEY)) == ([0], b"data")
