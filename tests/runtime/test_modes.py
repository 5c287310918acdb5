"""Mock and real: the network guard, secrets, and load()."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import Result, Runtime, launch

SECRET = "sk-very-secret-value"
NETWORK = """
    import asyncio, http.client, random, socket, subprocess, sys, tempfile, urllib.request

    def run(context):
        what = context.inputs["what"]
        if what == "getaddrinfo":
            socket.getaddrinfo("example.com", 80)
        elif what == "connect":
            socket.create_connection(("127.0.0.1", 9))
        elif what == "udp":
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        elif what == "v6":
            socket.socket(socket.AF_INET6)
        elif what == "urlopen":
            urllib.request.urlopen("http://127.0.0.1:9/")
        elif what == "swallowed":
            try:
                socket.create_connection(("127.0.0.1", 9))
            except BaseException:
                context.token("all is well")
        elif what == "async":
            return asynchronous()
        elif what == "thread":
            return threaded()
        elif what == "local":
            left, right = socket.socketpair()
            left.close(), right.close()
            subprocess.run(["true"], check=True)
            asyncio.run(asyncio.sleep(0))
            with tempfile.TemporaryFile() as file:
                file.write(b"x")
            context.token(tempfile.gettempdir())
        elif what == "listen":
            try:
                socket.create_server(("127.0.0.1", 0)).close()
            except Exception as exc:
                context.token(str(exc))
            else:
                context.token("open")
        elif what == "random":
            numbers = [context.random.random(), random.random(), context.random.randrange(2**64)]
            context.write("numbers.txt", repr(numbers))

    async def asynchronous():
        await asyncio.open_connection("127.0.0.1", 9)

    async def threaded():
        await asyncio.to_thread(socket.create_connection, ("127.0.0.1", 9))
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(tmp_path_factory.mktemp("modes") / "app", NETWORK, outputs=[{"path": "*.txt"}])
    running.wait_for("mock", "real")
    yield running
    running.stop()


@pytest.mark.parametrize(
    "what", ["getaddrinfo", "connect", "udp", "v6", "urlopen", "swallowed", "async", "thread", "listen"]
)
def test_a_mock_handler_that_asks_for_the_network_fails_by_name(network: Runtime, what: str) -> None:
    error = network.run(inputs={"what": what}).error

    assert error["code"] == "ERR_RUNTIME"
    assert error["message"].startswith("mock mode has no network: socket.")
    assert error["message"].endswith("called from a library") == (what == "thread")
    assert ("called from handler.py:" in error["message"]) == (what != "thread")


def test_a_mock_handler_may_use_what_stays_on_the_machine(network: Runtime) -> None:
    result = network.run(inputs={"what": "local"})

    assert result.completed.status == "success"
    assert result.text.startswith(str(network.scratch))


def test_meta_says_what_kept_the_handler_from_the_network(network: Runtime) -> None:
    assert network.run(inputs={"what": ""}).completed.meta["isolation"] == "interpreter"
    assert network.run(inputs={"what": ""}, mode="real").completed.meta["isolation"] == "none"


def test_a_real_handler_has_the_network(network: Runtime) -> None:
    assert network.run(inputs={"what": "listen"}, mode="real").text == "open"


def test_mock_numbers_follow_from_the_inputs_alone(network: Runtime) -> None:
    first, second = (network.run(inputs={"what": "random", "seed": 1}).files for _ in range(2))

    assert first == second
    assert network.run(inputs={"what": "random", "seed": 2}).files != first


SECRETS = """
    import os, json

    from processor_runtime.handler import ProcessorError

    loaded = []

    def load():
        loaded.append(os.environ.get("API_KEY"))

    def run(context):
        if context.inputs.get("fail"):
            raise ValueError("the key was " + os.environ["API_KEY"])
        if context.inputs.get("path"):
            context.write(os.environ["API_KEY"], "")
        if context.inputs.get("details"):
            raise ProcessorError("no", details={"seen": [{os.environ["API_KEY"]: "at " + os.environ["API_KEY"]}]})
        context.log("key " + os.environ.get("API_KEY", "absent"))
        context.metric(*["in " + os.environ.get("API_KEY", ""), 1, os.environ.get("API_KEY", "")])
        context.progress(1, 2, os.environ.get("API_KEY", ""))
        with open("/proc/self/environ", "rb") as file:
            leaked = b"SECRET_VALUE".replace(b"SECRET_VALUE", b"sk-very-secret-value") in file.read()
        context.token(json.dumps([
            context.mode, bool(os.environ.get("API_KEY")), len(loaded), leaked, "THEORY_RUN_TOKEN" in os.environ
        ]))
"""


@pytest.fixture(scope="module")
def secretive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    running = launch(
        tmp_path_factory.mktemp("secrets") / "app",
        SECRETS,
        secrets={"required": ["API_KEY"], "optional": ["OTHER", "EMPTY"]},
        env={"API_KEY": SECRET, "OTHER": "abc"},
    )
    running.wait_for("mock", "real")
    yield running
    running.stop()


def test_only_real_workers_have_the_secrets(secretive: Runtime) -> None:
    assert secretive.run().text == '["mock", false, 0, false, false]'
    assert secretive.run(mode="real").text == '["real", true, 1, false, false]'


def test_the_names_of_present_secrets_are_told(secretive: Runtime) -> None:
    result = secretive.run()

    assert result.completed.meta["secrets_present"] == ["API_KEY", "OTHER"]


def test_secret_values_are_blanked_in_logs_and_errors(secretive: Runtime) -> None:
    good, bad = secretive.run(mode="real"), secretive.run(mode="real", inputs={"fail": True})

    assert good.data("log") == [{"level": "info", "message": "key ***"}]
    assert bad.error["message"] == "ValueError: the key was ***"
    assert SECRET not in str(bad.error)
    assert SECRET not in "".join(secretive.stderr)


def test_secret_values_are_blanked_in_the_words_of_figures(secretive: Runtime) -> None:
    good = secretive.run(mode="real")

    assert good.data("metric") == [{"name": "in ***", "value": 1, "unit": "***"}]
    assert good.data("progress") == [{"done": 1, "total": 2, "unit": "***"}]


def test_secret_values_are_blanked_deep_in_an_errors_details(secretive: Runtime) -> None:
    bad = secretive.run(mode="real", inputs={"details": True})

    assert bad.error["details"] == {"seen": [{"***": "at ***"}]}


def test_an_output_can_not_be_called_after_a_secret(secretive: Runtime) -> None:
    bad = secretive.run(mode="real", inputs={"path": True})

    assert (bad.error["code"], bad.error["message"]) == (
        "ERR_OUTPUT_INVALID",
        "output path '***' holds a secret's value",
    )


def test_secret_values_are_blanked_in_what_a_handler_prints(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(
        """
        import os, subprocess, sys

        def load():
            print("load", os.environ["API_KEY"], flush=True)

        def run(context):
            key = os.environ.get("API_KEY", "absent")
            context.token(f"token {key}")
            print("print", key)
            print({"PEM": os.environ.get("PEM")}, file=sys.stderr)
            sys.stdout.write("x" * 70_000 + key + "y" * 70_000 + "\\n")
            subprocess.run(["sh", "-c", "echo child $API_KEY >&2"])
        """,
        secrets={"required": ["API_KEY"], "optional": ["PEM"]},
        env={"API_KEY": SECRET, "PEM": "-----BEGIN-----\nsecondline\n-----END-----"},
    )

    result = runtime.run(mode="real")
    runtime.stop()

    printed = "".join([*runtime.stdout, *runtime.stderr])
    assert result.text == "token ***"
    for line in ("load ***", "print ***", "child ***", "x***y"):
        assert line in printed
    for value in (SECRET, "secondline"):
        assert value not in printed


def test_a_real_run_without_its_secrets_names_them_all(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(SECRETS, secrets={"required": ["API_KEY", "ANOTHER"]}, env={"API_KEY": ""})

    error = runtime.run(mode="real").error

    assert error["code"] == "ERR_MISSING_SECRET"
    assert error["details"] == {"missing": ["API_KEY", "ANOTHER"]}
    assert runtime.run().completed.status == "success"


def test_a_real_run_waits_for_load_and_a_mock_run_does_not(
    start_runtime: Callable[..., Runtime], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    runtime = start_runtime(f"""
        import os, time
        ready = False

        def load():
            global ready
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.01)
            ready = True

        def run(context):
            context.token(str(ready))
    """)

    async def scene() -> tuple[Result, Result]:
        async with runtime.session() as real:
            await real.start(mode="real")
            await real.until("queued")
            mock = await runtime.execute()  # load() does not end before this one has
            gate.touch()
            return mock, await real.finish()

    mock, real = asyncio.run(scene())

    assert (mock.text, real.text) == ("False", "True")


def test_an_async_load_is_awaited(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        import asyncio
        state = []

        async def load():
            await asyncio.sleep(0.01)
            state.append("loaded")

        async def run(context):
            await asyncio.sleep(0)
            context.token("".join(state))
    """)

    assert runtime.run(mode="real").text == "loaded"


@pytest.mark.parametrize(
    ("load", "message", "details"),
    [
        ("raise OSError('no model at ' + os.environ['API_KEY'])", "OSError: no model at ***", {}),
        ("os._exit(7)", "load() ended its process: exit status 7", {"exit_status": 7}),
        ("os.abort()", "load() ended its process: SIGABRT", {"exit_status": -6}),
    ],
)
def test_a_failing_load_ends_real_runs_and_no_mock_run(
    start_runtime: Callable[..., Runtime], load: str, message: str, details: dict[str, Any]
) -> None:
    runtime = start_runtime(
        f"import os\ndef load(): {load}\ndef run(context): context.token(context.mode)",
        secrets={"required": ["API_KEY"]},
        env={"API_KEY": SECRET},
    )

    errors = [runtime.run(mode="real").error for _ in range(2)]

    assert [error["code"] for error in errors] == ["ERR_RUNTIME"] * 2
    assert errors[0]["message"] == errors[1]["message"] == message
    assert details.items() <= errors[0]["details"].items()
    assert runtime.run().text == "mock"
    status, body = runtime.get("/readyz")
    assert status == 200
    assert b"load() " in body
    assert SECRET not in "".join(runtime.stderr)


def test_real_workers_come_back_after_their_template_ended(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        import os, signal, time

        def run(context):
            if context.inputs:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            context.token("here")
    """)

    error = runtime.run(mode="real", inputs={"kill": True}).error

    assert error["code"] == "ERR_RUNTIME"
    assert runtime.run(mode="real").text == "here"
    assert runtime.run().text == "here"


def test_a_leftover_thread_does_not_reach_the_next_execution(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(
        """
        import threading, time

        def run(context):
            if context.inputs:
                threading.Thread(target=late, args=(context,), daemon=True).start()
            else:
                time.sleep(0.5)

        def late(context):
            time.sleep(0.2)
            context.token("from the past")
        """,
        runtime={"concurrency": 1},
    )
    runtime.run(inputs={"thread": True})

    assert runtime.run().text == ""


def test_a_context_is_dead_after_its_run(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(
        """
        kept = []

        def run(context):
            for old in kept:
                try:
                    old.token("again")
                except RuntimeError as exc:
                    context.token(str(exc))
            kept.append(context)
        """,
        runtime={"concurrency": 1},
    )
    runtime.run()

    assert runtime.run().text == "this execution has ended: a context serves one run(context) only"


def test_what_a_handler_prints_comes_out_at_once_and_apart(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        import os, sys

        def run(context):
            print("to stdout: ünïcode")
            print("to stderr", file=sys.stderr)
            os._exit(1)
    """)

    runtime.run()

    runtime.wait_for_log("to stdout")
    runtime.wait_for_log("to stderr")
    assert runtime.stdout == ["to stdout: ünïcode\n"]


def test_every_execution_starts_in_an_empty_folder_of_its_own(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(
        """
        import os

        def run(context):
            context.token(str(sorted(os.listdir("."))))
            os.mkdir("sub")
            open("sub/file", "w").close()
            os.chmod("sub", 0)
            os.symlink("/", "root")
            os.chdir("/")
        """,
        runtime={"concurrency": 1},
    )

    assert [runtime.run().text for _ in range(3)] == ["[]"] * 3
    assert Path("/etc").exists()


def test_a_handler_may_be_async_and_use_threads(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        import asyncio, time

        async def run(context):
            task = asyncio.create_task(asyncio.sleep(60))
            context.token(await asyncio.to_thread(lambda: "from a thread"))
    """)

    assert [runtime.run().text for _ in range(3)] == ["from a thread"] * 3


def test_context_reports_progress_and_metrics(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        def run(context):
            context.progress(1, 3, "frame")
            context.progress(2)
            context.metric("tokens_out", 5, "token")
            context.log("careful", level="warning")
            for call in (lambda: context.metric("x", float("nan")), lambda: context.log("x", level="loud"),
                         lambda: context.token(b"x"), lambda: context.token("\\ud800")):
                try:
                    call()
                except (ValueError, TypeError) as exc:
                    context.log(type(exc).__name__)
    """)

    result = runtime.run()

    assert result.data("progress") == [
        {"done": 1, "total": 3, "unit": "frame"},
        {"done": 2, "total": None, "unit": ""},
    ]
    assert result.data("metric") == [{"name": "tokens_out", "value": 5, "unit": "token"}]
    assert [data["message"] for data in result.data("log")] == [
        "careful",
        "ValueError",
        "ValueError",
        "TypeError",
        "TypeError",
    ]


def test_a_provider_error_keeps_its_facts(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        from processor_runtime.handler import ProviderError

        def run(context):
            raise ProviderError("slow down", status=429, provider="openai", retryable=True)
    """)

    error = runtime.run().error

    assert error == {
        "code": "ERR_PROVIDER",
        "message": "slow down",
        "hint": "try again later",
        "details": {"status": 429, "provider": "openai", "retryable": True},
    }


def test_a_handler_can_find_the_inputs_wrong(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime("""
        from processor_runtime.handler import InputsInvalid

        def run(context):
            raise InputsInvalid("it moves", pointer="/params/image", hint="give a still one", details={"frames": 2})
    """)

    assert runtime.run().error == {
        "code": "ERR_INPUTS",
        "message": "it moves",
        "hint": "give a still one",
        "details": {"pointer": "/params/image", "frames": 2},
    }
