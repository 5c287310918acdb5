"""Frames that the runtime writes itself, and readers that are slow: what rests on websockets' inside."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processor_runtime.protocol import Cancel, Event, Run, encode
from websockets.exceptions import ConnectionClosed

from tests.runtime.conftest import Result, Runtime, execution_id, launch

HANDLER = """
    import time

    def run(context):
        given = context.inputs
        for size in given.get("sizes", []):
            context.token("é" * size)
        for number in range(given.get("count", 0)):
            context.token("x" * given.get("width", 8))
            if pause := given.get("pause"):
                time.sleep(pause)
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(tmp_path_factory.mktemp("stream") / "app", HANDLER, runtime={"concurrency": 8}, grace_s=0.5)
    yield running
    running.stop()


def test_messages_of_every_frame_size_arrive_whole(runtime: Runtime) -> None:
    sizes = [1, 30, 62, 63, 1000, 32_000, 33_000, 60_000]

    result = runtime.run(inputs={"sizes": sizes})

    assert [len(data["text"]) for data in result.data("token")] == sizes


def test_a_very_long_text_becomes_several_events(runtime: Runtime) -> None:
    result = runtime.run(inputs={"sizes": [300_000]})

    assert len(result.data("token")) == 5
    assert result.text == "é" * 300_000


def test_many_tokens_arrive_in_order_and_complete(runtime: Runtime) -> None:
    result = runtime.run(inputs={"count": 20_000})

    assert len(result.text) == 160_000
    assert [event.seq for event in result.events] == list(range(1, 20_002))


def test_the_first_token_does_not_wait_for_the_second(runtime: Runtime) -> None:
    async def scene() -> float:
        async with runtime.session() as session:
            await session.start(inputs={"count": 2, "pause": 5})
            began = time.monotonic()
            await session.until("token")
            return time.monotonic() - began

    assert asyncio.run(scene()) < 3


def test_a_reader_that_stops_stops_its_handler_and_loses_nothing(runtime: Runtime) -> None:
    before = memory_bytes(runtime.pid)

    async def scene() -> tuple[int, Result]:
        async with runtime.session(max_queue=1) as session:
            await session.start(inputs={"count": 30_000, "width": 1000})
            await asyncio.sleep(1)
            held = memory_bytes(runtime.pid)
            return held, await session.finish()

    held, result = asyncio.run(scene())

    assert held - before < 8 * 2**20
    assert len(result.text) == 30_000_000


def test_a_cancel_gets_through_to_a_handler_whose_reader_stopped(runtime: Runtime) -> None:
    async def scene() -> Result:
        async with runtime.session(max_queue=1) as session:
            identity = await session.start(inputs={"count": 10**9, "width": 1000})
            await asyncio.sleep(0.5)
            await session.socket.send(encode(Cancel(identity, "user")))
            await asyncio.sleep(0.5)
            return await session.finish()

    result = asyncio.run(scene())

    assert result.error["details"] == {"by": "user", "step": "interrupt"}


def test_others_are_served_while_one_reader_is_stopped(runtime: Runtime) -> None:
    async def scene() -> float:
        async with runtime.session(max_queue=1) as stopped:
            await stopped.start(inputs={"count": 10**9, "width": 1000})
            await asyncio.sleep(0.3)
            began = time.monotonic()
            await runtime.execute(inputs={"count": 10})
            took_s = time.monotonic() - began
            stopped.socket.transport.abort()
            return took_s

    assert asyncio.run(scene()) < 3  # the one that is stopped never ends


def test_the_connection_stays_open_for_the_controller_to_close(runtime: Runtime) -> None:
    async def scene() -> None:
        async with runtime.session() as session:
            await session.start()
            await session.finish()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await session.socket.recv()

    asyncio.run(scene())


def test_a_second_run_on_one_connection_is_a_protocol_error(runtime: Runtime) -> None:
    async def scene() -> int:
        async with runtime.session() as session:
            await session.start(inputs={"count": 2, "pause": 5})
            await session.until("token")
            again = Run(execution_id(), "mock", {}, "/artifacts/a/", 1.0)
            await session.socket.send(encode(again))
            with pytest.raises(ConnectionClosed) as caught:
                await session.finish()
            assert caught.value.rcvd is not None
            return caught.value.rcvd.code

    assert asyncio.run(scene()) == 1002


def test_started_comes_with_the_first_token_in_one_piece(runtime: Runtime) -> None:
    async def scene() -> list[str]:
        async with runtime.session() as session:
            await session.start(inputs={"count": 1})
            await session.finish()
            return [message.event for message in session.result.messages if isinstance(message, Event)]

    assert asyncio.run(scene()) == ["started", "token"]


def memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)
