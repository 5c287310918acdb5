"""Who gets in, and what the runtime says of itself over HTTP."""

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator

import pytest
from processor_runtime import __version__
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.runtime.conftest import IMAGE_DIGEST, TOKEN, Runtime, launch, spec

QUIET = "def run(context): pass"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(tmp_path_factory.mktemp("door") / "app", QUIET)
    running.wait_for("mock", "real")
    yield running
    running.stop()


def status_of(runtime: Runtime, **changes: object) -> int:
    async def knock() -> int:
        try:
            async with runtime.session(**changes):
                return 101
        except InvalidStatus as exc:
            return exc.response.status_code

    return asyncio.run(knock())


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 101),
        ({"additional_headers": {}}, 401),
        ({"additional_headers": {"Authorization": "Bearer wrong"}}, 401),
        ({"additional_headers": {"Authorization": TOKEN}}, 401),
        ({"additional_headers": [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer wrong")]}, 401),
        ({"additional_headers": {"Authorization": "Bearer pässe"}}, 401),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://127.0.0.1", "additional_headers": {}}, 403),
        ({"subprotocols": None}, 400),
        ({"subprotocols": ["theory.run.v2"]}, 400),
    ],
)
def test_only_a_controller_with_the_token_gets_in(runtime: Runtime, changes: dict[str, object], status: int) -> None:
    assert status_of(runtime, **changes) == status


def test_a_plain_get_of_run_is_told_to_upgrade(runtime: Runtime) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-WebSocket-Protocol": "theory.run.v1"}

    assert runtime.get("/run", **headers)[0] == 426


def test_healthz_names_ref_and_image(runtime: Runtime) -> None:
    status, body = runtime.get("/healthz?probe=1")

    assert (status, json.loads(body)) == (200, {"status": "ok", "ref": "test/echo@1", "image_digest": IMAGE_DIGEST})


def test_readyz_names_the_modes(runtime: Runtime) -> None:
    status, body = runtime.get("/readyz")

    assert (status, json.loads(body)) == (
        200,
        {"ready": True, "state": "ready", "executions": 0, "reason": "", "modes": ["mock", "real"]},
    )


def test_head_is_answered_without_a_body(runtime: Runtime) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", runtime.port, timeout=5)
    connection.request("HEAD", "/healthz")
    answer = connection.getresponse()

    assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_metrics_ask_for_the_token_and_count(runtime: Runtime) -> None:
    runtime.run()

    status, page = runtime.get("/metrics", Authorization=f"Bearer {TOKEN}")

    assert runtime.get("/metrics")[0] == 401
    assert status == 200
    assert b'processor_executions_total{code="ok",mode="mock"}' in page
    assert b'processor_workers{mode="real",state="idle"} 1.0' in page


@pytest.mark.parametrize("path", ["/", "/run/", "/healthz/x", "/admin"])
def test_other_pages_are_not_there(runtime: Runtime, path: str) -> None:
    assert runtime.get(path)[0] == 404


def test_without_a_token_the_door_is_open_and_there_are_no_metrics(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(QUIET, env={"THEORY_RUN_TOKEN": ""})

    assert status_of(runtime, additional_headers={}) == 101
    assert runtime.get("/metrics")[0] == 404


def test_hello_says_who_this_is(runtime: Runtime) -> None:
    async def greet() -> object:
        async with runtime.session() as session:
            return session.side.hello

    hello = asyncio.run(greet())

    assert hello.ref == spec()["ref"]  # type: ignore[attr-defined]
    assert hello.image_digest == IMAGE_DIGEST  # type: ignore[attr-defined]
    assert hello.runtime_version == __version__  # type: ignore[attr-defined]
    assert hello.spec_digest.startswith("sha256:")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"type":"hello"}',
        '{"type":"run"}',
        '{"type":"grant","upload":1,"transfer":"relay"}',
        '{"type":"run","execution_id":"1","mode":"mock","inputs":{},"write_prefix":"/artifacts/a/","timeout_s":1}',
        b"binary",
    ],
)
def test_what_is_no_message_closes_the_connection_with_1002(runtime: Runtime, text: str | bytes) -> None:
    async def talk() -> ConnectionClosed:
        async with runtime.session() as session:
            await session.socket.send(text)
            with pytest.raises(ConnectionClosed) as caught:
                await session.socket.recv()
            return caught.value

    closed = asyncio.run(talk())

    assert closed.rcvd is not None
    assert closed.rcvd.code == 1002


def test_bytes_that_are_no_http_harm_nothing(runtime: Runtime) -> None:
    async def poke() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", runtime.port)
        writer.write(b"\x16\x03\x01" * 100)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    asyncio.run(poke())

    assert runtime.get("/healthz")[0] == 200
    assert not any("Traceback" in line for line in runtime.stderr)
