"""Outputs that go straight to a store, by grants of a controller that the test plays."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processor_runtime.protocol import Cancel, Grant, Refused, Stored, Upload, Uploaded, encode

from tests.runtime.conftest import Result, Runtime, Session, launch
from tests.stores import FakeStore, fake_store

MIB = 2**20
HANDLER = """
    def run(context):
        for number, size in enumerate(context.inputs["sizes"]):
            context.write(f"{number}.bin", (b"x" * min(2**20, size - at) for at in range(0, size, 2**20)))
"""
WORDS = {"code": "ERR_STORAGE", "message": "the disk is full", "hint": "make room", "details": {}}
Answer = Callable[[Session, Upload], str | None]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("direct") / "app"
    running = launch(folder, HANDLER, outputs=[{"path": "*.bin"}], runtime={"scratch_gb": 2})
    yield running
    running.stop()


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with fake_store() as store:
        yield store


def run(runtime: Runtime, answer: Answer, *sizes: int) -> Result:
    """One execution whose uploads get what `answer` makes; None leaves one without."""

    async def scene() -> Result:
        async with runtime.session() as session:
            await session.start(inputs={"sizes": sizes})
            while session.side.completed is None:
                data = await session.socket.recv()
                if isinstance(data, bytes):
                    number, piece = session.side.receive_chunk(data)
                    session.parts[number] += piece
                    continue
                message = session.side.receive(data)
                session.result.messages.append(message)
                match message:
                    case Upload() if text := answer(session, message):
                        session.uploads[message.upload], session.parts[message.upload] = message, bytearray()
                        await session.socket.send(text)
                    case Uploaded():
                        await session.socket.send(encode(Stored(message.upload)))
            return session.result

    return asyncio.run(scene())


def whole(store: FakeStore, headers: dict[str, str] | None = None, *, lifetime_s: float = 900) -> Answer:
    """Grants of one request each."""

    def answer(session: Session, upload: Upload) -> str:
        request = store.request(f"/bucket/{upload.path}?signature=abc%2F", **headers or {})
        return session.side.grant_direct(Grant(upload.upload, "direct", request=request, lifetime_s=lifetime_s))

    return answer


def asked(result: Result) -> list[Upload]:
    return [message for message in result.messages if isinstance(message, Upload)]


def test_a_grant_is_one_request_as_it_was_given(runtime: Runtime, store: FakeStore) -> None:
    result = run(runtime, whole(store, {"X-Signed": "yes"}), 3 * MIB)

    ((path, headers),) = store.requests
    assert result.completed.status == "success"
    assert path == "/bucket/0.bin?signature=abc%2F"
    assert headers["X-Signed"] == "yes"
    assert headers["Content-Length"] == str(3 * MIB)
    assert store.objects[path] == b"x" * (3 * MIB)


def test_an_empty_output_is_one_request_too(runtime: Runtime, store: FakeStore) -> None:
    assert run(runtime, whole(store), 0).completed.status == "success"
    assert list(store.objects.values()) == [b""]


def test_many_outputs_share_few_connections(runtime: Runtime, store: FakeStore) -> None:
    result = run(runtime, whole(store), *[10] * 100)

    assert len(result.completed.outputs) == len(store.objects) == 100
    assert store.connections <= 8


def test_a_refusal_is_not_tried_again(runtime: Runtime, store: FakeStore) -> None:
    store.always, store.error_code = 403, "SignatureDoesNotMatch"

    error = run(runtime, whole(store), 10).error

    assert len(store.requests) == 1
    assert error["code"] == "ERR_UPLOAD"
    assert error["message"] == "the upload of '0.bin' failed: the store answered 403 SignatureDoesNotMatch"
    assert error["details"] == {"path": "0.bin", "status": 403, "store_code": "SignatureDoesNotMatch"}


def test_a_store_that_refuses_before_it_has_read_everything_is_heard(runtime: Runtime, store: FakeStore) -> None:
    store.always, store.early = 403, True

    error = run(runtime, whole(store), 64 * MIB).error

    assert len(store.requests) == 1
    assert error["details"]["status"] == 403


def test_a_bucket_that_is_gone_is_err_storage(runtime: Runtime, store: FakeStore) -> None:
    store.always, store.error_code = 404, "NoSuchBucket"

    error = run(runtime, whole(store), 10).error

    assert error["code"] == "ERR_STORAGE"
    assert error["message"] == "the upload of '0.bin' failed: the bucket is gone"


@pytest.mark.parametrize("faults", [[503], [500, 502, 504], ["cut"], ["cut", 503, "cut"], ["lost"]])
def test_what_may_pass_is_tried_again(runtime: Runtime, store: FakeStore, faults: list[Any]) -> None:
    store.faults = list(faults)

    result = run(runtime, whole(store, {"If-None-Match": "*"}), 3 * MIB)

    assert result.completed.status == "success"
    assert list(store.objects.values()) == [b"x" * (3 * MIB)]
    assert len(store.requests) == len(faults) + 1
    assert len(asked(result)) == 1


def test_an_expired_grant_is_asked_for_anew(runtime: Runtime, store: FakeStore) -> None:
    store.faults = [503]

    result = run(runtime, whole(store, lifetime_s=0.05), 10)

    assert result.completed.status == "success"
    assert [(each.upload, each.path, each.relay) for each in asked(result)] == [
        (1, "0.bin", False),
        (2, "0.bin", False),
    ]


def test_a_store_that_cannot_be_reached_is_fed_over_the_connection_from_then_on(runtime: Runtime) -> None:
    nowhere = FakeStore(port=1)

    def answer(session: Session, upload: Upload) -> str | None:
        return session.side.grant_relay(upload.upload) if upload.relay else whole(nowhere)(session, upload)

    result = run(runtime, answer, *[10] * 40)

    assert result.completed.status == "success"
    assert sum(not each.relay for each in asked(result)) <= 16  # those under way when the first came back
    assert [each.relay for each in asked(result)][-8:] == [True] * 8


def test_a_controller_that_names_an_unreachable_store_again_is_not_asked_for_ever(runtime: Runtime) -> None:
    result = run(runtime, whole(FakeStore(port=1)), 10)

    assert result.error["code"] == "ERR_STORAGE"
    assert [each.relay for each in asked(result)] == [False, True]


def test_a_name_that_does_not_resolve_is_a_store_that_cannot_be_reached(runtime: Runtime) -> None:
    def answer(session: Session, upload: Upload) -> str:
        if upload.relay:
            return session.side.grant_relay(upload.upload)
        request = {"method": "PUT", "url": "http://store.invalid:9000/x", "headers": {}}
        return session.side.grant_direct(Grant(upload.upload, "direct", request=request, lifetime_s=900))

    assert run(runtime, answer, 10).completed.status == "success"


def in_parts(store: FakeStore, size_bytes: int, *, lifetimes_s: list[float]) -> Answer:
    """Grants of one multipart upload."""

    def answer(session: Session, upload: Upload) -> str:
        count = -(-upload.size_bytes // size_bytes)
        requests = [store.request(f"/bucket/{upload.path}?partNumber={number}") for number in range(1, count + 1)]
        return session.side.grant_direct(
            Grant(
                upload.upload,
                "direct",
                parts=requests,
                part_bytes=size_bytes,
                upload_id="one",
                lifetime_s=lifetimes_s.pop(0),
            )
        )

    return answer


def test_an_output_goes_in_parts_each_tried_again_alone(runtime: Runtime, store: FakeStore) -> None:
    store.faults = ["", 503]

    result = run(runtime, in_parts(store, MIB, lifetimes_s=[900]), 2 * MIB + 5)

    assert [path[-1] for path, _ in store.requests] == ["1", "2", "2", "3"]
    assert [len(body) for body in store.objects.values()] == [MIB, MIB, 5]
    (uploaded,) = [message for message in result.messages if isinstance(message, Uploaded)]
    assert uploaded.etags == ['"1"', '"3"', '"4"']


def test_parts_that_were_sent_stay_sent_under_a_fresh_grant(runtime: Runtime, store: FakeStore) -> None:
    store.faults = ["", 503]

    result = run(runtime, in_parts(store, MIB, lifetimes_s=[0.1, 900]), 2 * MIB + 5)

    assert result.completed.status == "success"
    assert len(asked(result)) == 2
    assert [path[-1] for path, _ in store.requests][-2:] == ["2", "3"]
    assert [path[-1] for path, _ in store.requests].count("1") == 1


@pytest.mark.parametrize(
    "grant",
    [
        Grant(1, "direct", request={"method": "PUT", "url": "ftp://x/y", "headers": {}}),
        Grant(1, "direct", request={"method": "PUT"}),
        Grant(1, "direct"),
        Grant(1, "direct", parts=[], part_bytes=5, upload_id="x"),
        Grant(1, "direct", parts=[{}], part_bytes=0, upload_id="x"),
        Grant(1, "direct", parts=["x"], part_bytes=10, upload_id="x"),  # type: ignore[list-item]
        Grant(1, "by pigeon"),
    ],
)
def test_a_grant_that_cannot_be_followed_is_err_upload(runtime: Runtime, grant: Grant) -> None:
    assert run(runtime, lambda session, upload: encode(grant), 10).error["code"] == "ERR_UPLOAD"


def test_a_refusal_ends_an_upload_that_the_store_does_not_take(runtime: Runtime, store: FakeStore) -> None:
    store.always = 503

    async def scene() -> Result:
        async with runtime.session() as session:
            await session.start(inputs={"sizes": [10]})
            while not isinstance(message := session.side.receive(await session.socket.recv()), Upload):
                pass
            await session.socket.send(whole(store)(session, message) or "")
            await asyncio.sleep(0.3)  # it is tried again by now
            await session.socket.send(encode(Refused(message.upload, WORDS)))
            return await session.finish()

    began = time.monotonic()
    assert asyncio.run(scene()).error == WORDS
    assert store.requests
    assert time.monotonic() - began < 3


def test_a_cancel_breaks_an_upload_off(runtime: Runtime) -> None:
    async def scene() -> tuple[float, Result]:
        taken = asyncio.Event()

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            taken.set()
            try:
                await asyncio.sleep(10)  # reads nothing more: the request hangs in the middle
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        nowhere = FakeStore(server.sockets[0].getsockname()[1])
        async with server, runtime.session() as session:
            identity = await session.start(inputs={"sizes": [100 * MIB]})
            while not isinstance(message := session.side.receive(await session.socket.recv()), Upload):
                pass
            await session.socket.send(whole(nowhere)(session, message) or "")
            await taken.wait()
            began = time.monotonic()
            await session.socket.send(encode(Cancel(identity, "user")))
            result = await session.finish()
            return time.monotonic() - began, result

    took_s, result = asyncio.run(scene())

    assert took_s < 1.5  # the store hangs for ten
    assert result.error["details"] == {"by": "user", "step": "handler"}


def test_a_proxy_of_the_environment_is_asked_and_one_that_fails_is_no_store(
    start_runtime: Callable[..., Runtime], store: FakeStore
) -> None:
    # The fake store reads no host: as a proxy it takes whatever comes, under its whole URL.
    runtime = start_runtime(
        HANDLER, outputs=[{"path": "*.bin"}], env={"http_proxy": f"http://me:pw@127.0.0.1:{store.port}"}
    )

    def answer(session: Session, upload: Upload) -> str:
        request = {"method": "PUT", "url": "http://store.invalid:9000/bucket/x", "headers": {}}
        return session.side.grant_direct(Grant(upload.upload, "direct", request=request, lifetime_s=900))

    assert run(runtime, answer, 10).completed.status == "success"
    assert list(store.objects) == ["http://store.invalid:9000/bucket/x"]
    assert store.requests[0][1]["Proxy-Authorization"] == "Basic bWU6cHc="
    assert store.requests[0][1]["Host"] == "store.invalid:9000"


def test_no_proxy_is_asked_for_a_place_that_the_environment_exempts(
    start_runtime: Callable[..., Runtime], store: FakeStore
) -> None:
    env = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "localhost,127.0.0.1"}
    runtime = start_runtime(HANDLER, outputs=[{"path": "*.bin"}], env=env)

    assert run(runtime, whole(store), 10).completed.status == "success"
    assert list(store.objects) == ["/bucket/0.bin?signature=abc%2F"]
