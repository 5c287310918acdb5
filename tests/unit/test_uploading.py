"""The controller's end of uploads: grants, their verification, and that none of it keeps a cancel waiting."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from processor_runtime import protocol
from processor_runtime.protocol import Accepted, ControllerSide, Hello, Run, Upload, Uploaded, chunk, encode

from apps.errors import OutputExists, StorageFailed, UploadFailed
from apps.processors.uploading import Uploading
from apps.storage.artifacts import Artifacts
from apps.storage.base import Grant, SignedRequest
from apps.storage.filesystem import FilesystemBackend, FileWriter

ID = "01900000-0000-7000-8000-000000000001"
DATA = b"0123456789"
DIGEST = "sha256:" + sha256(DATA).hexdigest()


@dataclass
class Grants:
    """What a bucket would sign, and what it was asked to."""

    calls: list[str] = field(default_factory=list)
    fails: dict[str, BaseException] = field(default_factory=dict)
    """What `upload` or `accept` of a key raises."""
    gate: threading.Event = field(default_factory=threading.Event)
    """`accept` waits for it."""
    parts: int = 1

    def upload(self, key: str, *, size_bytes: int, digest: str, mime: str) -> Grant:
        self._do("upload", key)
        requests = [SignedRequest("PUT", f"http://store/{key}", {"Content-Length": str(size_bytes)})] * self.parts
        return Grant(tuple(requests), 5, time.time() + 900, "id" if self.parts > 1 else None)

    def renew(self, key: str, grant: Grant, *, size_bytes: int, digest: str, mime: str) -> Grant:
        self._do("renew", key)
        return grant

    def accept(self, key: str, grant: Grant, *, size_bytes: int, digest: str, etags: Sequence[str] = ()) -> None:
        self.gate.wait(10)
        self._do(f"accept{list(etags) or ''}", key)

    def abandon(self, key: str, grant: Grant) -> None:
        self._do("abandon", key)

    def download(self, key: str) -> SignedRequest:
        raise NotImplementedError

    def _do(self, word: str, key: str) -> None:
        name = key.rpartition("/")[2]
        self.calls.append(f"{word} {name}")
        if f"{word} {name}" in self.fails:
            raise self.fails[f"{word} {name}"]


class Bucket(FilesystemBackend):
    """A folder that gives grants."""

    made: Grants | None = None

    def grants(self, loopback: str | None) -> Grants | None:  # type: ignore[override]
        return self.made


class Scene:
    """One conversation, of which the test plays the runtime."""

    def __init__(self, root: Path, grants: Grants | None) -> None:
        backend = Bucket(root)
        backend.made = grants
        backend.check()
        self.artifacts = Artifacts(backend, "/artifacts/a/")
        self.artifacts.reach("host.docker.internal")
        self.side, self.sent, self.stored = ControllerSide(), [], []
        self.side.receive(encode(Hello("a/b@1", "", "", "pin", "1", 1, [])))
        self.side.run(Run(ID, "mock", {}, "/artifacts/a/", 1.0))
        self.side.receive(encode(Accepted(ID, "")))
        self.uploading = Uploading(self.side, self.artifacts, send=self._send, stored=self.stored.append)

    sent: list[dict[str, Any]]
    stored: list[Upload]

    def _send(self, text: str) -> None:
        self.sent.append(json.loads(text))

    def ask(self, number: int, path: str = "x.bin", *, relay: bool = False) -> None:
        upload = Upload(ID, number, path, len(DATA), DIGEST, "text/plain", relay)
        self.side.receive(encode(upload))
        self.uploading.asked(upload)

    def say_uploaded(self, number: int, etags: list[str] | None = None) -> None:
        message = Uploaded(number, etags)
        self.side.receive(encode(message))
        self.uploading.uploaded(message)

    def may_send(self, size_bytes: int) -> bool:
        """Whether there was credit for so many bytes altogether."""
        credits = [message["bytes"] for message in list(self.sent) if message["type"] == "credit"]
        return protocol.WINDOW_BYTES + sum(credits) >= size_bytes

    def answer(self, number: int, kind: str) -> dict[str, Any]:
        """The message of this type about this upload; waits for it."""
        return until(lambda: next((m for m in list(self.sent) if m["type"] == kind and m["upload"] == number), None))


def until(condition: Callable[[], Any], timeout_s: float = 5) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


@pytest.fixture
def grants() -> Grants:
    made = Grants()
    made.gate.set()
    return made


@pytest.fixture
def scene(tmp_path: Path, grants: Grants) -> Iterator[Scene]:
    scene = Scene(tmp_path, grants)
    yield scene
    scene.uploading.close()


def test_a_backend_without_grants_is_fed_over_the_connection(tmp_path: Path) -> None:
    scene = Scene(tmp_path, None)
    scene.ask(1)
    scene.uploading.chunk(chunk(1, 0, DATA))
    scene.say_uploaded(1)

    assert [message["type"] for message in scene.sent] == ["grant", "stored"]  # at once, without a thread
    assert [upload.path for upload in scene.stored] == ["x.bin"]
    assert scene.uploading.transfer == "relay"


def test_a_grant_goes_out_as_it_was_signed_and_what_came_is_verified(scene: Scene, grants: Grants) -> None:
    scene.ask(1)
    grant = scene.answer(1, "grant")
    scene.say_uploaded(1)
    scene.answer(1, "stored")

    assert grant["transfer"] == "direct"
    assert grant["request"]["url"] == "http://store/artifacts/a/x.bin"
    assert grant["request"]["headers"] == {"Content-Length": "10"}
    assert grant["lifetime_s"] == pytest.approx(900, abs=5)
    assert grants.calls == ["upload x.bin", "accept x.bin"]
    assert [upload.path for upload in scene.stored] == ["x.bin"]
    assert scene.uploading.transfer == "direct"


def test_parts_are_granted_together_and_accepted_with_their_etags(scene: Scene, grants: Grants) -> None:
    grants.parts = 2
    scene.ask(1)
    grant = scene.answer(1, "grant")
    scene.say_uploaded(1, ['"a"', '"b"'])
    scene.answer(1, "stored")

    assert len(grant["parts"]) == 2
    assert (grant["request"], grant["part_bytes"], grant["upload_id"]) == (None, 5, "id")
    assert grants.calls[-1] == """accept['"a"', '"b"'] x.bin"""


@pytest.mark.parametrize("error", [UploadFailed("other bytes"), OutputExists("taken"), StorageFailed("gone")])
def test_what_does_not_hold_is_refused_and_not_counted(scene: Scene, grants: Grants, error: StorageFailed) -> None:
    grants.fails["accept x.bin"] = error
    scene.ask(1)
    scene.answer(1, "grant")
    scene.say_uploaded(1)

    assert scene.answer(1, "refused")["error"]["code"] == error.code
    assert scene.stored == []
    until(lambda: grants.calls[-1] == "abandon x.bin")


def test_a_grant_that_can_not_be_had_is_refused(scene: Scene, grants: Grants) -> None:
    grants.fails["upload x.bin"] = StorageFailed("no answer")
    scene.ask(1)

    assert scene.answer(1, "refused")["error"]["message"] == "no answer"


def test_an_output_under_a_kept_name_is_refused_before_anything_is_signed(scene: Scene, grants: Grants) -> None:
    scene.ask(1, "outputs.json")

    assert scene.answer(1, "refused")["error"]["code"] == "ERR_OUTPUT_INVALID"
    assert grants.calls == []


def test_asked_again_a_grant_is_renewed_and_the_former_is_over(scene: Scene, grants: Grants) -> None:
    scene.ask(1)
    scene.answer(1, "grant")
    scene.ask(2)
    scene.answer(2, "grant")
    scene.say_uploaded(1)  # which says nothing any more
    scene.say_uploaded(2)
    scene.answer(2, "stored")

    assert grants.calls == ["upload x.bin", "renew x.bin", "accept x.bin"]
    assert len(scene.stored) == 1


def test_a_store_that_the_container_can_not_reach_is_fed_over_the_connection(scene: Scene, grants: Grants) -> None:
    scene.ask(1)
    scene.answer(1, "grant")
    scene.ask(2, relay=True)
    assert scene.answer(2, "grant")["transfer"] == "relay"
    scene.uploading.chunk(chunk(2, 0, DATA))
    scene.say_uploaded(2)
    scene.answer(2, "stored")

    assert grants.calls == ["upload x.bin", "abandon x.bin"]
    assert scene.artifacts.holds("x.bin", DIGEST, len(DATA))
    assert scene.uploading.transfer == "relay"


def test_one_that_is_verified_for_long_delays_no_other(scene: Scene, grants: Grants) -> None:
    grants.gate.clear()
    began = time.monotonic()
    scene.ask(1)
    scene.answer(1, "grant")
    scene.say_uploaded(1)
    scene.ask(2, "y.bin")
    scene.answer(2, "grant")

    assert time.monotonic() - began < 2
    grants.gate.set()
    scene.answer(1, "stored")


def test_a_slow_store_that_is_fed_over_the_connection_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, commit = threading.Event(), FileWriter.commit

    def slowly(self: FileWriter, *, size_bytes: int, digest: str) -> None:
        gate.wait(10)
        commit(self, size_bytes=size_bytes, digest=digest)

    monkeypatch.setattr(FileWriter, "commit", slowly)
    monkeypatch.setattr(Bucket, "name", "s3")
    scene = Scene(tmp_path, None)
    scene.ask(1)
    scene.answer(1, "grant")
    scene.uploading.chunk(chunk(1, 0, DATA))
    scene.say_uploaded(1)  # returns at once
    scene.ask(2, "y.bin")
    scene.answer(2, "grant")

    assert scene.stored == []
    gate.set()
    scene.answer(1, "stored")
    scene.uploading.close()


def test_the_end_does_not_wait_for_what_hangs(scene: Scene, grants: Grants) -> None:
    grants.gate.clear()
    scene.ask(1)
    scene.answer(1, "grant")
    scene.say_uploaded(1)
    began = time.monotonic()

    scene.uploading.close()

    assert time.monotonic() - began < 4
    grants.gate.set()


def test_what_is_under_way_at_the_end_is_abandoned(scene: Scene, grants: Grants) -> None:
    scene.ask(1)
    scene.answer(1, "grant")

    scene.uploading.close()

    assert grants.calls == ["upload x.bin", "abandon x.bin"]
    assert scene.stored == []


def test_a_bug_in_another_thread_is_not_lost(scene: Scene, grants: Grants) -> None:
    grants.fails["upload x.bin"] = ZeroDivisionError("a bug")
    scene.ask(1)

    def raised() -> bool:
        try:
            scene.uploading.check()
        except ZeroDivisionError:
            return True
        return False

    until(raised)


def test_chunks_are_stored_in_order_whatever_thread_does_it(scene: Scene) -> None:
    data = bytes(range(256)) * 1024 * 40
    digest = "sha256:" + sha256(data).hexdigest()
    upload = Upload(ID, 1, "big.bin", len(data), digest, "text/plain", relay=True)
    scene.side.receive(encode(upload))
    scene.uploading.asked(upload)
    scene.answer(1, "grant")
    for at in range(0, len(data), protocol.CHUNK_BYTES):
        piece = data[at : at + protocol.CHUNK_BYTES]
        until(partial(scene.may_send, at + len(piece)))
        scene.uploading.chunk(chunk(1, at, piece))
    scene.say_uploaded(1)
    scene.answer(1, "stored")

    assert scene.artifacts.holds("big.bin", digest, len(data))
