"""Outputs on their way: what may be written, how it is carried, what happens when it can't be."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processor_runtime.protocol import Cancel, Credit, Event, Grant, Refused, Stored, Upload, Uploaded, encode

from tests.runtime.conftest import Result, Runtime, launch

HANDLER = """
    import io, pathlib, time
    from processor_runtime.handler import OutputInvalid

    def pieces(size):
        block = b"x" * 2**20
        while size > 0:
            yield block[:size]
            size -= len(block)

    def run(context):
        given = context.inputs
        if "size" in given:
            context.write("big.bin", pieces(given["size"]))
        for path, text in given.get("write", []):
            context.write(path, text)
        if given.get("kinds"):
            pathlib.Path("local.txt").write_text("path")
            context.write("k/bytes", b"bytes")
            context.write("k/str", "strü")
            context.write("k/array", bytearray(b"array"))
            context.write("k/view", memoryview(b"..view"))
            context.write("k/file", io.BytesIO(b"file"))
            context.write("k/text", io.StringIO("text"))
            context.write("k/path", pathlib.Path("local.txt"))
            context.write("k/iterator", (word for word in ("ite", b"rator")))
            context.write("k/empty", "")
        if given.get("wrong"):
            context.write("k/wrong", {"a": 1})
        if given.get("forgive"):
            try:
                context.write("nowhere/else", "x")
            except OutputInvalid as exc:
                context.token(str(exc))
        if given.get("linger"):
            context.token("lingering")
            time.sleep(60)
"""
OUTPUTS = [
    {"path": "*.bin", "mime": None},
    {"path": "k/empt?", "mime": "application/x-empty"},
    {"path": "k/*", "mime": "application/x-kind"},
    {"path": "frames/*.png", "mime": None},
    {"path": "a/b/*", "mime": None},
    {"path": "a/*", "mime": None},
    {"path": "*.json", "mime": None},
]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(
        tmp_path_factory.mktemp("uploads") / "app",
        HANDLER,
        outputs=OUTPUTS,
        runtime={"concurrency": 2, "scratch_gb": 2},
    )
    yield running
    running.stop()


def test_every_kind_of_content_arrives_as_it_was_given(runtime: Runtime) -> None:
    result = runtime.run(inputs={"kinds": True})

    assert result.files == {
        "k/bytes": b"bytes",
        "k/str": "strü".encode(),
        "k/array": b"array",
        "k/view": b"..view",
        "k/file": b"file",
        "k/text": b"text",
        "k/path": b"path",
        "k/iterator": b"iterator",
        "k/empty": b"",
    }


def test_completed_lists_outputs_by_path_with_their_media_types(runtime: Runtime) -> None:
    result = runtime.run(inputs={"kinds": True, "write": [["frames/2.png", "x"]]})

    outputs = result.completed.outputs
    assert [output["path"] for output in outputs] == sorted(output["path"] for output in outputs)
    assert {output["path"]: output["mime"] for output in outputs if output["path"] in ("frames/2.png", "k/empty")} == {
        "frames/2.png": "image/png",
        "k/empty": "application/x-empty",
    }


def test_the_output_event_has_the_full_path_and_follows_the_store(runtime: Runtime) -> None:
    result = runtime.run(inputs={"write": [["one.bin", "1"]]}, write_prefix="/artifacts/x/y/")

    (data,) = result.data("output")
    assert data["path"] == "/artifacts/x/y/one.bin"
    assert data["size_bytes"] == 1
    assert data["digest"] == result.completed.outputs[0]["digest"]


@pytest.mark.parametrize(
    "writes",
    [
        ["/one.bin"],
        ["../one.bin"],
        ["frames/../one.bin"],
        ["frames//one.png"],
        ["frames/./one.png"],
        ["frames/"],
        [""],
        ["on\ne.bin"],
        ["outputs.json"],
        ["receipt.json"],
        ["not-in-the-spec.txt"],
        ["frames/deep/1.png"],
        ["x" * 300 + ".bin"],
        ["one.bin", "one.bin"],
        ["a/b", "a/b/c"],
        ["a/b/c", "a/b"],
    ],
)
def test_a_path_that_the_spec_or_a_store_forbids_is_refused(runtime: Runtime, writes: list[str]) -> None:
    result = runtime.run(inputs={"write": [[path, "x"] for path in writes]})

    assert result.error["code"] == "ERR_OUTPUT_INVALID"


def test_a_handler_may_catch_a_refused_path(runtime: Runtime) -> None:
    result = runtime.run(inputs={"forgive": True})

    assert result.completed.status == "success"
    assert result.text == "no entry of outputs matches 'nowhere/else'"


def test_content_of_another_kind_is_a_type_error(runtime: Runtime) -> None:
    error = runtime.run(inputs={"wrong": True}).error

    assert error["message"] == "TypeError: write() takes bytes, str, a path, a file or an iterator, not dict"


def test_a_plain_entry_that_is_not_written_is_an_error(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("def run(context): pass", outputs=[{"path": "must.txt"}, {"path": "may/*"}])

    error = runtime.run().error

    assert error["code"] == "ERR_OUTPUT_INVALID"
    assert error["details"] == {"missing": ["must.txt"]}


def test_a_large_output_passes_with_flat_memory(runtime: Runtime) -> None:
    runtime.run()
    before = memory_bytes(runtime.pid)
    peaks: list[int] = []

    async def scene() -> int:
        async with runtime.session() as session:
            await session.start(inputs={"size": 300 * 2**20})
            received = 0
            while True:
                data = await session.socket.recv()
                if isinstance(data, bytes):
                    upload, chunk = session.side.receive_chunk(data)
                    received += len(chunk)
                    if (credit := session.side.consumed(upload)) is not None:
                        await session.socket.send(credit)
                        peaks.append(memory_bytes(runtime.pid))
                    continue
                match message := session.side.receive(data):
                    case Upload():
                        await session.socket.send(session.side.grant_relay(message.upload))
                    case Uploaded():
                        await session.socket.send(encode(Stored(message.upload)))
                if session.side.completed is not None:
                    return received

    assert asyncio.run(scene()) == 300 * 2**20
    assert max(peaks) - before < 16 * 2**20


def memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


def test_a_cancel_in_the_middle_of_an_upload_is_immediate(runtime: Runtime) -> None:
    async def scene() -> tuple[float, Result]:
        async with runtime.session() as session:
            identity = await session.start(inputs={"size": 200 * 2**20})
            while True:
                data = await session.socket.recv()
                if isinstance(data, bytes):
                    break
                message = session.side.receive(data)
                if isinstance(message, Upload):
                    await session.socket.send(session.side.grant_relay(message.upload))
            began = time.monotonic()
            await session.socket.send(encode(Cancel(identity, "user")))
            while session.side.completed is None:
                data = await session.socket.recv()
                if isinstance(data, str):
                    session.result.messages.append(session.side.receive(data))
            return time.monotonic() - began, session.result

    took_s, result = asyncio.run(scene())

    assert took_s < 1.5  # less than the grace of a handler that does not react
    assert result.error["code"] == "ERR_CANCELLED"
    assert result.completed.outputs == []


def test_the_window_holds_what_was_not_stored_yet(runtime: Runtime) -> None:
    async def scene() -> int:
        async with runtime.session() as session:
            await session.start(inputs={"size": 2**20})
            received = 0
            while True:
                try:
                    async with asyncio.timeout(0.3):
                        data = await session.socket.recv()
                except TimeoutError:
                    return received
                if isinstance(data, bytes):
                    received += len(data) - 12
                elif isinstance(message := session.side.receive(data), Upload):
                    await session.socket.send(encode(Grant(message.upload, "relay", credit=300_000)))
                    await session.socket.send(encode(Credit(message.upload, 5)))

    assert asyncio.run(scene()) == 300_005


def test_a_refused_upload_ends_the_execution_with_its_error(runtime: Runtime) -> None:
    words = {"code": "ERR_STORAGE", "message": "the disk is full", "hint": "make room", "details": {"free_bytes": 0}}

    async def scene() -> Result:
        async with runtime.session() as session:
            await session.start(inputs={"write": [["one.bin", "1"], ["two.bin", "2"]], "linger": True})
            due = {"the first is stored", "the second is asked for"}  # in either order
            while session.side.completed is None:
                data = await session.socket.recv()
                if isinstance(data, bytes):
                    session.side.receive_chunk(data)
                    continue
                message = session.side.receive(data)
                session.result.messages.append(message)
                match message:
                    case Upload(path="one.bin"):
                        await session.socket.send(session.side.grant_relay(message.upload))
                    case Uploaded():
                        await session.socket.send(encode(Stored(message.upload)))
                    case Upload(path="two.bin"):
                        due.remove("the second is asked for")
                    case Event(event="output"):
                        due.remove("the first is stored")
                    case _:
                        continue
                if not due:
                    await session.socket.send(encode(Refused(2, words)))
            return session.result

    result = asyncio.run(scene())

    assert result.error == words
    assert [output["path"] for output in result.completed.outputs] == ["one.bin"]


def test_more_outputs_than_scratch_holds_is_a_limit(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(HANDLER, outputs=OUTPUTS, runtime={"scratch_gb": 0.001})

    async def scene() -> Result:
        async with runtime.session() as session:
            texts = [[f"{number}.bin", "x" * 400_000] for number in range(4)]
            await session.start(inputs={"write": texts})
            while session.side.completed is None:  # no grant: nothing leaves the spool
                session.result.messages.append(session.side.receive(await session.socket.recv()))
            return session.result

    error = asyncio.run(scene()).error

    assert error["code"] == "ERR_LIMIT"
    assert error["details"]["limit"] == "scratch"
