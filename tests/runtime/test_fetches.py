"""Artifacts that inputs name: how they come to the handler, and what happens when they don't."""

import asyncio
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from processor_runtime.protocol import (
    Cancel,
    Fetch,
    Pull,
    Source,
    Unavailable,
    chunk,
    encode,
)

from tests.places import small_disk
from tests.runtime.conftest import Result, Runtime, Session, launch
from tests.runtime.keeper import PATH, Keeper, artifact, keeper, run

HANDLER = """
    import hashlib, json, os, pathlib, time

    def run(context):
        found = {}
        for name, file in sorted(context.inputs["params"].items()):
            path = pathlib.Path(file)
            found[name] = {
                "file": file,
                "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
                "mode": oct(path.stat().st_mode),
                "time": path.stat().st_mtime,
            }
        context.write("seen.json", json.dumps(found))
        context.write("folder.json", json.dumps(sorted(os.listdir())))
"""
OUTPUTS = [{"path": "seen.json", "mime": None}, {"path": "folder.json", "mime": None}]
SMALL = b"a small file"


def seen(result: Result) -> dict[str, Any]:
    assert result.completed.error is None, result.completed.error
    return dict(json.loads(result.files["seen.json"]))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(
        tmp_path_factory.mktemp("fetches") / "app",
        HANDLER,
        outputs=OUTPUTS,
        runtime={"concurrency": 2, "scratch_gb": 0.1},
        grace_s=0.2,
    )
    yield running
    running.stop()


def test_the_handler_finds_a_read_only_file_in_its_working_folder(runtime: Runtime) -> None:
    _, result = run(runtime, {PATH: SMALL}, {"image": artifact()})

    assert seen(result) == {
        "image": {
            "file": "inputs/1/photo.jpg",
            "digest": sha256(SMALL).hexdigest(),
            "mode": "0o100444",
            "time": 315532800,
        }
    }
    assert json.loads(result.files["folder.json"]) == ["inputs"]
    kinds = [type(message).__name__ for message in result.messages[:4]]
    assert kinds == ["Accepted", "Fetch", "Pull", "Event"]
    assert result.events[0].event == "started"


def test_equal_inputs_give_equal_places_and_each_path_comes_once(runtime: Runtime) -> None:
    files = {"/artifacts/a/x": b"1", "/artifacts/b/x": b"2", "/artifacts/c/ü b": b""}
    params = {"z": artifact("/artifacts/a/x"), "y": artifact("/artifacts/c/ü b"), "x": artifact("/artifacts/b/x")}

    session, result = run(runtime, files, {**params, "w": artifact("/artifacts/a/x")})
    _, again = run(runtime, files, {"w": artifact("/artifacts/a/x"), **params})

    places = {name: each["file"] for name, each in seen(result).items()}
    assert places == {"w": "inputs/1/x", "x": "inputs/2/x", "y": "inputs/3/ü b", "z": "inputs/1/x"}
    assert result.files == again.files
    assert len(session.fetched) == 3


def test_a_large_file_comes_whole_under_a_window(runtime: Runtime) -> None:
    data = bytes(range(256)) * (9 * 4096) + b"end"

    session, result = run(runtime, {PATH: data}, {"image": artifact()})

    assert seen(result)["image"]["digest"] == sha256(data).hexdigest()
    assert [pull.offset for pull in session.pulls] == list(range(0, len(data), 2**20))
    assert session.pulls[-1].bytes == len(data) % 2**20


def test_no_more_is_pulled_than_the_window(runtime: Runtime) -> None:
    async def scene() -> list[Pull]:
        async with keeper(runtime, {PATH: bytes(20 * 2**20)}) as session:
            session.give = lambda pull: asyncio.sleep(0)  # type: ignore[method-assign]
            await session.start(inputs={"params": {"image": artifact()}})
            try:
                async with asyncio.timeout(0.5):
                    await session.finish()
            except TimeoutError:
                return session.pulls
            raise AssertionError

    assert sum(pull.bytes for pull in asyncio.run(scene())) == 4 * 2**20


def test_nothing_stays_on_disk(runtime: Runtime) -> None:
    run(runtime, {PATH: SMALL}, {"image": artifact()})

    deadline = time.monotonic() + 5
    while left := [folder for folder, _, files in os.walk(runtime.scratch) if files or "spool" in folder]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


# What can't be


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"$artifact": 5}, "an artifact is"),
        ({"$artifact": PATH, "more": 1}, "an artifact is"),
        ({"$artifact": "/etc/passwd"}, "it starts with /artifacts/"),
        ({"$artifact": "/artifacts/../x"}, "one that is . or .."),
        ({"$artifact": "/artifacts//x"}, "empty segment"),
        ({"$artifact": "/artifacts/"}, "empty segment"),
        ({"$artifact": "/artifacts/a\u0007"}, "control character"),
        ({"$artifact": "/artifacts/" + "x" * 256}, "too long"),
    ],
)
def test_what_is_no_artifact_is_refused_with_its_place(runtime: Runtime, value: Any, words: str) -> None:
    result = runtime.run(inputs={"params": {"list": [0, {"a/b": value}]}})

    assert result.error["code"] == "ERR_INPUTS"
    assert result.error["details"] == {"pointer": "/params/list/1/a~1b"}
    assert words in result.error["message"]


def test_too_many_artifacts_are_refused(runtime: Runtime) -> None:
    result = runtime.run(inputs={"params": {str(number): artifact() for number in range(1025)}})

    assert (result.error["code"], "more than 1024 artifacts" in result.error["message"]) == ("ERR_INPUTS", True)


def test_the_schema_sees_the_artifact_as_it_was_sent(start_runtime: Callable[..., Runtime]) -> None:
    schema = {"properties": {"params": {"properties": {"image": {"type": "string"}}}}}
    runtime = start_runtime(HANDLER, outputs=OUTPUTS, inputs=schema)

    assert runtime.run(inputs={"params": {"image": artifact()}}).error["details"]["pointer"] == "/params/image"


def test_another_digest_is_err_storage_and_the_handler_never_runs(runtime: Runtime) -> None:
    _, result = run(runtime, {PATH: SMALL}, {"image": artifact()}, digest="sha256:" + "0" * 64)

    assert result.error["code"] == "ERR_STORAGE"
    assert result.error["details"] == {
        "path": PATH,
        "expected": "sha256:" + "0" * 64,
        "found": f"sha256:{sha256(SMALL).hexdigest()}",
    }
    assert result.events == []
    assert result.completed.meta["started_at"] is None


def test_what_is_unavailable_ends_the_execution_with_its_error(runtime: Runtime) -> None:
    words = {"code": "ERR_STORAGE", "message": "the store is gone", "hint": "", "details": {}}

    async def scene() -> Result:
        async with keeper(runtime, {PATH: bytes(2**20)}) as session:

            async def refuse(pull: Pull) -> None:
                await session.socket.send(encode(Unavailable(pull.fetch, words)))

            session.give = refuse  # type: ignore[method-assign]
            await session.start(inputs={"params": {"image": artifact()}})
            return await session.finish()

    assert asyncio.run(scene()).error == words


def test_a_file_larger_than_scratch_is_refused_before_its_first_byte(runtime: Runtime) -> None:
    async def scene() -> tuple[Keeper, Result]:
        async with keeper(runtime, {PATH: SMALL}) as session:
            await session.start(inputs={"params": {"image": artifact()}})
            while not isinstance(message := await Session.receive(session), Fetch):
                pass
            await session.socket.send(session.side.source(Source(message.fetch, 2**30, "sha256:" + "0" * 64)))
            return session, await session.finish()

    session, result = asyncio.run(scene())

    assert (result.error["code"], result.error["details"]["limit"]) == ("ERR_LIMIT", "scratch")
    assert session.pulls == []


@pytest.mark.parametrize("bad", ["offset", "size", "unknown", "short"])
def test_chunks_that_were_not_pulled_break_the_protocol(runtime: Runtime, bad: str) -> None:
    async def scene() -> tuple[int | None, str]:
        async with keeper(runtime, {PATH: SMALL}) as session:

            async def give(pull: Pull) -> None:
                wrong = {
                    "offset": chunk(pull.fetch, 1, b"x"),
                    "size": chunk(pull.fetch, 0, SMALL + b"x"),
                    "unknown": chunk(pull.fetch + 1, 0, b"x"),
                    "short": b"x",
                }
                await session.socket.send(wrong[bad])

            session.give = give  # type: ignore[method-assign]
            await session.start(inputs={"params": {"image": artifact()}})
            with pytest.raises(Exception, match="1002"):
                await session.finish()
            return session.socket.close_code, session.socket.close_reason or ""

    code, reason = asyncio.run(scene())

    assert (code, "chunk" in reason) == (1002, True)


# Ending meanwhile


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_a_cancel_or_a_timeout_ends_it_at_once(runtime: Runtime, end: str) -> None:
    async def scene() -> tuple[float, Result]:
        async with keeper(runtime, {PATH: bytes(50 * 2**20)}) as session:
            identity = await session.start(
                inputs={"params": {"image": artifact()}}, timeout_s=30.0 if end == "cancel" else 0.3
            )
            session.give = lambda pull: asyncio.sleep(0)  # type: ignore[method-assign]
            while not session.pulls:
                await session.receive()
            began = time.monotonic()
            if end == "cancel":
                await session.socket.send(encode(Cancel(identity, "user")))
            result = await session.finish()
            return time.monotonic() - began, result

    took_s, result = asyncio.run(scene())

    assert took_s < 1.5  # neither the handler's grace nor the store's patience
    assert result.error["code"] == ("ERR_CANCELLED" if end == "cancel" else "ERR_TIMEOUT")
    assert result.error["details"]["step"] == "queued"
    assert run(runtime, {PATH: SMALL}, {"image": artifact()})[1].completed.status == "success"


def test_executions_fetch_when_they_leave_the_queue_and_count_as_running(runtime: Runtime) -> None:
    async def until_fetch(session: Keeper) -> str:
        identity = await session.start(inputs={"params": {"image": artifact()}})
        while not isinstance(await Session.receive(session), Fetch):
            pass
        return identity

    async def scene() -> tuple[list[str], Result]:
        files = {PATH: SMALL}
        async with keeper(runtime, files) as one, keeper(runtime, files) as two, keeper(runtime, files) as third:
            first, second = await until_fetch(one), await until_fetch(two)
            await third.start(inputs={"params": {"image": artifact()}})
            await third.until("queued")
            kinds = [type(message).__name__ for message in third.result.messages]
            await one.socket.send(encode(Cancel(first, "user")))
            result = await third.finish()
            await two.socket.send(encode(Cancel(second, "user")))
            return kinds, result

    kinds, result = asyncio.run(scene())

    assert kinds == ["Accepted", "Event"]
    assert seen(result)["image"]["file"] == "inputs/1/photo.jpg"


@pytest.mark.parametrize("changed", [False, True])
def test_whoever_comes_later_brings_what_the_first_did_not(runtime: Runtime, changed: bool) -> None:
    data = bytes(range(256)) * 40_000
    other = data[::-1] if changed else data

    async def scene() -> tuple[Keeper, Result]:
        async with keeper(runtime, {PATH: data}) as first:
            identity = await first.start(inputs={"params": {"image": artifact()}})
            while len(first.pulls) < 6:  # two pieces have arrived, and made room for two more
                await first.receive()
        async with keeper(runtime, {PATH: other}) as second:
            await second.start(inputs={"params": {"image": artifact()}}, execution_id=identity)
            return second, await second.finish()

    second, result = asyncio.run(scene())

    assert seen(result)["image"]["digest"] == sha256(other).hexdigest()
    assert (second.pulls[0].offset == 0) == changed
    assert second.pulls[0].offset == 0 or second.pulls[0].offset >= 2**20


def test_however_often_the_connection_is_lost_a_large_file_arrives(runtime: Runtime) -> None:
    data = bytes(range(256)) * (12 * 4096)

    async def scene() -> tuple[int, Result]:
        identity, times = "", 0
        while True:
            times += 1
            async with keeper(runtime, {PATH: data}) as session:
                changes = {"execution_id": identity} if identity else {}
                identity = await session.start(inputs={"params": {"image": artifact()}}, **changes)
                while session.side.completed is None:
                    await session.receive()
                    if len(session.pulls) == 6 and times < 20:
                        break
                else:
                    return times, session.result

    times, result = asyncio.run(scene())

    assert seen(result)["image"]["digest"] == sha256(data).hexdigest()
    assert 2 < times < 20


# From a store


class Shelf(http.server.BaseHTTPRequestHandler):
    """An HTTP store that misbehaves as `faults` say, one for each request."""

    data: bytes
    faults: list[str]
    asked: list[dict[str, str]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(dict(self.headers))
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdecimal():
            self._answer(int(fault), b"<Error><Code>Sorry</Code></Error>")
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        ranged = start and fault != "whole"
        body = self.data[start:] if ranged else self.data
        if fault == "other size":
            body += b"!"
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.startswith("cut"):
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shelf() -> Iterator[type[Shelf]]:
    class Ours(Shelf):
        data = bytes(range(256)) * 4096
        faults: list[str] = []
        asked: list[dict[str, str]] = []
        url = ""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ours) as server:
        Ours.url = f"http://127.0.0.1:{server.server_port}/bucket/artifacts/photo.jpg?X-Amz-Signature=abc%2F"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Ours
        server.shutdown()
        thread.join()


def fetched(runtime: Runtime, shelf: Any) -> tuple[int, Result]:
    """How many times it was pulled, and the end."""
    session, result = run(runtime, {PATH: shelf.data}, {"image": artifact()}, url=shelf.url)
    assert seen(result)["image"]["digest"] == sha256(shelf.data).hexdigest()
    return len(session.pulls), result


def test_a_source_is_one_request_as_it_was_given(runtime: Runtime, shelf: Any) -> None:
    pulls, _ = fetched(runtime, shelf)

    assert pulls == 0
    (headers,) = shelf.asked
    assert (headers["X-Signed"], "Range" in headers) == ("yes", False)


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["cut"], [None, "bytes=524288-"]),
        (["cut", "cut"], [None, "bytes=524288-", "bytes=786432-"]),
        (["cut", "whole"], [None, "bytes=524288-"]),
        (["503", "500"], [None, None, None]),
        (["cut", "503"], [None, "bytes=524288-", "bytes=524288-"]),
    ],
)
def test_what_was_cut_goes_on_and_what_failed_is_tried_again(
    runtime: Runtime, shelf: Any, faults: list[str], ranges: list[str | None]
) -> None:
    shelf.faults.extend(faults)

    pulls, _ = fetched(runtime, shelf)

    assert pulls == 0
    assert [headers.get("Range") for headers in shelf.asked] == ranges


@pytest.mark.parametrize(
    ("faults", "first"),
    [(["403"], 0), (["404"], 0), (["other size"], 0), (["503"] * 5, 0), (["cut", "403"], 2**19)],
)
def test_what_the_store_does_not_give_comes_over_the_connection(
    runtime: Runtime, shelf: Any, faults: list[str], first: int
) -> None:
    shelf.faults.extend(faults)

    session, result = run(runtime, {PATH: shelf.data}, {"image": artifact()}, url=shelf.url)

    assert seen(result)["image"]["digest"] == sha256(shelf.data).hexdigest()
    assert session.pulls[0].offset == first
    assert shelf.faults == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://no.such.host.invalid/x", "ftp://x/y"])
def test_a_store_that_cannot_be_reached_is_not_waited_for(runtime: Runtime, url: str) -> None:
    began = time.monotonic()

    session, result = run(runtime, {PATH: SMALL}, {"image": artifact()}, url=url)

    assert seen(result)["image"]["digest"] == sha256(SMALL).hexdigest()
    assert len(session.pulls) == 1
    assert time.monotonic() - began < 5


def test_the_address_is_in_no_log(runtime: Runtime, shelf: Any) -> None:
    shelf.faults.extend(["403"])

    fetched(runtime, shelf)

    runtime.wait_for_log("comes over the connection: the store answered 403")
    assert "X-Amz" not in "".join(runtime.stderr)


def test_a_cancel_breaks_a_download_off(runtime: Runtime) -> None:
    async def scene() -> tuple[float, Result]:
        taken = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc")
            taken.set()
            try:
                await asyncio.sleep(10)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/key"
        async with server, keeper(runtime, {PATH: bytes(1_000_000)}, url=url) as session:
            identity = await session.start(inputs={"params": {"image": artifact()}})
            while not taken.is_set():
                try:
                    async with asyncio.timeout(0.1):
                        await session.receive()
                except TimeoutError:
                    pass
            began = time.monotonic()
            await session.socket.send(encode(Cancel(identity, "user")))
            result = await session.finish()
            return time.monotonic() - began, result

    took_s, result = asyncio.run(scene())

    assert took_s < 1.5  # the store hangs for ten
    assert result.error["details"] == {"by": "user", "step": "queued"}


def test_a_disk_that_is_full_is_a_limit(tmp_path: Path) -> None:
    for disk in small_disk(tmp_path / "disk", size="2m"):
        runtime = launch(disk / "app", HANDLER, outputs=OUTPUTS)
        try:
            _, result = run(runtime, {PATH: bytes(4 * 2**20)}, {"image": artifact()})
        finally:
            runtime.stop()

    assert (result.error["code"], result.error["details"]["limit"]) == ("ERR_LIMIT", "disk")
