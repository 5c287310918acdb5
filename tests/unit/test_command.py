import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.errors import TimedOut
from apps.processors.adapters import command

REPO = Path(__file__).resolve().parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def soon(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def read_pid(path: Path) -> int:
    assert soon(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


# run


def test_run_keeps_stdout_and_stderr_apart_and_gives_the_status() -> None:
    done = command.run(python("import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)"), timeout_s=30)

    assert done == command.Completed("a\n", "b\n", 3)


def test_run_hands_input_to_stdin() -> None:
    done = command.run(python("print(input()[::-1])"), timeout_s=30, input="drow\n")

    assert done.stdout == "word\n"


def test_run_without_input_gives_an_empty_stdin() -> None:
    done = command.run(python("import sys; print(len(sys.stdin.read()))"), timeout_s=30)

    assert done.stdout == "0\n"


def test_run_gives_the_program_only_the_environment_named() -> None:
    done = command.run(
        python("import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))"), timeout_s=30, env={"ONE": "1"}
    )

    assert done.stdout == "['ONE']\n"


def test_run_finds_the_program_in_the_path_that_it_gives_it(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)

    assert command.run(["only-here"], timeout_s=30, env={"PATH": str(tmp_path)}).stdout == "found\n"


def test_run_works_in_the_folder_named(tmp_path: Path) -> None:
    done = command.run(python("import os; print(os.getcwd())"), timeout_s=30, cwd=tmp_path)

    assert done.stdout == f"{tmp_path.resolve()}\n"


@pytest.mark.parametrize(
    "start", [lambda argv: command.run(argv, timeout_s=30), lambda argv: list(command.spawn(argv))]
)
def test_a_program_that_is_not_installed_is_an_error_naming_it(start: Callable[[list[str]], object]) -> None:
    with pytest.raises(command.CommandMissing) as caught:
        start(["no-such-program", "x"])

    assert caught.value.message == "no-such-program can't be run: No such file or directory"
    assert caught.value.hint == "install no-such-program"


def test_a_folder_that_is_not_there_is_not_taken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        command.run(python("0"), timeout_s=30, cwd=tmp_path / "absent")


def test_run_ends_a_program_that_takes_too_long(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"

    with pytest.raises(TimedOut, match=r"did not end within 0\.5 s"):
        command.run(python(code), timeout_s=0.5)

    assert not pid_file.exists() or not is_alive(read_pid(pid_file))


def test_run_gives_back_bytes_that_are_not_utf_8_as_file_names_have_them() -> None:
    done = command.run(python("import sys; sys.stdout.buffer.write(b'\\xff')"), timeout_s=30)

    assert os.fsencode(done.stdout) == b"\xff"


# spawn


def test_spawn_merges_both_streams_in_the_order_written() -> None:
    code = "import os\nfor i in range(3): os.write(1, b'out\\n'); os.write(2, b'err\\n')"

    assert list(command.spawn(python(code))) == ["out", "err"] * 3


def test_spawn_yields_a_line_while_the_program_still_runs() -> None:
    code = "import time; print('first', flush=True); time.sleep(60)"
    lines = command.spawn(python(code))
    began = time.monotonic()

    assert next(lines) == "first"
    lines.close()
    assert time.monotonic() - began < 30


def test_spawn_raises_with_the_last_fifty_lines() -> None:
    lines: list[str] = []

    with pytest.raises(command.CommandFailed) as caught:
        lines.extend(command.spawn(python("for i in range(60): print(i)\nraise SystemExit(4)")))

    assert caught.value.status == 4
    assert caught.value.lines == [str(i) for i in range(10, 60)]


def test_spawn_gives_a_line_without_end_in_pieces() -> None:
    pieces = list(command.spawn(python("print('x' * 200_000)")))

    assert max(map(len, pieces)) <= 65536
    assert "".join(pieces) == "x" * 200_000


def test_spawn_ends_a_program_at_its_time_limit() -> None:
    began = time.monotonic()

    with pytest.raises(TimedOut, match=r"did not end within 0\.5 s"):
        list(command.spawn(python("import time; time.sleep(60)"), timeout_s=0.5))

    assert time.monotonic() - began < 30


# the end of a child


GRANDCHILD = """
import os, signal, subprocess, sys, time
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({path!r}, "w").write(f"{{child.pid}}\\n")
print("up", flush=True)
time.sleep(60)
"""


def test_who_stops_reading_ends_the_program_and_what_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    lines = command.spawn(python(GRANDCHILD.format(stubborn=False, path=str(path))))
    next(lines)
    grandchild = read_pid(path)

    lines.close()

    assert soon(lambda: not is_alive(grandchild))


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "GRACE_S", 0.2)
    path = tmp_path / "pid"
    lines = command.spawn(python(GRANDCHILD.format(stubborn=True, path=str(path))))
    next(lines)
    grandchild = read_pid(path)

    lines.close()

    assert soon(lambda: not is_alive(grandchild))


CALLER = """
import signal, sys
from apps.processors.adapters import command
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
code = "import os, time; open({path!r}, 'w').write(f'{{os.getpid()}}\\\\n'); print('up', flush=True); time.sleep(60)"
{call}
"""
CALLS = {
    "run": "command.run([sys.executable, '-c', code], timeout_s=60)",
    "spawn": "for line in command.spawn([sys.executable, '-c', code]): print(line, flush=True)",
}


@pytest.fixture(params=CALLS)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python process inside `run` or `spawn`; the pid of its child is in tmp_path/pid."""
    code = CALLER.format(path=str(tmp_path / "pid"), call=CALLS[request.param])
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'code/runtime'}"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_the_child_too(
    caller: "subprocess.Popen[bytes]", number: signal.Signals, status: int, tmp_path: Path
) -> None:
    child = read_pid(tmp_path / "pid")

    caller.send_signal(number)
    caller.communicate(timeout=30)

    assert caller.returncode == status
    assert not is_alive(child)


def test_a_terminals_ctrl_c_does_not_reach_the_child_by_itself() -> None:
    done = command.run(python("import os; print(os.getsid(0) == os.getpid())"), timeout_s=30)

    assert done.stdout == "True\n"


# redaction


def test_secret_values_are_in_no_output_whatever_their_order() -> None:
    code = "import sys; print('a-secret-longer a-secret'); print('a-secret', file=sys.stderr)"

    done = command.run(python(code), timeout_s=30, redact=["a-secret", "a-secret-longer", ""])

    assert (done.stdout, done.stderr) == ("*** ***\n", "***\n")


def test_secret_values_are_neither_in_lines_nor_in_the_error() -> None:
    lines: list[str] = []

    with pytest.raises(command.CommandFailed) as caught:
        lines.extend(command.spawn(python("print('my hunter2'); raise SystemExit(1)"), redact=["hunter2"]))

    assert lines == caught.value.lines == ["my ***"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("https://user:pw@host/simple", "https://***@host/simple"),
        ("git+https://token@host/x.git", "git+https://***@host/x.git"),
        ("docker-image://python@sha256:0", "docker-image://python@sha256:0"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_what_stands_before_the_at_of_a_url_is_not_shown(said: str, shown: str) -> None:
    assert list(command.spawn(python(f"print({said!r})"))) == [shown]
