"""Starting, refusing to start, and stopping."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.runtime.conftest import Runtime

SLEEPY = """
    import time

    def run(context):
        context.token("up")
        time.sleep(60)
"""
STUBBORN = """
    import time

    def run(context):
        context.token("up")
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
"""
QUIET = "def run(context): pass"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PORT": ""}, "PORT is not set"),
        ({"PORT": "80a"}, "PORT is '80a'"),
        ({"PORT": "70000"}, "PORT is '70000'"),
        ({"THEORY_BIND": ""}, "THEORY_BIND is not set"),
        ({"THEORY_SCRATCH": "/proc/nowhere"}, "THEORY_SCRATCH is not usable"),
        ({"THEORY_SPEC": "{"}, "THEORY_SPEC is not a spec"),
        ({"THEORY_SPEC": "[]"}, "THEORY_SPEC is not a spec"),
        ({"THEORY_SPEC": "{}"}, "THEORY_SPEC has no 'runtime'"),
        ({"THEORY_IMAGE_DIGEST": ""}, "THEORY_IMAGE_DIGEST is not set"),
        ({"THEORY_SOURCE": "guess"}, "THEORY_SOURCE is 'guess'"),
    ],
)
def test_a_wrong_environment_is_one_line_and_78(
    start_runtime: Callable[..., Runtime], changes: dict[str, str], words: str
) -> None:
    runtime = start_runtime(QUIET, wait=False, env=changes)

    assert runtime.process.wait(10) == 78
    runtime.stop()
    assert len(runtime.stderr) == 1
    assert words in runtime.stderr[0]


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (None, "no handler.py on the Python path"),
        ("answer = 42", "handler.py has no function run(context)"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def run(:", "SyntaxError"),
        ("import os; os._exit(9)", "ended while it imported handler.py"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "the import of handler.py has no network"),
    ],
)
def test_a_handler_that_cannot_be_imported_ends_the_runtime_at_once(
    start_runtime: Callable[..., Runtime], handler: str | None, words: str
) -> None:
    runtime = start_runtime(handler, wait=False)

    assert runtime.process.wait(10) == 1
    runtime.stop()
    assert words in "".join(runtime.stderr)


def test_a_taken_port_is_said(start_runtime: Callable[..., Runtime]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        runtime = start_runtime(QUIET, wait=False, env={"PORT": str(port)})

        assert runtime.process.wait(10) == 69
        runtime.stop()
        assert f"can't listen on 127.0.0.1:{port}" in "".join(runtime.stderr)


def test_it_listens_while_the_handler_is_still_being_imported(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(f"import time; time.sleep(1)\n{QUIET}", wait=False)

    assert runtime.get("/healthz")[0] == 200
    status, body = runtime.get("/readyz")
    assert (status, json.loads(body)["reason"]) == (503, "the handler is being imported")
    runtime.wait_for("mock")


def test_sigterm_cancels_what_runs_and_what_waits_then_exits_0(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(SLEEPY, runtime={"concurrency": 1})

    async def scene() -> list[dict[str, object]]:
        async with runtime.session() as running, runtime.session() as waiting:
            await running.start()
            await running.until("token")
            await waiting.start()
            await waiting.until("queued")
            runtime.process.send_signal(signal.SIGTERM)
            return [(await session.finish()).error for session in (running, waiting)]

    errors = asyncio.run(scene())

    assert [error["code"] for error in errors] == ["ERR_CANCELLED"] * 2
    assert [error["details"] for error in errors] == [
        {"by": "shutdown", "step": "interrupt"},
        {"by": "shutdown", "step": "queued"},
    ]
    assert runtime.process.wait(5) == 0


def test_a_new_run_while_stopping_is_busy(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(STUBBORN)

    async def scene() -> dict[str, object]:
        async with runtime.session() as running, runtime.session() as late:
            await running.start()
            await running.until("token")
            runtime.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            await late.start()
            return (await late.finish()).error

    assert asyncio.run(scene())["code"] == "ERR_BUSY"
    assert runtime.process.wait(5) == 0


def test_a_client_that_does_not_react_holds_no_stop_up(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(SLEEPY)

    async def scene() -> float:
        async with runtime.session() as deaf:
            await deaf.start()
            await deaf.until("token")
            deaf.socket.transport.pause_reading()
            began = time.monotonic()
            runtime.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(runtime.process.wait, 10)
            return time.monotonic() - began

    assert asyncio.run(scene()) < 3
    assert runtime.process.returncode == 0


def test_a_second_sigterm_exits_at_once(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(STUBBORN)

    async def scene() -> float:
        async with runtime.session() as running:
            await running.start()
            await running.until("token")
            began = time.monotonic()
            runtime.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            runtime.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(runtime.process.wait, 5)
            return time.monotonic() - began

    assert asyncio.run(scene()) < 2  # the grace alone
    assert runtime.process.returncode == 0


def test_nothing_outlives_a_killed_supervisor(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        import os, subprocess

        def run(context):
            child = subprocess.Popen(["sleep", "321"], start_new_session=True)
            context.token(f"{os.getpid()} {os.getppid()} {child.pid}")
            while True:
                pass
    """)

    async def scene() -> list[str]:
        async with runtime.session() as running:
            await running.start()
            token = await running.until("token")
            runtime.process.kill()
            return str(token.data["text"]).split()

    pids = asyncio.run(scene())

    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_scratch_is_left_empty(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(
        """
        def run(context):
            open("left.txt", "w").write("x")
            context.write("a.txt", "a")
        """,
        outputs=[{"path": "a.txt"}],
    )

    runtime.run()

    assert {path.name[:7] for path in runtime.scratch.iterdir()} == {"worker-"}
    assert [path for folder in runtime.scratch.iterdir() for path in folder.iterdir()] == []


def test_what_an_earlier_runtime_left_in_scratch_is_removed(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(QUIET, wait=False)
    runtime.wait_for("mock")
    scratch = runtime.scratch
    runtime.process.kill()
    runtime.process.wait()
    (scratch / "spool-7").mkdir()

    again = start_runtime(QUIET, env={"THEORY_SCRATCH": str(scratch)})

    assert not (scratch / "spool-7").exists()
    assert again.run().completed.status == "success"


def test_a_memory_limit_below_python_itself_is_said_to_each_run(start_runtime: Callable[..., Runtime]) -> None:
    # Allocates, since a handler that asks for nothing may still find room in what its worker was forked with.
    allocates = """
        def run(context):
            context.write("a.txt", bytes(bytearray(1 << 20)))
        """
    runtime = start_runtime(allocates, wait=False, runtime={"memory_gb": 0.00001}, outputs=[{"path": "a.txt"}])

    for _ in range(2):
        error = runtime.run().error
        assert (error["code"], error["details"]["reason"]) == ("ERR_RUNTIME", "out of memory")
    assert runtime.get("/healthz")[0] == 200
