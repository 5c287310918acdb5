"""What every storage backend does, whichever it is: a folder, MinIO's client or boto3 on a real server."""

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from apps.errors import InvalidInputs, OutputExists, StorageFailed, UploadFailed
from apps.processors.state import LocalState
from apps.settings import Settings
from apps.storage import select
from apps.storage.artifacts import Artifacts
from apps.storage.base import Grants, SignedRequest, StorageBackend
from apps.storage.bucket import Local
from tests.integration.buckets import Bucket

MIB = 1024**2
PREFIX = "artifacts/outputs/test/"
BUCKETS = [pytest.param("minio", marks=pytest.mark.bucket), pytest.param("s3", marks=pytest.mark.bucket)]
Make = Callable[..., StorageBackend]


def made(folder: Path, variables: Mapping[str, str], *, single_put_bytes: int = 5 * MIB) -> StorageBackend:
    settings = Settings.read({"ARTIFACTS_ROOT": str(folder / "root"), **variables})
    local = Local(folder / "spool", LocalState(folder / "state"), single_put_bytes)
    return select.backend(
        settings.storage_backend, artifacts_root=settings.artifacts_root, bucket=settings.bucket, local=local
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path


@pytest.fixture(params=["filesystem", *BUCKETS])
def backend(request: pytest.FixtureRequest, folder: Path) -> Iterator[StorageBackend]:
    yield from of_kind(request, folder)


@pytest.fixture(params=BUCKETS)
def remote(request: pytest.FixtureRequest, folder: Path) -> Iterator[StorageBackend]:
    yield from of_kind(request, folder)


def of_kind(request: pytest.FixtureRequest, folder: Path) -> Iterator[StorageBackend]:
    variables = {}
    if request.param != "filesystem":
        bucket: Bucket = request.getfixturevalue("bucket")
        variables = bucket.variables(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        backend = made(folder, variables)
        backend.check()
        yield backend


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put(backend: StorageBackend, key: str, data: bytes, *, digest: str | None = None) -> None:
    writer = backend.create(key, mime="text/plain")
    try:
        for offset in range(0, len(data), MIB):
            writer.write(memoryview(data)[offset : offset + MIB])
        writer.commit(size_bytes=len(data), digest=digest or digest_of(data))
    finally:
        writer.abort()


def content(backend: StorageBackend, key: str) -> bytes:
    with backend.open(key) as file:
        return file.read()


# Relayed writes


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, 11 * MIB + 1], ids=["empty", "byte", "one", "parts"])
def test_what_was_committed_is_there(backend: StorageBackend, size_bytes: int) -> None:
    data = os.urandom(size_bytes)

    put(backend, f"{PREFIX}a", data)

    assert content(backend, f"{PREFIX}a") == data
    assert backend.digest(f"{PREFIX}a") == (size_bytes, digest_of(data))
    found = backend.stat(f"{PREFIX}a")
    assert found
    assert found.size_bytes == size_bytes
    assert found.digest in (None, digest_of(data))


def test_nothing_is_visible_before_the_commit_or_after_an_abort(backend: StorageBackend) -> None:
    writer = backend.create(f"{PREFIX}a", mime="text/plain")
    writer.write(b"data")

    assert backend.stat(f"{PREFIX}a") is None
    writer.abort()

    assert backend.stat(f"{PREFIX}a") is None
    assert list(backend.list(PREFIX)) == []


@pytest.mark.parametrize(("size_bytes", "digest"), [(3, digest_of(b"data")), (4, digest_of(b"other"))])
def test_a_write_of_other_than_was_announced_is_refused(backend: StorageBackend, size_bytes: int, digest: str) -> None:
    writer = backend.create(f"{PREFIX}a", mime="text/plain")
    writer.write(b"data")

    with pytest.raises(UploadFailed):
        writer.commit(size_bytes=size_bytes, digest=digest)
    writer.abort()

    assert backend.stat(f"{PREFIX}a") is None


@pytest.mark.parametrize("size_bytes", [5, 6 * MIB], ids=["one", "parts"])
def test_the_same_bytes_again_are_success_and_others_are_refused(backend: StorageBackend, size_bytes: int) -> None:
    first, other = os.urandom(size_bytes), os.urandom(size_bytes)
    put(backend, f"{PREFIX}a", first)

    put(backend, f"{PREFIX}a", first)
    with pytest.raises(OutputExists, match="exists already with other content"):
        put(backend, f"{PREFIX}a", other)

    assert content(backend, f"{PREFIX}a") == first


def test_of_many_writers_exactly_one_wins(backend: StorageBackend) -> None:
    barrier, datas = threading.Barrier(8), [f"writer {number}".encode() for number in range(8)]

    def write(data: bytes) -> bytes | None:
        barrier.wait()
        try:
            put(backend, f"{PREFIX}a", data)
        except OutputExists:
            return None
        return data

    with ThreadPoolExecutor(8) as pool:
        winners = [data for data in pool.map(write, datas) if data]

    assert winners == [content(backend, f"{PREFIX}a")]


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/./b", "a/\n", "a/" + "x" * 256])
def test_a_key_that_can_not_be_is_refused(backend: StorageBackend, key: str) -> None:
    for use in (lambda: backend.create(key, mime=""), lambda: backend.stat(key), lambda: backend.delete(key)):
        with pytest.raises(InvalidInputs):
            use()


@pytest.mark.parametrize("name", ["grüße 1.txt", "a+b&c=d?e#f", "100%25", "~('!*)", "日本/語", "a;b:c,d"])
def test_any_name_comes_back_as_it_was_given(backend: StorageBackend, name: str) -> None:
    put(backend, f"{PREFIX}{name}", b"data")

    assert content(backend, f"{PREFIX}{name}") == b"data"
    assert list(backend.list(PREFIX)) == [(f"{PREFIX}{name}", 4)]


# Reading, listing, removing


def test_an_absent_object_is_told(backend: StorageBackend) -> None:
    assert backend.stat(f"{PREFIX}no") is None
    assert backend.digest(f"{PREFIX}no") is None
    assert backend.read(f"{PREFIX}no", limit_bytes=10) is None
    with pytest.raises(StorageFailed, match="is not there"):
        backend.open(f"{PREFIX}no")
    backend.delete(f"{PREFIX}no")


def test_a_small_object_is_read_whole_and_a_larger_one_refused(backend: StorageBackend) -> None:
    put(backend, f"{PREFIX}a", b"0123456789")

    assert backend.read(f"{PREFIX}a", limit_bytes=10) == b"0123456789"
    with pytest.raises(StorageFailed, match="more than 9 bytes"):
        backend.read(f"{PREFIX}a", limit_bytes=9)


def test_a_listing_is_whole_and_sorted(backend: StorageBackend) -> None:
    names = ["z", "a/b", "a.b", "a-b", "a/c/d", *(f"n{number}" for number in range(5))]
    for name in names:
        put(backend, f"{PREFIX}{name}", name.encode())
    put(backend, "artifacts/outputs/test2", b"beside")

    assert list(backend.list(PREFIX)) == sorted((f"{PREFIX}{name}", len(name)) for name in names)


def test_what_is_removed_is_gone_and_may_be_written_again(backend: StorageBackend) -> None:
    put(backend, f"{PREFIX}a", b"first")
    put(backend, f"{PREFIX}b", b"stays")

    backend.delete(f"{PREFIX}a")

    assert [found.key for found in backend.list(PREFIX)] == [f"{PREFIX}b"]
    put(backend, f"{PREFIX}a", b"second")
    assert content(backend, f"{PREFIX}a") == b"second"


def test_receipt_and_index_are_told_apart_from_others(backend: StorageBackend) -> None:
    place = Artifacts(backend, f"/{PREFIX}")
    execution_id = "01a202df-5e07-7db6-94a6-b0bf2199220b"
    document = f'{{"schema":1,"execution_id":"{execution_id}"}}'.encode()

    assert place.previous(execution_id) is None
    place.finish(document, document)

    assert place.previous(execution_id) == document
    with pytest.raises(OutputExists, match="holds the outputs of execution"):
        place.previous("01a202df-5e07-7db6-94a6-000000000000")


def test_nothing_is_left_on_this_machine(remote: StorageBackend, folder: Path) -> None:
    put(remote, f"{PREFIX}a", os.urandom(MIB))

    assert list((folder / "spool").iterdir()) == []


# Grants


def test_a_folder_gives_no_grants(folder: Path) -> None:
    assert made(folder, {}).grants(None) is None


def granted(backend: StorageBackend) -> Grants:
    grants = backend.grants(None)
    assert grants
    return grants


def send(request: SignedRequest, body: bytes) -> Any:
    with urllib3.PoolManager(retries=False, timeout=30) as http:
        return http.request(request.method, request.url, body=body, headers=dict(request.headers))


def upload(grants: Grants, key: str, data: bytes, body: bytes | None = None) -> list[int]:
    """Statuses of an upload by grant, and its acceptance."""
    grant = grants.upload(key, size_bytes=len(data), digest=digest_of(data), mime="text/plain")
    body, answers = data if body is None else body, []
    for number, request in enumerate(grant.requests):
        answers.append(send(request, body[number * grant.part_bytes : (number + 1) * grant.part_bytes]))
    etags = [answer.headers.get("etag", "") for answer in answers] if grant.upload_id else []
    grants.accept(key, grant, size_bytes=len(data), digest=digest_of(data), etags=etags)
    return [answer.status for answer in answers]


@pytest.mark.parametrize("size_bytes", [0, 1, 3 * MIB, 11 * MIB + 1], ids=["empty", "byte", "one", "parts"])
def test_an_upload_by_grant_is_accepted(remote: StorageBackend, size_bytes: int) -> None:
    data = os.urandom(size_bytes)

    statuses = upload(granted(remote), f"{PREFIX}a", data)

    assert set(statuses) == {200}
    assert len(statuses) == (3 if size_bytes > 5 * MIB else 1)
    assert content(remote, f"{PREFIX}a") == data


def test_a_grant_signs_size_type_digest_and_that_it_overwrites_nothing(remote: StorageBackend) -> None:
    grant = granted(remote).upload(f"{PREFIX}a", size_bytes=4, digest=digest_of(b"data"), mime="text/plain")

    (request,) = grant.requests
    assert request.method == "PUT"
    assert request.headers == {
        "content-length": "4",
        "content-type": "text/plain",
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"data").digest()).decode(),
        "if-none-match": "*",
    }
    signed = urllib3.util.parse_url(request.url).query or ""
    assert "X-Amz-SignedHeaders=content-length%3Bcontent-type%3Bhost%3Bif-none-match%3Bx-amz-checksum-sha256" in signed
    assert "X-Amz-Expires=900" in signed


def test_other_bytes_than_granted_are_refused(remote: StorageBackend) -> None:
    with pytest.raises(UploadFailed, match="nothing arrived"):
        upload(granted(remote), f"{PREFIX}a", b"right", b"wrong")

    assert remote.stat(f"{PREFIX}a") is None


def test_altered_parts_are_caught(remote: StorageBackend) -> None:
    data = os.urandom(6 * MIB)

    with pytest.raises(UploadFailed, match="was announced"):
        upload(granted(remote), f"{PREFIX}a", data, bytes(6 * MIB))


def test_a_second_upload_of_the_same_bytes_is_accepted_and_of_others_refused(remote: StorageBackend) -> None:
    grants = granted(remote)
    upload(grants, f"{PREFIX}a", b"first")

    assert upload(grants, f"{PREFIX}a", b"first") == [412]
    with pytest.raises(OutputExists):
        upload(grants, f"{PREFIX}a", b"other")

    assert content(remote, f"{PREFIX}a") == b"first"


def test_parts_never_replace_what_is_there(remote: StorageBackend, bucket: Bucket) -> None:
    put(remote, f"{PREFIX}a", b"first")

    with pytest.raises(OutputExists):
        upload(granted(remote), f"{PREFIX}a", os.urandom(6 * MIB))

    assert content(remote, f"{PREFIX}a") == b"first"
    assert bucket.unfinished() == []


def test_an_upload_whose_answer_was_lost_is_accepted(remote: StorageBackend) -> None:
    grants, data = granted(remote), os.urandom(6 * MIB)
    grant = grants.upload(f"{PREFIX}a", size_bytes=len(data), digest=digest_of(data), mime="text/plain")
    parts = [data[: grant.part_bytes], data[grant.part_bytes :]]
    etags = [send(request, part).headers["etag"] for request, part in zip(grant.requests, parts, strict=True)]

    for _ in range(2):  # the first acceptance, and its repetition
        grants.accept(f"{PREFIX}a", grant, size_bytes=len(data), digest=digest_of(data), etags=etags)

    assert content(remote, f"{PREFIX}a") == data


def test_a_renewed_grant_goes_on_with_the_parts_that_arrived(remote: StorageBackend) -> None:
    grants, data = granted(remote), os.urandom(6 * MIB)
    told: Any = {"size_bytes": len(data), "digest": digest_of(data), "mime": "text/plain"}
    grant = grants.upload(f"{PREFIX}a", **told)
    first = send(grant.requests[0], data[: grant.part_bytes])

    renewed = grants.renew(f"{PREFIX}a", grant, **told)
    second = send(renewed.requests[1], data[grant.part_bytes :])
    etags = [first.headers["etag"], second.headers["etag"]]
    grants.accept(f"{PREFIX}a", renewed, size_bytes=len(data), digest=digest_of(data), etags=etags)

    assert renewed.upload_id == grant.upload_id
    assert content(remote, f"{PREFIX}a") == data


def test_an_abandoned_upload_leaves_no_parts(remote: StorageBackend, bucket: Bucket) -> None:
    grants = granted(remote)
    grant = grants.upload(f"{PREFIX}a", size_bytes=6 * MIB, digest=digest_of(b""), mime="text/plain")
    send(grant.requests[0], bytes(grant.part_bytes))
    assert bucket.unfinished() == [f"{PREFIX}a"]

    grants.abandon(f"{PREFIX}a", grant)
    grants.abandon(f"{PREFIX}a", grant)

    assert bucket.unfinished() == []


def test_a_download_by_grant_reads_the_object_and_nothing_else(remote: StorageBackend) -> None:
    put(remote, f"{PREFIX}a", b"data")
    request = granted(remote).download(f"{PREFIX}a")

    assert send(request, b"").data == b"data"
    assert send(request._replace(url=request.url.replace("test/a", "test/b")), b"").status == 403
    assert send(request._replace(method="PUT"), b"x").status == 403


# What a server was seen to enforce


def test_a_server_is_asked_once_what_it_enforces_and_leaves_no_trace(
    remote: StorageBackend, folder: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(granted(remote), f"{PREFIX}a", b"data")
    file = folder / "state" / "storage_proofs.json"

    assert (file.stat().st_mode & 0o777, bucket.keys()) == (0o600, [f"{PREFIX}a"])
    assert f'"{bucket.server.endpoint}/{bucket.name}"' in file.read_text()
    monkeypatch.setattr("apps.storage.enforcement.Enforcement._prove", lambda _: pytest.fail("asked again"))
    again = made(folder, bucket.variables(remote.name))
    assert again.stat(f"{PREFIX}a") == (4, digest_of(b"data"))


def test_what_a_server_is_known_to_check_is_not_read_again(
    remote: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.storage.create_once.opened", lambda *_: pytest.fail("read"))

    upload(granted(remote), f"{PREFIX}a", b"data")
    put(remote, f"{PREFIX}b", b"data")

    assert remote.digest(f"{PREFIX}b") == (4, digest_of(b"data"))
