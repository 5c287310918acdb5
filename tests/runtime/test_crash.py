"""What a handler does to itself: its own error, and nothing to anybody else."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.runtime.conftest import Result, Runtime, launch

HANDLER = """
    import ctypes, os, signal, subprocess, sys, time

    def run(context):
        what = context.inputs["what"]
        if what == "fine":
            for _ in range(20):
                context.token("still here ")
                time.sleep(0.05)
        elif what == "quick":
            context.token("quick")
        elif what == "raise":
            raise ValueError("no such luck")
        elif what == "exit":
            sys.exit(5)
        elif what == "_exit":
            os._exit(3)
        elif what == "segv":
            ctypes.string_at(0)
        elif what == "abort":
            os.abort()
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "memory":
            hoard = []
            while True:
                hoard.append(bytearray(b"x" * 2**23))
        elif what == "one-big-block":
            bytearray(2**40)
        elif what == "disk":
            with open("here.bin", "wb") as file:
                while True:
                    file.write(bytes(2**20))
        elif what == "many-files":
            number = 0
            while True:
                number += 1
                with open(f"{number}.bin", "wb") as file:
                    file.write(bytes(2**20))
        elif what == "output":
            context.write("big.bin", (bytes(2**20) for _ in range(2**20)))
        elif what == "loop":
            while True:
                pass
        elif what == "c-loop":
            sum(range(10**12))
        elif what == "stubborn":
            while True:
                try:
                    time.sleep(1000)
                except BaseException:
                    pass
        elif what == "deaf":
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                pass
        elif what == "flood":
            while True:
                context.token("again ")
        elif what == "children":
            subprocess.Popen(["sleep", "321"], start_new_session=True)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(321)
                os._exit(0)
            os._exit(4)
        elif what == "leaves-a-child":
            context.token(str(subprocess.Popen(["sleep", "321"], start_new_session=True).pid))
        elif what == "forgets-to-exit":
            os.fork()
            context.token("once")
        elif what == "kill-parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        elif what == "fork-bombless":
            os.setpgid(0, 0) if os.getpgid(0) != os.getpid() else None
        elif what == "pid":
            context.token(str(os.getpid()))
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(
        tmp_path_factory.mktemp("crash") / "app",
        HANDLER,
        outputs=[{"path": "*.bin", "mime": None}],
        runtime={"memory_gb": 0.25, "scratch_gb": 0.05, "concurrency": 3},
    )
    yield running
    running.stop()


async def beside_another(runtime: Runtime, what: str, **changes: Any) -> tuple[Result, Result]:
    """Two executions at once: the one in question, and a good one."""
    async with runtime.session() as good:
        await good.start(inputs={"what": "fine"})
        await good.until("token")
        bad = await runtime.execute(inputs={"what": what}, **changes)
        return bad, await good.finish()


@pytest.mark.parametrize(
    ("what", "code", "details"),
    [
        ("raise", "ERR_RUNTIME", {}),
        ("exit", "ERR_RUNTIME", {}),
        ("_exit", "ERR_RUNTIME", {"exit_status": 3}),
        ("segv", "ERR_RUNTIME", {"exit_status": -11}),
        ("abort", "ERR_RUNTIME", {"exit_status": -6}),
        ("kill", "ERR_RUNTIME", {"exit_status": -9}),
        ("memory", "ERR_RUNTIME", {"reason": "out of memory"}),
        ("one-big-block", "ERR_RUNTIME", {"reason": "out of memory"}),
        ("disk", "ERR_LIMIT", {"limit": "scratch"}),
        ("many-files", "ERR_LIMIT", {"limit": "scratch"}),
        ("output", "ERR_LIMIT", {"limit": "scratch"}),
        ("children", "ERR_RUNTIME", {"exit_status": 4}),
        ("kill-parent", "ERR_RUNTIME", {}),
    ],
)
def test_a_crash_has_its_own_error_and_touches_nothing_else(
    runtime: Runtime, what: str, code: str, details: dict[str, Any]
) -> None:
    began = time.monotonic()

    bad, good = asyncio.run(beside_another(runtime, what))

    assert bad.error["code"] == code
    assert details.items() <= bad.error["details"].items()
    assert time.monotonic() - began < 10
    if what != "kill-parent":  # workers are the template's children: they go with it
        assert good.completed.status == "success"
    assert runtime.process.poll() is None
    assert runtime.run(inputs={"what": "quick"}).text == "quick"


@pytest.mark.parametrize(
    ("what", "step"),
    [
        ("loop", "interrupt"),
        ("flood", "interrupt"),
        ("c-loop", "terminate"),
        ("stubborn", "terminate"),
        ("deaf", "kill"),
    ],
)
def test_a_handler_past_its_time_ends_however_it_resists(runtime: Runtime, what: str, step: str) -> None:
    began = time.monotonic()

    bad, good = asyncio.run(beside_another(runtime, what, timeout_s=0.3))

    assert bad.error["code"] == "ERR_TIMEOUT"
    assert bad.error["details"] == {"timeout_s": 0.3, "step": step}
    assert time.monotonic() - began < 5
    assert good.completed.status == "success"
    assert runtime.run(inputs={"what": "quick"}).text == "quick"


def test_an_exception_keeps_the_worker_and_shows_the_handlers_lines(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(HANDLER, runtime={"concurrency": 1})
    before = runtime.run(inputs={"what": "pid"}).text

    error = runtime.run(inputs={"what": "raise"}).error

    assert error["message"] == "ValueError: no such luck"
    assert "handler.py" in error["details"]["traceback"]
    assert "processor_runtime" not in error["details"]["traceback"]
    assert runtime.run(inputs={"what": "pid"}).text == before


def test_what_a_handler_leaves_running_is_ended(runtime: Runtime) -> None:
    result = runtime.run(inputs={"what": "leaves-a-child"})

    assert result.completed.status == "success"
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{result.text}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forked_child_that_comes_back_says_nothing(runtime: Runtime) -> None:
    result = runtime.run(inputs={"what": "forgets-to-exit"})

    assert result.completed.status == "success"
    assert result.text == "once"
