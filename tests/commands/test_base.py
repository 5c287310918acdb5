import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from apps.processors.management.commands._base import Failed
from tests.commands.probe import Command
from tests.shell import PROJECT

PROBE = [sys.executable, "-W", "error", "-m", "tests.commands.probe"]
PLACE = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(PROJECT / "code" / "runtime")}
ENVIRONMENT = PLACE | {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        assert self.stdout.count("\n") == 1
        document: dict[str, Any] = json.loads(self.stdout)
        return document


def shell(*words: str, env: dict[str, str] | None = None, **kwargs: Any) -> Outcome:
    """The probe in a process of its own, to its end."""
    done = subprocess.run(
        [*PROBE, *words],
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs},
        cwd=PROJECT,
        env=ENVIRONMENT | (env or {}),
        timeout=30,
    )
    outcome = Outcome(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())
    assert "Traceback" not in outcome.stderr or "--traceback" in words, outcome.stderr
    assert "Exception ignored" not in outcome.stderr, outcome.stderr
    return outcome


@pytest.fixture
def spawn() -> Iterator[Any]:
    """Start the probe; it is killed with the test."""
    spawned: list[subprocess.Popen[str]] = []

    def start(*words: str, **kwargs: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([*PROBE, *words], text=True, cwd=PROJECT, env=ENVIRONMENT, **{**pipes, **kwargs})
        spawned.append(process)
        return process

    yield start
    for process in spawned:
        process.kill()
        process.communicate()


# results


def test_json_is_one_document_on_one_line() -> None:
    outcome = shell("answer", "--ref", "x", "--json")

    assert outcome.document == {"status": "success", "ref": "x", "nested": {"é": [1, None]}}
    assert (outcome.status, outcome.stderr) == (0, "")


def test_json_may_stand_before_the_subcommand() -> None:
    assert shell("--json", "answer").document["status"] == "success"


def test_without_json_a_result_is_told_line_by_line() -> None:
    assert shell("answer").stdout == "status: success\nref: null\nnested:\n  é: [1, null]\n"


def test_many_results_are_one_object_a_line() -> None:
    assert [json.loads(line) for line in shell("stream", "--json").stdout.splitlines()] == [
        {"number": 0},
        {"number": 1},
        {"number": 2},
    ]


def test_many_results_are_told_as_each_says() -> None:
    assert shell("stream").stdout == "<0><1><2>"


def test_a_result_may_be_told_on_stderr_and_is_a_document_on_stdout() -> None:
    told, documents = shell("aside", "-q"), shell("aside", "-q", "--json")

    assert (told.stdout, told.stderr) == ("to stdout\n", "to stderr\n")
    assert (documents.stdout, documents.stderr) == ('{"n":1}\n{"n":2}\n{"n":3}\n', "")


def test_each_result_can_be_read_before_the_next_is_made(spawn: Any) -> None:
    process = spawn("run", "--json")

    assert json.loads(process.stdout.readline())["number"] == 0
    assert process.poll() is None


# errors


def test_an_error_has_four_words_and_its_status() -> None:
    outcome = shell("fail", "--json")

    assert outcome.document == {
        "status": "error",
        "error": {
            "code": "ERR_NOT_STARTED",
            "message": "llm/x@1 is not started",
            "hint": "localctl start --ref llm/x@1",
            "details": {"why": "é"},
        },
    }
    assert (outcome.status, outcome.stderr) == (66, "")


def test_without_json_an_error_is_two_lines_on_stderr() -> None:
    outcome = shell("fail")

    assert outcome.stderr == "ERR_NOT_STARTED: llm/x@1 is not started\nhint: localctl start --ref llm/x@1\n"
    assert (outcome.status, outcome.stdout) == (66, "")


def test_an_execution_that_failed_ends_in_its_envelope() -> None:
    outcome = shell("fail_run".replace("_", "-"), "--json")

    event, envelope = map(json.loads, outcome.stdout.splitlines())
    assert event == {"event": "token"}
    assert (envelope["execution_id"], envelope["error"]["code"]) == ("1", "ERR_RUNTIME")
    assert outcome.status == 1


def test_a_bug_is_an_internal_error_with_the_way_to_report_it() -> None:
    outcome = shell("bug", "--json")

    error = outcome.document["error"]
    assert (error["code"], error["message"], outcome.status) == ("ERR_INTERNAL", "ZeroDivisionError: a bug", 70)
    assert "report" in error["hint"]
    assert "\n" not in error["hint"]


@pytest.mark.parametrize(("words", "status"), [(("bug",), 70), (("fail",), 66), (("--json", "fail"), 66)])
def test_a_traceback_is_printed_when_asked_for_and_changes_no_status(words: tuple[str, ...], status: int) -> None:
    outcome = shell(*words, "--traceback")

    assert "Traceback (most recent call last):" in outcome.stderr
    assert outcome.status == status
    if "--json" in words:
        assert outcome.document["status"] == "error"


# usage

USAGE = [
    ((), "the following arguments are required: SUBCOMMAND", "probe --help"),
    (("frobnicate",), "invalid choice: 'frobnicate'", "probe --help"),
    (("answer", "--frobnicate"), "unrecognized arguments: --frobnicate", "probe answer --help"),
    (("answer", "extra"), "unrecognized arguments: extra", "probe answer --help"),
    (("answer", "--ref"), "argument --ref: expected one argument", "probe answer --help"),
    (("answer", "--re", "x"), "unrecognized arguments: --re x", "probe answer --help"),
    (("--js", "answer"), "unrecognized arguments: --js", "probe --help"),
    (("answer", "--verbosity", "9"), "invalid choice: 9", "probe answer --help"),
]


@pytest.mark.parametrize(("words", "message", "hint"), USAGE)
def test_wrong_words_are_a_usage_error(words: tuple[str, ...], message: str, hint: str) -> None:
    outcome = shell(*words, "--json")

    error = outcome.document["error"]
    assert (error["code"], error["hint"], error["details"]) == ("ERR_USAGE", hint, {})
    assert message in error["message"]
    assert (outcome.status, outcome.stderr) == (2, "")


def test_without_json_wrong_words_are_told_on_stderr() -> None:
    outcome = shell("answer", "--frobnicate")

    assert outcome.stderr == "ERR_USAGE: unrecognized arguments: --frobnicate\nhint: probe answer --help\n"
    assert (outcome.status, outcome.stdout) == (2, "")


def test_help_shows_options_and_two_examples_as_typed() -> None:
    outcome = shell("answer", "--help")

    assert "--ref" in outcome.stdout
    assert outcome.stdout.endswith("examples:\n  probe answer\n  X=1 probe answer --json\n")
    assert (outcome.status, outcome.stderr) == (0, "")


@pytest.mark.parametrize("words", [("--version",), ("answer", "--version"), ("--json", "fail", "--version")])
def test_version_is_the_projects(words: tuple[str, ...]) -> None:
    outcome = shell(*words)

    assert outcome.stdout == "theory-processors 1.0.0\n"
    assert outcome.status == 0


# what is said


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ((), "a note\nwarning: a warning\n"),
        (("-q",), "warning: a warning\n"),
        (("-v",), "a note\na detail\nwarning: a warning\n"),
    ],
)
def test_notes_go_to_stderr_as_much_as_was_asked_for(flag: tuple[str, ...], said: str) -> None:
    assert shell("say", "--json", *flag).stderr == said
    assert shell(*flag, "say").stderr == said


def test_a_table_is_as_wide_as_what_is_in_it() -> None:
    assert shell("say", "-q").stdout == "REF      é\nllm/x@1  1\na        → \\udcff\n"


@pytest.mark.parametrize(
    "env", [{"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_characters_that_the_locale_lacks_end_nothing(env: dict[str, str]) -> None:
    outcome = shell("say", env=env)

    assert "\\u2192 \\udcff" in outcome.stdout
    assert outcome.status == 0
    assert shell("say", "--json", env=env).document == {"said": "→"}


def on_terminal(*words: str, **env: str) -> str:
    """What the probe prints with a terminal as stdout and stderr."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROBE, *words],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        cwd=PROJECT,
        env=ENVIRONMENT | {"TERM": "xterm"} | env,
    )
    os.close(follower)
    text = b""
    try:
        while piece := os.read(leader, 4096):
            text += piece
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    os.close(leader)
    process.wait(30)
    return text.decode()


def test_a_terminal_gets_colours() -> None:
    assert "\x1b[32m" in on_terminal("say")
    assert "\x1b[31mERR_NOT_STARTED:\x1b[0m" in on_terminal("fail")


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (("say",), {"NO_COLOR": "1"}),
        (("say", "--no-color"), {}),
        (("say",), {"TERM": "dumb"}),
        (("say", "--json"), {}),
        (("fail",), {"NO_COLOR": "1"}),
        (("fail", "--no-color"), {}),
    ],
)
def test_a_terminal_gets_no_colours_when_not_wanted(words: tuple[str, ...], env: dict[str, str]) -> None:
    text = on_terminal(*words, **env)

    assert "\x1b" not in text.replace("\x1b[33mwarning:\x1b[0m", "") if words[-1] == "--json" else "\x1b" not in text


def test_a_pipe_gets_no_colours() -> None:
    assert "\x1b" not in shell("say").stdout + shell("fail").stderr


# signals


def _wait_for(stream: IO[str], word: str) -> None:
    assert stream.readline() == f"{word}\n"


@pytest.mark.parametrize(
    ("number", "message", "status"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_a_signal_cleans_up_and_leaves_a_document(spawn: Any, number: int, message: str, status: int) -> None:
    process = spawn("wait", "--json")
    _wait_for(process.stderr, "waiting")

    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)

    assert stderr == "cleaned up\n"
    error = json.loads(stdout)["error"]
    assert (error["code"], error["message"], error["details"]) == ("ERR_CANCELLED", message, {"by": "user"})
    assert process.returncode == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_a_service_that_cancels_and_ends_in_its_envelope(spawn: Any, number: int, status: int) -> None:
    process = spawn("run", "--json")
    _wait_for(process.stderr, "running")
    process.stdout.readline()

    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)

    *events, envelope = map(json.loads, stdout.splitlines())
    assert all(event["event"] == "token" for event in events)
    assert (envelope["schema"], envelope["error"]["code"]) == (1, "ERR_CANCELLED")
    assert (process.returncode, stderr) == (status, "cancelled\n")


def test_a_second_sigterm_lets_the_clean_up_finish(spawn: Any) -> None:
    process = spawn("wait")
    _wait_for(process.stderr, "waiting")

    process.terminate()
    process.terminate()
    _, stderr = process.communicate(timeout=30)

    assert stderr == "cleaned up\nERR_CANCELLED: terminated\n"
    assert process.returncode == 143


# pipes and files


@pytest.mark.parametrize("words", [("run", "--json"), ("run",), ("stream", "--ref", "100000")])
def test_a_reader_that_left_ends_it_quietly(spawn: Any, words: tuple[str, ...]) -> None:
    process = spawn(*words)
    process.stdout.read(10)
    process.stdout.close()

    process.wait(30)

    assert process.stderr.read() in ("running\ncancelled\n", "closed\n")
    assert process.returncode == 141


@pytest.mark.parametrize("words", [("answer", "--json"), ("fail", "--json"), ("--help",), ("--version",), ("--json",)])
def test_a_reader_that_was_never_there_ends_it_quietly(words: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)

    outcome = shell(*words, stdout=write)
    os.close(write)

    assert (outcome.status, outcome.stderr) == (141, "")


@pytest.mark.parametrize("words", [("answer", "--json"), ("answer",), ("--help",), ("--version",)])
def test_a_full_disk_behind_stdout_is_told(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        outcome = shell(*words, stdout=full)

    assert outcome.stderr.startswith("ERR_STORAGE: stdout can't be written: No space left on device\n")
    assert outcome.status == 69


def test_an_error_that_stdout_can_not_take_keeps_its_status() -> None:
    with Path("/dev/full").open("wb") as full:
        outcome = shell("fail", "--json", stdout=full)

    assert "ERR_STORAGE: stdout can't be written" in outcome.stderr
    assert outcome.status == 66


def test_a_full_disk_behind_stderr_changes_no_status() -> None:
    with Path("/dev/full").open("wb") as full:
        assert shell("fail", stderr=full).status == 66
        assert shell("say", "--json", stderr=full).document == {"said": "→"}


@pytest.mark.parametrize(
    ("closing", "words", "status"), [(">&-", "answer", 0), ("2>&-", "fail", 66), ("<&-", "say", 0)]
)
def test_a_stream_that_the_caller_closed_changes_no_status(closing: str, words: str, status: int) -> None:
    line = " ".join([*PROBE, words, closing])

    done = subprocess.run(["sh", "-c", line], cwd=PROJECT, env=ENVIRONMENT, capture_output=True, timeout=30)

    assert done.returncode == status
    assert b"Traceback" not in done.stderr


# callers in Python


def test_a_caller_in_python_gets_the_document_on_its_own_stream() -> None:
    out = StringIO()

    call_command(Command(), "answer", "--ref", "x", "--json", stdout=out)

    assert json.loads(out.getvalue())["ref"] == "x"


def test_a_caller_in_python_catches_what_the_shell_would_see() -> None:
    out, err = StringIO(), StringIO()

    with pytest.raises(CommandError) as caught:
        call_command(Command(), "fail", "--json", stdout=out, stderr=err)

    assert isinstance(caught.value, Failed)
    assert (caught.value.returncode, str(caught.value)) == (66, "llm/x@1 is not started")
    assert caught.value.document["error"]["code"] == "ERR_NOT_STARTED"
    assert out.getvalue() == err.getvalue() == ""


def test_a_caller_in_python_catches_wrong_words() -> None:
    with pytest.raises(CommandError) as caught:
        call_command(Command(), "frobnicate")

    assert caught.value.returncode == 2


def test_a_thread_may_call_a_command() -> None:
    out = StringIO()
    command = Command(stdout=out)
    thread = threading.Thread(target=command.run_from_argv, args=(["probe", "probe", "answer", "--json"],))

    thread.start()
    thread.join(10)

    assert json.loads(out.getvalue())["status"] == "success"


def test_a_command_leaves_the_callers_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    call_command(Command(), "answer", stdout=StringIO())

    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_flies_through_to_a_caller_in_python() -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))

    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call_command(Command(), "wait", stderr=StringIO())
    timer.join()
