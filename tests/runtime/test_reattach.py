"""Several connections, one after the other or at once, for one execution: what each gets, and who is asked."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from processor_runtime.fetches import Fetches
from processor_runtime.followers import MAX_FOLLOWERS
from processor_runtime.protocol import (
    Cancel,
    Completed,
    Credit,
    Event,
    Grant,
    Refused,
    Source,
    Stored,
    Unavailable,
    Upload,
    Uploaded,
    encode,
)
from processor_runtime.uploads import Spooled, Uploads
from websockets.exceptions import ConnectionClosed

from tests.runtime.conftest import Result, Runtime, Session, execution_id, launch
from tests.runtime.test_stream import memory_bytes

HANDLER = """
    import os, time

    def run(context):
        given = context.inputs
        if "ran" in given:
            with open(given["ran"], "a") as file:
                file.write("x")
        for number in range(given.get("count", 0)):
            context.token(str(number) + " " + "x" * given.get("width", 0))
            time.sleep(given.get("pause_s", 0))
        for name, size in given.get("write", []):
            context.write(name, (name[0] * 2**20 for _ in range(size)))
        context.token("up")
        while "gate" in given and not os.path.exists(given["gate"]):
            time.sleep(0.01)
"""
MIB = 2**20


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("reattach") / "app"
    running = launch(folder, HANDLER, runtime={"concurrency": 8}, outputs=[{"path": "*.bin"}])
    yield running
    running.stop()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Handlers end once it is there."""
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


def seqs(session: Session) -> list[int]:
    return [event.seq for event in session.result.events]


def names(session: Session) -> list[str]:
    return [event.event for event in session.result.events]


def asked(session: Session) -> list[str]:
    return [message.path for message in session.result.messages if isinstance(message, Upload)]


async def until_upload(session: Session) -> Upload:
    """The next request for an upload, not answered."""
    while True:
        message = session.side.receive(await session.socket.recv())
        session.result.messages.append(message)
        if isinstance(message, Upload):
            return message


# one after the other


def test_a_client_that_lost_its_connection_gets_what_it_missed_and_the_end(runtime: Runtime, gate: Path) -> None:
    async def scene() -> tuple[Session, Session]:
        async with runtime.session() as first:
            identity = await first.start(inputs={"count": 20, "pause_s": 0.01, "gate": str(gate)})
            for _ in range(5):
                await first.until("token")
            first.cut()
        await asyncio.sleep(0.3)
        async with runtime.session() as second:
            await second.attach(identity, first.side.next_seq - 1)
            await second.until("reattached")
            gate.touch()  # noqa: ASYNC240
            await second.finish()
            return first, second

    first, second = asyncio.run(scene())

    assert seqs(first) + seqs(second) == list(range(1, len(seqs(first)) + len(seqs(second)) + 1))
    assert first.result.text + second.result.text == " ".join(map(str, range(20))) + " up"
    assert names(second)[-1] == "reattached"
    assert second.result.completed.status == "success"


def test_the_same_id_while_it_runs_is_the_same_execution_from_its_first_event(runtime: Runtime, gate: Path) -> None:
    ran = gate.with_name("ran")
    request: dict[str, Any] = {"execution_id": execution_id(), "inputs": {"gate": str(gate), "ran": str(ran)}}

    async def scene() -> tuple[Session, Session]:
        async with runtime.session() as first:
            await first.start(**request)
            await first.until("token")
            first.cut()
        async with runtime.session() as second:
            await second.start(**request | {"timeout_s": 5.0})  # another deadline is no other request
            await second.until("reattached")
            gate.touch()  # noqa: ASYNC240
            await second.finish()
            return first, second

    first, second = asyncio.run(scene())

    assert second.result.events[: len(seqs(first))] == first.result.events
    assert names(second) == ["started", "token", "reattached"]
    assert ran.read_text() == "x"


@pytest.mark.parametrize(
    "changes", [{"inputs": {"other": 1}}, {"mode": "real"}, {"write_prefix": "/artifacts/elsewhere/"}]
)
def test_a_running_id_for_another_request_is_a_conflict(runtime: Runtime, gate: Path, changes: dict[str, Any]) -> None:
    async def scene() -> Result:
        async with runtime.session() as first:
            request: dict[str, Any] = {"inputs": {"gate": str(gate)}}
            identity = await first.start(**request)
            await first.until("token")
            refused = await runtime.execute(**request | {"execution_id": identity} | changes)
            gate.touch()  # noqa: ASYNC240
            assert (await first.finish()).completed.status == "success"
            assert names(first) == ["started", "token"], "it was not told of who was refused"
            return refused

    assert asyncio.run(scene()).error["code"] == "ERR_EXECUTION_CONFLICT"


def test_a_client_that_was_lost_in_the_queue_keeps_its_place(start_runtime: Callable[..., Runtime], gate: Path) -> None:
    runtime = start_runtime(HANDLER, runtime={"concurrency": 1})

    async def scene() -> Session:
        async with runtime.session() as running, runtime.session() as waiting:
            await running.start(inputs={"gate": str(gate)})
            await running.until("token")
            identity = await waiting.start()
            await waiting.until("queued")
            waiting.cut()
            async with runtime.session() as again:
                await again.attach(identity, 0)
                await again.until("reattached")
                gate.touch()  # noqa: ASYNC240
                await again.finish()
                return again

    again = asyncio.run(scene())

    assert names(again) == ["queued", "reattached", "started", "token"]


def test_what_is_gone_from_the_ring_is_one_gap(runtime: Runtime, gate: Path) -> None:
    async def scene() -> Session:
        async with runtime.session() as first:
            identity = await first.start(inputs={"count": 3000, "width": 1000, "gate": str(gate), "pause_s": 0.0001})
            await first.until("token")
            first.cut()
        await asyncio.sleep(2)
        async with runtime.session() as second:
            await second.attach(identity, first.side.next_seq - 1)
            await second.until("reattached")
            return second

    second = asyncio.run(scene())

    gap, *rest = second.result.events
    assert gap.event == "gap"
    assert gap.data == {"from": 3, "to": gap.seq}
    assert [event.seq for event in rest] == list(range(gap.seq + 1, gap.seq + 1 + len(rest)))
    assert "gap" not in names(second)[1:]


def test_numbers_that_an_execution_never_gave_are_another_executions(runtime: Runtime, gate: Path) -> None:
    async def scene() -> tuple[str, int]:
        async with runtime.session() as first, runtime.session() as beyond, runtime.session() as below:
            identity = await first.start(inputs={"gate": str(gate)})
            await first.until("token")
            await beyond.attach(identity, 3)
            code = (await beyond.finish()).error["code"]
            await below.attach(identity, -1)
            with pytest.raises(ConnectionClosed) as closed:
                await below.finish()
            assert closed.value.rcvd is not None
            return code, closed.value.rcvd.code

    assert asyncio.run(scene()) == ("ERR_EXECUTION_NOT_FOUND", 1002)


def test_who_is_lost_just_before_the_end_gets_the_last_events_too(runtime: Runtime) -> None:
    identity = execution_id()
    whole = runtime.run(execution_id=identity, inputs={"count": 500})

    async def attach(after: int) -> Result:
        async with runtime.session() as session:
            await session.attach(identity, after)
            return await session.finish()

    again = asyncio.run(attach(100))

    assert again.events == whole.events[100:]
    assert again.completed == whole.completed
    assert asyncio.run(attach(502)).events == []


def test_events_of_ended_executions_are_forgotten_before_their_ends(runtime: Runtime) -> None:
    identity = execution_id()
    whole = runtime.run(execution_id=identity, inputs={"count": 500})
    for _ in range(5):
        runtime.run(inputs={"count": 1000, "width": 1000})

    again = runtime.run(execution_id=identity, inputs={"count": 500})

    (gap,) = again.events
    assert (gap.event, gap.data) == ("gap", {"from": 1, "to": len(whole.events)})
    assert again.completed == whole.completed


# the end of patience


@pytest.fixture
def hasty(start_runtime: Callable[..., Runtime]) -> Runtime:
    return start_runtime(HANDLER, grace_s=0.3, outputs=[{"path": "*.bin"}])


def test_an_execution_that_nobody_follows_any_more_is_cancelled(hasty: Runtime, gate: Path) -> None:
    request: dict[str, Any] = {"execution_id": execution_id(), "inputs": {"gate": str(gate)}}

    async def leave() -> None:
        async with hasty.session() as session:
            await session.start(**request)
            await session.until("token")
            session.cut()

    async def attach() -> Result:
        async with hasty.session() as session:
            await session.attach(request["execution_id"], 2)
            return await session.finish()

    asyncio.run(leave())
    hasty.wait_for_log(f"{request['execution_id']} ended: ERR_CANCELLED")
    gate.touch()
    missed = asyncio.run(attach())
    again = hasty.run(**request)

    assert missed.error["details"] == {"by": "client", "step": "interrupt"}
    assert again.completed.status == "success", "nobody saw its end: the id may run again"
    assert hasty.run(**request).completed == again.completed


def test_a_client_that_is_back_in_time_stops_the_clock(hasty: Runtime, gate: Path) -> None:
    async def scene() -> Result:
        async with hasty.session() as first:
            identity = await first.start(inputs={"gate": str(gate)})
            await first.until("token")
            first.cut()
        await asyncio.sleep(0.1)
        async with hasty.session() as second:
            await second.attach(identity, 2)
            await asyncio.sleep(0.6)
            gate.touch()  # noqa: ASYNC240
            return await second.finish()

    assert asyncio.run(scene()).completed.status == "success"


def test_outputs_wait_for_somebody_to_take_them(hasty: Runtime) -> None:
    identity = execution_id()

    async def leave() -> None:
        async with hasty.session() as session:
            await session.start(execution_id=identity, inputs={"write": [["a.bin", 1]]})
            await until_upload(session)
            session.cut()

    asyncio.run(leave())
    hasty.wait_for_log(f"{identity} ended: ERR_CANCELLED")


# at once


@asynccontextmanager
async def following(
    runtime: Runtime, gate: Path, count: int, **inputs: Any
) -> AsyncIterator[tuple[str, list[Session]]]:
    """An execution that waits at `gate`, and so many sessions that follow it, in the order they came."""
    async with runtime.session() as first:
        identity = await first.start(inputs={"gate": str(gate), **inputs})
        await first.until("token")
        others = []
        for _ in range(count - 1):
            session = Session(await runtime.connect())
            others.append(session)
            await session.hello()
            await session.attach(identity)
            await session.until("reattached")
        try:
            yield identity, [first, *others]
        finally:
            for session in others:
                await session.socket.close()


def test_all_that_follow_get_the_same_events_and_the_same_end(runtime: Runtime, gate: Path) -> None:
    async def scene() -> list[Session]:
        async with following(runtime, gate, 3) as (_, sessions):
            gate.touch()  # noqa: ASYNC240
            await asyncio.gather(*(session.finish() for session in sessions))
            return sessions

    sessions = asyncio.run(scene())

    assert sessions[0].result.events == sessions[1].result.events == sessions[2].result.events
    assert names(sessions[0]) == ["started", "token", "reattached", "reattached"]
    assert len({session.result.completed.meta["duration_ms"] for session in sessions}) == 1


def test_a_cancel_by_one_user_is_for_all(runtime: Runtime, gate: Path) -> None:
    async def scene() -> list[Result]:
        async with following(runtime, gate, 2) as (identity, (first, second)):
            await first.socket.send(encode(Cancel(identity, "user")))
            return [await first.finish(), await second.finish()]

    first, second = asyncio.run(scene())

    assert first.completed == second.completed
    assert first.error["details"] == {"by": "user", "step": "interrupt"}


def test_a_client_that_leaves_for_good_takes_nothing_from_the_others(runtime: Runtime, gate: Path) -> None:
    async def scene() -> list[Result]:
        async with following(runtime, gate, 3) as (identity, (first, second, third)):
            await third.socket.send(encode(Cancel(identity, "client")))
            await third.socket.close()
            await asyncio.sleep(0.1)
            gate.touch()  # noqa: ASYNC240
            return [await first.finish(), await second.finish()]

    assert [result.completed.status for result in asyncio.run(scene())] == ["success"] * 2


def test_the_last_client_that_leaves_for_good_ends_it_at_once(runtime: Runtime, gate: Path) -> None:
    async def scene() -> str:
        async with following(runtime, gate, 1) as (identity, (only,)):
            await only.socket.send(encode(Cancel(identity, "client")))
            return identity

    identity = asyncio.run(scene())

    runtime.wait_for_log(f"{identity} ended: ERR_CANCELLED: the execution was cancelled because its client went", 3)


def test_one_more_than_may_follow_sends_the_first_away(runtime: Runtime, gate: Path) -> None:
    async def scene() -> int:
        async with following(runtime, gate, MAX_FOLLOWERS + 1) as (_, sessions):
            with pytest.raises(ConnectionClosed) as closed:
                await sessions[0].finish()
            gate.touch()  # noqa: ASYNC240
            results = await asyncio.gather(*(session.finish() for session in sessions[1:]))
            assert {result.completed.status for result in results} == {"success"}
            assert closed.value.rcvd is not None
            return closed.value.rcvd.code

    assert asyncio.run(scene()) == 1008


def test_an_earlier_follower_that_is_slow_gets_a_gap_and_stalls_nobody(runtime: Runtime) -> None:
    before = memory_bytes(runtime.pid)

    async def scene() -> tuple[Session, Session, int]:
        async with runtime.session(max_queue=1) as slow, runtime.session() as latest:
            identity = await slow.start(inputs={"count": 20_000, "width": 1000, "write": [["a.bin", 1]]})
            await slow.until("token")
            await latest.attach(identity)
            await latest.finish()
            grown = memory_bytes(runtime.pid) - before
            await slow.finish()
            return slow, latest, grown

    slow, latest, grown = asyncio.run(scene())

    assert latest.result.text.count(" ") == 20_000
    assert "gap" not in names(latest)
    assert "gap" in names(slow)
    assert seqs(slow)[-1] == seqs(latest)[-1]
    assert slow.result.completed == latest.result.completed
    assert grown < 12 * MIB


def test_a_handler_waits_for_the_latest_again_once_the_one_after_it_left(runtime: Runtime) -> None:
    async def scene() -> tuple[Session, int]:
        async with runtime.session(max_queue=1) as slow:
            identity = await slow.start(inputs={"count": 10**9, "width": 1000})
            await slow.until("token")
            async with runtime.session() as latest:
                await latest.attach(identity)
                await latest.until("token")
                for _ in range(2000):
                    await latest.receive()
                latest.cut()  # a handshake would have to wait for all that is on its way
            await asyncio.sleep(0.5)
            ran_cpu_s = cpu_s(runtime.pid)
            await asyncio.sleep(0.5)
            held = cpu_s(runtime.pid) - ran_cpu_s < 0.1
            await slow.socket.send(encode(Cancel(identity, "user")))
            await slow.finish()
            return slow, held

    slow, held = asyncio.run(scene())

    assert held
    assert slow.result.error["code"] == "ERR_CANCELLED"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# who takes the outputs


def test_an_upload_cut_in_its_middle_is_asked_again_from_the_beginning(runtime: Runtime) -> None:
    async def scene() -> tuple[Session, Session]:
        async with runtime.session() as first:
            identity = await first.start(inputs={"write": [["a.bin", 6], ["b.bin", 6]]})
            while first.parts.get(1) is None or len(first.parts[1]) < 2 * MIB:
                await first.receive()
            first.cut()
        async with runtime.session() as second:
            await second.attach(identity, first.side.next_seq - 1)
            await second.finish()
            return first, second

    first, second = asyncio.run(scene())

    assert not set(first.uploads) & set(second.uploads), "numbers are used once"
    assert second.result.files == {"a.bin": b"a" * 6 * MIB, "b.bin": b"b" * 6 * MIB}
    assert [output["path"] for output in second.result.completed.outputs] == ["a.bin", "b.bin"]


def test_an_upload_that_nobody_said_is_stored_is_asked_again_and_counted_once(runtime: Runtime) -> None:
    async def scene() -> Session:
        async with runtime.session() as first:
            identity = await first.start(inputs={"write": [["a.bin", 1]]})
            upload = await until_upload(first)
            await first.socket.send(first.side.grant_relay(upload.upload))
            while not isinstance(data := await first.socket.recv(), str) or '"uploaded"' not in data:
                pass
            first.cut()
        async with runtime.session() as second:
            await second.attach(identity)
            await second.finish()
            return second

    second = asyncio.run(scene())

    assert names(second).count("output") == 1
    assert [output["path"] for output in second.result.completed.outputs] == ["a.bin"]


def test_the_latest_is_asked_and_when_it_leaves_the_one_before_it(runtime: Runtime, gate: Path) -> None:
    async def scene() -> list[Session]:
        async with runtime.session() as first, runtime.session() as second, runtime.session() as third:
            identity = await first.start(inputs={"write": [["a.bin", 1], ["b.bin", 1]], "gate": str(gate)})
            one = await until_upload(first)
            await second.attach(identity)
            await until_upload(second)
            await third.attach(identity)
            await until_upload(third)
            await first.socket.send(first.side.grant_relay(one.upload))  # too late: nobody listens
            third.cut()
            gate.touch()  # noqa: ASYNC240
            await second.finish()
            while first.side.completed is None:
                data = await first.socket.recv()
                assert isinstance(data, str), "a chunk to one that is not the latest"
                first.result.messages.append(first.side.receive(data))
            return [first, second, third]

    first, second, third = asyncio.run(scene())

    assert set(second.result.files) == {"a.bin", "b.bin"}
    assert asked(third)
    assert first.result.completed == second.result.completed
    assert names(first) == names(second)


def test_what_one_says_that_is_not_asked_any_more_changes_nothing(runtime: Runtime, gate: Path) -> None:
    async def scene() -> Session:
        async with runtime.session() as first, runtime.session() as second:
            identity = await first.start(inputs={"write": [["a.bin", 1]], "gate": str(gate)})
            upload = (await until_upload(first)).upload
            await second.attach(identity)
            await until_upload(second)
            await first.socket.send(encode(Grant(upload, "relay", credit=MIB)))
            await first.socket.send(encode(Credit(upload, MIB)))
            await first.socket.send(encode(Stored(upload)))
            await asyncio.sleep(0.2)
            gate.touch()  # noqa: ASYNC240
            second.cut()
            while not isinstance(await first.receive(), Uploaded):
                pass
            await first.finish()
            return first

    first = asyncio.run(scene())

    assert first.result.files == {"a.bin": b"a" * MIB}
    assert first.result.completed.status == "success"


def test_ten_cuts_in_one_execution_lose_and_repeat_nothing(runtime: Runtime) -> None:
    async def scene() -> tuple[list[Session], float]:
        identity, sessions = execution_id(), list[Session]()
        inputs = {"count": 400, "pause_s": 0.002, "write": [[f"{name}.bin", 3] for name in "abcdefgh"]}
        began = time.monotonic()
        while not sessions or sessions[-1].side.completed is None:
            async with runtime.session() as session:
                if sessions:
                    await session.attach(identity, sessions[-1].side.next_seq - 1)
                else:
                    await session.start(execution_id=identity, inputs=inputs)
                sessions.append(session)
                messages = 0
                while session.side.completed is None and (len(sessions) > 10 or messages < 45):
                    await session.receive()
                    messages += 1
                session.cut()
        return sessions, time.monotonic() - began

    sessions, took_s = asyncio.run(scene())

    events: list[Event] = [event for session in sessions for event in session.result.events]
    files = {path: data for session in sessions for path, data in session.result.files.items()}
    assert len(sessions) > 10
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    tokens = [event.data["text"].strip() for event in events if event.event == "token"]
    assert " ".join(tokens).split() == [*map(str, range(400)), "up"]
    assert files == {f"{name}.bin": name.encode() * 3 * MIB for name in "abcdefgh"}
    last = sessions[-1].side.completed
    assert isinstance(last, Completed)
    assert [output["path"] for output in last.outputs] == sorted(files)
    assert took_s < 15


def test_a_direct_upload_is_broken_off_with_its_connection_and_asked_again(runtime: Runtime) -> None:
    async def scene() -> tuple[bool, Session]:
        taken, broken = asyncio.Event(), asyncio.Event()

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            taken.set()
            while await reader.read(65536):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            broken.set()
            writer.close()

        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/key"
        async with server:
            async with runtime.session() as first:
                identity = await first.start(inputs={"write": [["a.bin", 300]]})
                upload = await until_upload(first)
                request = {"method": "PUT", "url": url, "headers": {}}
                await first.socket.send(encode(Grant(upload.upload, "direct", request=request)))
                await taken.wait()
                first.cut()
            async with asyncio.timeout(5):
                await broken.wait()
            async with runtime.session() as second:
                await second.attach(identity)
                await second.finish()
                return broken.is_set(), second

    broken, second = asyncio.run(scene())

    assert broken
    assert len(second.result.files["a.bin"]) == 300 * MIB


# a word that crosses the change of who is asked


class Deaf:
    """A courier that keeps what it is to say."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def ask(self, message: Any) -> None:
        self.said.append(message)

    def say(self, text: str) -> None:
        self.said.append(text)

    async def send_chunk(self, data: bytes) -> None:
        self.said.append(data)


def unexpected(failure: Any) -> None:
    raise AssertionError(failure)


@pytest.mark.parametrize("late", [Grant(1, "relay", credit=10), Stored(1), Refused(1, {"code": "ERR_STORAGE"})])
def test_a_late_word_of_an_upload_is_no_fault_of_who_says_it(tmp_path: Path, late: Any) -> None:
    (tmp_path / "1").write_bytes(b"a")

    async def scene() -> list[Any]:
        courier, stored = Deaf(), list[str]()
        uploads = Uploads("id", tmp_path, courier, stored=lambda output: stored.append(output.path), failed=unexpected)
        uploads.add(Spooled("a.bin", "1", 1, "sha256:", "text/plain"))
        await asyncio.sleep(0)
        if not isinstance(late, Grant):
            uploads.receive(Grant(1, "relay", credit=10))
            while len(courier.said) < 3:  # noqa: ASYNC110  asked, sent, said so
                await asyncio.sleep(0)
        uploads.restart(ready=True)
        uploads.receive(late)
        await asyncio.sleep(0.01)
        uploads.abort()
        assert stored == []
        return courier.said

    assert [message.upload for message in asyncio.run(scene()) if isinstance(message, Upload)] == [1, 2]


@pytest.mark.parametrize("late", [Source(1, 1, "sha256:"), Unavailable(1, {"code": "ERR_STORAGE"})])
def test_a_late_word_of_a_fetch_is_no_fault_of_who_says_it(tmp_path: Path, late: Any) -> None:
    async def scene() -> list[Any]:
        courier = Deaf()
        fetches = Fetches(
            "id", ("/artifacts/a",), tmp_path, courier, reserve=lambda size: True, done=lambda: None, failed=unexpected
        )
        fetches.start()
        await asyncio.sleep(0)
        fetches.restart(ready=True)
        fetches.receive(late)
        await asyncio.sleep(0.01)
        fetches.abort()
        return courier.said

    assert [message.fetch for message in asyncio.run(scene())] == [1, 2]
