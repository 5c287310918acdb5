"""Several executions at once: order, limits, cancelling, the same id again."""

import asyncio
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processor_runtime.executions import MAX_WAITING
from processor_runtime.protocol import Cancel, Cancelled, Event, Run, encode

from tests.runtime.conftest import RUNTIME, Runtime, Session, execution_id, launch

HANDLER = """
    import asyncio, os, pathlib, time

    def run(context):
        what = context.inputs.get("what")
        if what == "hold":
            context.token("up")
            while not os.path.exists(context.inputs["until"]):
                time.sleep(0.01)
        elif what == "async":
            return wait(context)
        elif what == "blocking":
            return block(context)
        elif what == "polite":
            context.token("up")
            try:
                time.sleep(60)
            finally:
                context.token("never seen")
        elif what == "count":
            with open(context.inputs["file"], "a") as file:
                file.write("x")
            context.write("count.txt", "counted")
        context.token("done")

    async def block(context):
        context.token("up")
        time.sleep(60)

    async def wait(context):
        context.token("up")
        try:
            await asyncio.sleep(60)
        finally:
            pathlib.Path(context.inputs["file"]).write_text("cleaned up")
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(
        tmp_path_factory.mktemp("queue") / "app",
        HANDLER,
        runtime={"concurrency": 2},
        grace_s=0.5,
        outputs=[{"path": "count*.txt"}],
    )
    yield running
    running.stop()


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A file that lets `hold` handlers end."""
    path = tmp_path_factory.mktemp("gate") / "open"
    yield str(path)
    path.touch()


async def hold(session: Session, gate: str) -> None:
    await session.start(inputs={"what": "hold", "until": gate})
    await session.until("token")


def test_no_more_than_concurrency_run_and_the_rest_wait_in_order(runtime: Runtime, gate: str) -> None:
    async def scene() -> tuple[list[int], list[str]]:
        async with runtime.session() as a, runtime.session() as b, runtime.session() as c, runtime.session() as d:
            await hold(a, gate)
            await hold(b, gate)
            positions = []
            for session in (c, d):
                await session.start()
                positions.append((await session.until("queued")).data["position"])
            Path(gate).touch()  # noqa: ASYNC240
            ends: list[str] = []

            async def end(name: str, session: Session) -> None:
                await session.until("started")
                ends.append(name)
                await session.finish()

            await asyncio.gather(end("c", c), end("d", d), a.finish(), b.finish())
            return positions, ends

    positions, starts = asyncio.run(scene())

    assert positions == [1, 2]
    assert starts == ["c", "d"]


def test_readyz_says_busy_while_one_more_run_would_wait(runtime: Runtime, gate: str) -> None:
    def state() -> tuple[str, int]:
        answer = json.loads(runtime.get("/readyz")[1])
        return answer["state"], answer["executions"]

    async def scene() -> list[tuple[str, int]]:
        async with runtime.session() as a, runtime.session() as b:
            await hold(a, gate)
            states = [await asyncio.to_thread(state)]
            await hold(b, gate)
            states.append(await asyncio.to_thread(state))
            Path(gate).touch()  # noqa: ASYNC240
            await a.finish()
            await b.finish()
            return states

    assert asyncio.run(scene()) == [("ready", 1), ("busy", 2)]


def test_a_run_that_starts_at_once_is_not_queued(runtime: Runtime) -> None:
    assert runtime.run().data("queued") == []


def test_event_numbers_have_no_holes(runtime: Runtime) -> None:
    result = runtime.run()

    assert [event.seq for event in result.events] == list(range(1, len(result.events) + 1))


@pytest.mark.parametrize("by", ["user", "client"])
def test_a_cancel_reaches_the_handler_and_the_envelope_says_whose_it_was(runtime: Runtime, by: str) -> None:
    async def scene() -> Session:
        async with runtime.session() as session:
            identity = await session.start(inputs={"what": "polite"})
            await session.until("token")
            await session.socket.send(encode(Cancel(identity, by)))
            await session.finish()
            return session

    result = asyncio.run(scene()).result

    assert result.error["code"] == "ERR_CANCELLED"
    assert result.error["details"] == {"by": by, "step": "interrupt"}
    assert isinstance(result.messages[-2], Cancelled)
    assert result.text == "up"


def test_a_cancel_runs_the_finally_of_an_async_handler(runtime: Runtime, gate: str) -> None:
    async def scene() -> Session:
        async with runtime.session() as session:
            identity = await session.start(inputs={"what": "async", "file": gate})
            await session.until("token")
            await session.socket.send(encode(Cancel(identity, "user")))
            await session.finish()
            return session

    result = asyncio.run(scene()).result

    assert result.error["details"] == {"by": "user", "step": "interrupt"}
    with open(gate) as file:
        assert file.read() == "cleaned up"


def test_a_cancel_gets_through_to_an_async_handler_that_blocks_its_loop(runtime: Runtime) -> None:
    async def scene() -> Session:
        async with runtime.session() as session:
            identity = await session.start(inputs={"what": "blocking"})
            await session.until("token")
            await session.socket.send(encode(Cancel(identity, "user")))
            await session.finish()
            return session

    began = time.monotonic()
    result = asyncio.run(scene()).result

    assert result.error["details"] == {"by": "user", "step": "interrupt"}
    assert time.monotonic() - began < 1.5


def test_a_cancel_in_the_queue_never_starts_the_handler(runtime: Runtime, gate: str) -> None:
    async def scene() -> Session:
        async with runtime.session() as a, runtime.session() as b, runtime.session() as waiting:
            await hold(a, gate)
            await hold(b, gate)
            identity = await waiting.start()
            await waiting.until("queued")
            await waiting.socket.send(encode(Cancel(identity, "user")))
            await waiting.finish()
            return waiting

    result = asyncio.run(scene()).result

    assert result.error["details"] == {"by": "user", "step": "queued"}
    assert result.completed.meta["started_at"] is None
    assert result.data("started") == []


def test_the_time_in_the_queue_counts(runtime: Runtime, gate: str) -> None:
    async def scene() -> Session:
        async with runtime.session() as a, runtime.session() as b, runtime.session() as waiting:
            await hold(a, gate)
            await hold(b, gate)
            await waiting.start(timeout_s=0.2)
            await waiting.finish()
            return waiting

    assert asyncio.run(scene()).result.error["code"] == "ERR_TIMEOUT"


def test_the_same_id_again_gets_the_same_end_without_running(runtime: Runtime, gate: str) -> None:
    request = {"execution_id": execution_id(), "inputs": {"what": "count", "file": gate}}

    first, second = runtime.run(**request), runtime.run(**request)

    assert second.completed == first.completed
    assert first.files == {"count.txt": b"counted"}
    assert second.events == first.events
    assert second.files == {}
    with open(gate) as file:
        assert file.read() == "x"


@pytest.mark.parametrize(
    "changes", [{"inputs": {"other": 1}}, {"mode": "real"}, {"write_prefix": "/artifacts/elsewhere/"}]
)
def test_the_same_id_for_another_request_is_a_conflict(runtime: Runtime, changes: dict[str, object]) -> None:
    runtime.wait_for("real")
    identity = execution_id()
    runtime.run(execution_id=identity)

    assert runtime.run(execution_id=identity, **changes).error["code"] == "ERR_EXECUTION_CONFLICT"


def test_equal_inputs_in_other_words_are_the_same_request(runtime: Runtime) -> None:
    identity = execution_id()
    first = runtime.run(execution_id=identity, inputs={"a": 1.0, "b": 2})

    assert runtime.run(execution_id=identity, inputs={"b": 2, "a": 1}).completed == first.completed


def test_attach_finds_what_ended_and_nothing_else(runtime: Runtime) -> None:
    identity = execution_id()
    first = runtime.run(execution_id=identity)

    async def attach(wanted: str) -> Session:
        async with runtime.session() as session:
            await session.attach(wanted)
            await session.finish()
            return session

    assert asyncio.run(attach(identity)).result.completed == first.completed
    assert asyncio.run(attach(execution_id())).result.error["code"] == "ERR_EXECUTION_NOT_FOUND"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_worker_that_dies_before_it_took_the_run_costs_nothing(
    start_runtime: Callable[..., Runtime], tmp_path: Path, loop: str
) -> None:
    if loop == "asyncio":
        (tmp_path / "without").mkdir()
        (tmp_path / "without" / "uvloop.py").write_text("raise ImportError")
    runtime = start_runtime(
        "import os\ndef run(context): context.token(str(os.getpid()))",
        runtime={"concurrency": 1},
        env={"PYTHONPATH": f"{tmp_path / 'app0'}:{tmp_path / 'without'}:{RUNTIME}"},
    )
    worker = int(runtime.run().text)
    os.kill(worker, signal.SIGSTOP)

    async def scene() -> str:
        async with runtime.session() as session:
            await session.start()
            await session.until("started")
            os.kill(worker, signal.SIGKILL)
            return (await session.finish()).text

    assert int(asyncio.run(scene())) != worker


def test_the_1025th_that_waits_is_busy(start_runtime: Callable[..., Runtime], gate: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    runtime = start_runtime(HANDLER, runtime={"concurrency": 1})

    async def wait() -> Session:
        session = Session(await runtime.connect())
        await session.hello()
        await session.start()
        await session.until("queued")
        return session

    async def scene() -> tuple[str, set[str]]:
        async with runtime.session() as first:
            await hold(first, gate)
            waiting: list[Session] = []
            while len(waiting) < MAX_WAITING:  # all at once would overrun the listener's backlog
                waiting += await asyncio.gather(*(wait() for _ in range(64)))
            busy = await runtime.execute()
            Path(gate).touch()  # noqa: ASYNC240
            results = await asyncio.gather(*(session.finish() for session in waiting))
            await first.finish()
            for session in waiting:
                await session.socket.close()
            return busy.error["code"], {result.completed.status for result in results}

    assert asyncio.run(scene()) == ("ERR_BUSY", {"success"})


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"mode": "dry"}, "ERR_INPUTS", "mode 'dry'"),
        ({"timeout_s": 0}, "ERR_INPUTS", "timeout_s 0"),
        ({"timeout_s": -1}, "ERR_INPUTS", "timeout_s -1"),
        ({"timeout_s": 1e300}, "ERR_INPUTS", "timeout_s 1e+300"),
        ({"write_prefix": "/elsewhere/"}, "ERR_INPUTS", "write prefix"),
        ({"write_prefix": "/artifacts/a/../b/"}, "ERR_INPUTS", "write prefix"),
        ({"write_prefix": "/artifacts//b/"}, "ERR_INPUTS", "write prefix"),
        ({"write_prefix": "/artifacts/b"}, "ERR_INPUTS", "write prefix"),
        ({"write_prefix": "/artifacts/\n/"}, "ERR_INPUTS", "write prefix"),
        ({"inputs": {"a": 2**60}}, "ERR_INPUTS", "canonical"),
        ({"inputs": {"a": "\ud800"}}, "ERR_INPUTS", "canonical"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    runtime: Runtime, changes: dict[str, object], code: str, words: str
) -> None:
    async def scene() -> Session:
        async with runtime.session() as session:
            fields = {"execution_id": execution_id(), "mode": "mock", "inputs": {}, "timeout_s": 1.0}
            run = Run(**fields | {"write_prefix": "/artifacts/a/"} | changes)  # type: ignore[arg-type]
            text = session.side.run(run).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            if "\ufffd" in text:
                text = text.replace("\ufffd" * 3, "\\ud800")
            await session.socket.send(text)
            await session.finish()
            return session

    error = asyncio.run(scene()).result.error

    assert error["code"] == code
    assert words in error["message"]


def test_wrong_inputs_are_named_by_pointer(start_runtime: Callable[..., Runtime]) -> None:
    schema = {
        "type": "object",
        "properties": {"params": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["m"]}},
        "additionalProperties": False,
    }
    runtime = start_runtime("def run(context): pass", inputs=schema)

    error = runtime.run(inputs={"params": {"n": "x"}}).error

    assert error["code"] == "ERR_INPUTS"
    assert {found["pointer"] for found in error["details"]["errors"]} == {"/params", "/params/n"}


def test_a_schema_that_points_elsewhere_is_not_fetched(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("def run(context): pass", inputs={"$ref": "http://127.0.0.1:9/schema.json"})

    assert runtime.run().error["code"] == "ERR_INPUTS"


def test_events_of_one_write_arrive_as_separate_messages(runtime: Runtime) -> None:
    result = runtime.run(inputs={})

    assert [message.event for message in result.messages if isinstance(message, Event)] == ["started", "token"]
