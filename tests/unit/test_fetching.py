"""The controller's end of fetches: what inputs name, what is handed out, and to whom not."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from processor_runtime import protocol
from processor_runtime.protocol import Fetch, Pull

from apps.errors import InvalidInputs, StorageFailed
from apps.processors import fetching
from apps.storage.base import ObjectStat, SignedRequest
from apps.storage.filesystem import FilesystemBackend

ID = "01900000-0000-7000-8000-000000000001"
DATA = bytes(range(256)) * 3000
PATH = "/artifacts/photos/one.jpg"
DIGEST = f"sha256:{sha256(DATA).hexdigest()}"


@pytest.fixture
def backend(tmp_path: Path) -> FilesystemBackend:
    made = FilesystemBackend(tmp_path / "artifacts")
    made.check()
    put(made, PATH, DATA)
    return made


def put(backend: FilesystemBackend, path: str, data: bytes) -> None:
    place = backend.root / path[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def inputs(**params: Any) -> dict[str, Any]:
    return {"schema": "v1", "params": params}


# Before anything is sent


def test_what_is_named_is_looked_up_once_each(backend: FilesystemBackend) -> None:
    sources = fetching.look_up(inputs(a={"$artifact": PATH}, b=[{"$artifact": PATH}]), backend)

    assert sources.found == {PATH: ObjectStat(len(DATA), DIGEST)}


def test_a_key_that_holds_its_digest_is_not_read_for_it(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/artifacts/inputs/sha256/{'ab' * 32}/photo.jpg"
    put(backend, path, b"whatever")
    monkeypatch.setattr(backend, "digest", None)

    assert fetching.look_up(inputs(a={"$artifact": path}), backend).found == {
        path: ObjectStat(8, f"sha256:{'ab' * 32}")
    }


@pytest.mark.parametrize("path", ["/artifacts/photos/none.jpg", f"/artifacts/inputs/sha256/{'ab' * 32}/none.jpg"])
def test_an_absent_artifact_is_named_by_its_place(backend: FilesystemBackend, path: str) -> None:
    with pytest.raises(InvalidInputs, match=r"inputs at /params/list/1: there is no .*none\.jpg") as caught:
        fetching.look_up(inputs(list=[0, {"$artifact": path}]), backend)

    assert caught.value.details == {"pointer": "/params/list/1", "path": path}
    assert "--attach" in caught.value.hint


@pytest.mark.parametrize(
    "value",
    [{"$artifact": "/etc/passwd"}, {"$artifact": "/artifacts/../x"}, {"$artifact": 1}, {"$artifact": PATH, "x": 1}],
)
def test_a_malformed_artifact_is_named_by_its_place(backend: FilesystemBackend, value: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidInputs, match="inputs at /params/image: ") as caught:
        fetching.look_up(inputs(image=value), backend)

    assert caught.value.details == {"pointer": "/params/image"}


# Afterwards


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Wire:
    """The runtime's end: what it asks goes through both state machines, as on a connection."""

    def __init__(self, backend: FilesystemBackend, grants: Any = None, path: str = PATH) -> None:
        self.controller, self.runtime = protocol.ControllerSide(), protocol.RuntimeSide()
        self.texts: list[dict[str, Any]] = []
        self.received = bytearray()
        hello = protocol.Hello("a/b@1", DIGEST, DIGEST, "build", "1", 1, [])
        self.controller.receive(protocol.encode(hello))
        self.controller.run(protocol.Run(ID, "mock", {}, "/artifacts/a/", 1.0))
        self.controller.receive(protocol.encode(protocol.Accepted(ID, DIGEST)))
        sources = fetching.look_up(inputs(image={"$artifact": path}), backend)
        self.fetching = fetching.Fetching(self.controller, sources, grants, send=self._arrive)

    def ask(self, message: Fetch | Pull) -> None:
        heard = self.controller.receive(self.runtime.ask(message))
        assert isinstance(heard, Fetch | Pull)
        self.fetching.take(heard)

    def first(self) -> dict[str, Any]:
        """The first text, once it is there."""
        until(lambda: bool(self.texts))
        return self.texts[0]

    def _arrive(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.received += self.runtime.receive_chunk(message)[1]
        else:
            self.runtime.receive(message)
            self.texts.append(json.loads(message))


@pytest.fixture
def wire(backend: FilesystemBackend) -> Wire:
    return Wire(backend)


def test_an_artifact_is_announced_and_sent_as_it_is_pulled(wire: Wire) -> None:
    wire.ask(Fetch(ID, 1, PATH))
    for offset in range(0, len(DATA), 300_000):
        wire.ask(Pull(1, offset, min(300_000, len(DATA) - offset)))

    assert wire.texts == [{"type": "source", "fetch": 1, "size_bytes": len(DATA), "digest": DIGEST, "request": None}]
    assert bytes(wire.received) == DATA
    wire.fetching.close()


def test_one_that_was_read_to_its_end_is_not_kept_open(wire: Wire) -> None:
    for number in range(1, 20):
        wire.ask(Fetch(ID, number, PATH))
        wire.ask(Pull(number, 0, len(DATA)))

    descriptors = [Path(os.path.realpath(each)) for each in Path("/proc/self/fd").iterdir()]
    assert [each for each in descriptors if each.name == Path(PATH).name] == []
    assert len(wire.received) == 19 * len(DATA)
    wire.fetching.close()


@pytest.mark.parametrize("offset", [0, 100, 500_000])
def test_it_can_be_pulled_from_anywhere(wire: Wire, offset: int) -> None:
    wire.ask(Fetch(ID, 1, PATH))
    wire.ask(Pull(1, 0, 200))

    wire.ask(Pull(1, offset, 50))

    assert bytes(wire.received[200:]) == DATA[offset : offset + 50]
    wire.fetching.close()


def test_what_goes_on_far_behind_reads_nothing_before(backend: FilesystemBackend) -> None:
    path = f"/artifacts/inputs/sha256/{'ab' * 32}/holes.bin"
    put(backend, path, b"")
    os.truncate(backend.root / path[1:], 2**40)
    wire = Wire(backend, path=path)
    wire.ask(Fetch(ID, 1, path))
    began = time.monotonic()

    wire.ask(Pull(1, 2**40 - 2**20, 2**20))

    assert time.monotonic() - began < 2
    assert len(wire.received) == 2**20
    wire.fetching.close()


def test_what_the_inputs_do_not_name_is_not_handed_out(wire: Wire, backend: FilesystemBackend) -> None:
    put(backend, "/artifacts/photos/two.jpg", b"not yours")

    wire.ask(Fetch(ID, 1, "/artifacts/photos/two.jpg"))

    (said,) = wire.texts
    assert (said["type"], said["error"]["code"]) == ("unavailable", "ERR_INPUTS")
    assert wire.received == b""
    with pytest.raises(protocol.ProtocolError, match="has no source"):
        wire.ask(Pull(1, 0, 1))


def test_what_became_shorter_or_went_away_is_err_storage(wire: Wire, backend: FilesystemBackend) -> None:
    wire.ask(Fetch(ID, 1, PATH))
    (backend.root / PATH[1:]).write_bytes(DATA[:100])
    wire.ask(Pull(1, 0, 200))
    (backend.root / PATH[1:]).unlink()
    wire.ask(Fetch(ID, 2, PATH))
    wire.ask(Pull(2, 0, 200))

    errors = [said["error"] for said in wire.texts if said["type"] == "unavailable"]
    assert [error["code"] for error in errors] == ["ERR_STORAGE", "ERR_STORAGE"]
    assert "became shorter" in errors[0]["message"]
    wire.fetching.close()


@pytest.mark.parametrize(
    "pull", [Pull(1, 0, 0), Pull(1, 0, len(DATA) + 1), Pull(1, -1, 5), Pull(1, len(DATA), 1), Pull(1, 0, 5 * 2**20)]
)
def test_a_pull_beyond_size_or_window_breaks_the_protocol(wire: Wire, pull: Pull) -> None:
    wire.ask(Fetch(ID, 1, PATH))

    with pytest.raises(protocol.ProtocolError, match="beyond its size or the window"):
        wire.controller.receive(protocol.encode(pull))


class Bucket(FilesystemBackend):
    """One that is not on this machine."""

    name = "s3"


class Grants:
    """Of a store that a container reaches; `broken` once its credentials have ended."""

    broken = False

    def download(self, key: str) -> SignedRequest:
        if self.broken:
            raise StorageFailed("the credentials have ended")
        return SignedRequest("GET", f"http://store/{key}?signature=1", {"host": "store"})


@pytest.fixture
def bucket(backend: FilesystemBackend) -> Bucket:
    return Bucket(backend.root)


def test_a_store_that_can_be_reached_is_named(bucket: Bucket) -> None:
    wire = Wire(bucket, Grants())

    wire.ask(Fetch(ID, 1, PATH))

    assert wire.first()["request"] == {
        "method": "GET",
        "url": f"http://store{PATH}?signature=1",
        "headers": {"host": "store"},
    }
    wire.fetching.close()


def test_a_request_that_cannot_be_signed_is_told(bucket: Bucket) -> None:
    grants = Grants()
    grants.broken = True
    wire = Wire(bucket, grants)

    wire.ask(Fetch(ID, 1, PATH))

    assert wire.first()["error"]["message"] == "the credentials have ended"
    wire.fetching.close()


def test_a_slow_store_that_the_container_cannot_reach_keeps_nobody_waiting(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, opened = threading.Event(), bucket.open

    def slowly(key: str) -> BinaryIO:
        gate.wait(10)
        return opened(key)

    wire = Wire(bucket)
    monkeypatch.setattr(bucket, "open", slowly)
    wire.ask(Fetch(ID, 1, PATH))
    wire.first()
    wire.ask(Pull(1, 0, 200))  # returns at once

    assert wire.received == b""
    gate.set()
    until(lambda: bytes(wire.received) == DATA[:200])
    wire.fetching.close()
