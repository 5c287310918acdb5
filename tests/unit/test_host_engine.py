"""The process engine's parts: the shim's log, who a process is, reading the log, what pip gets."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apps.processors.adapters import host_build, host_log, host_shim
from apps.processors.adapters.base import LogLine
from apps.processors.adapters.host_build import HostBuilder
from apps.processors.adapters.host_process import Record
from apps.processors.adapters.host_shim import LOG, OLD_LOG, Log, pid_space, start_time
from apps.processors.reference import AMD64, ARM64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shim's current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def log(folder: Path) -> Iterator[Log]:
    log = Log(limit_bytes=2000)
    yield log
    log.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's processor."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def read(
    folder: Path, *, tail: int | None = None, since: str | None = None, ended: Iterator[bool] | None = None
) -> list[LogLine]:
    return list(host_log.read(folder, ended=lambda: ended is None or next(ended), tail=tail, since=since))


def texts(folder: Path, *, tail: int | None = None) -> list[str]:
    return [line.line for line in read(folder, tail=tail)]


def write(folder: Path, *stamps: str) -> None:
    entries = [{"ts": stamp, "stream": "stdout", "line": stamp} for stamp in stamps]
    with (folder / LOG).open("a") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries))


# the shim's log


def test_log_keeps_the_streams_apart(log: Log, folder: Path) -> None:
    log.feed("stdout", b"one\ntw")
    log.feed("stderr", b"three\n")
    log.feed("stdout", b"o\n")

    assert [(line.stream, line.line) for line in read(folder)] == [
        ("stdout", "one"),
        ("stderr", "three"),
        ("stdout", "two"),
    ]


def test_log_keeps_a_last_line_that_has_no_end(log: Log, folder: Path) -> None:
    log.feed("stdout", b"no newline")
    log.feed("stdout", b"")

    assert texts(folder) == ["no newline"]


def test_log_keeps_bytes_that_are_no_text(log: Log, folder: Path) -> None:
    log.feed("stdout", b"\xff\x00\n")

    assert texts(folder) == ["\ufffd\x00"]


def test_log_splits_a_line_without_end_so_that_memory_stays_flat(folder: Path) -> None:
    log = Log()

    for _ in range(40):
        log.feed("stdout", b"x" * host_shim.READ_BYTES)
    log.close()

    assert {len(text) for text in texts(folder)} == {host_shim.LONGEST_LINE_BYTES}


def test_log_is_readable_by_its_owner_alone(log: Log, folder: Path) -> None:
    assert (folder / LOG).stat().st_mode & 0o777 == 0o600


def test_log_starts_anew_at_its_limit_and_keeps_one_older_file(log: Log, folder: Path) -> None:
    for number in range(100):
        log.feed("stdout", b"%d\n" % number)

    assert texts(folder)[-1] == "99"
    assert max((folder / name).stat().st_size for name in (LOG, OLD_LOG)) <= 2000
    assert texts(folder) == [str(number) for number in range(100)][-len(texts(folder)) :]


def test_log_drops_lines_rather_than_fail_when_the_disk_is_full(log: Log, folder: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    os.close(full)

    log.feed("stdout", b"lost\n")

    assert texts(folder) == []


# reading it


def test_the_last_lines_are_read(folder: Path) -> None:
    write(folder, "1", "2", "3")

    assert texts(folder, tail=2) == ["2", "3"]


def test_a_tail_of_no_lines_reads_none(folder: Path) -> None:
    write(folder, "1")

    assert texts(folder, tail=0) == []


@pytest.mark.parametrize(
    "since",
    ["2026-01-01T00:00:00.500Z", "2026-01-01T01:00:00.5+01:00", "2026-01-01T00:00:00.500"],
    ids=["UTC", "another zone", "no zone is UTC"],
)
def test_lines_from_a_time_on_are_read(folder: Path, since: str) -> None:
    write(folder, "2026-01-01T00:00:00.499Z", "2026-01-01T00:00:00.500Z")

    assert [line.ts for line in read(folder, since=since)] == ["2026-01-01T00:00:00.500Z"]


def test_a_torn_line_is_skipped(folder: Path) -> None:
    write(folder, "1")
    with (folder / LOG).open("a") as file:
        file.write('{"ts": "2", "str\n')
    write(folder, "3")

    assert texts(folder) == ["1", "3"]


def test_a_line_still_being_written_waits_for_its_end(folder: Path) -> None:
    def ended() -> Iterator[bool]:
        (folder / LOG).write_text('{"ts": "1", "stream": "stdout", ')
        yield False
        with (folder / LOG).open("a") as file:
            file.write('"line": "whole"}\n')
        yield True

    (folder / LOG).touch()

    assert [line.line for line in read(folder, ended=ended())] == ["whole"]


def test_following_goes_on_over_a_rotation(folder: Path) -> None:
    def ended() -> Iterator[bool]:
        yield False
        write(folder, "2")
        (folder / LOG).rename(folder / OLD_LOG)
        write(folder, "3")
        yield False
        yield from [True] * 3

    write(folder, "1")

    assert [line.line for line in read(folder, ended=ended())] == ["1", "2", "3"]


def test_a_tail_is_followed_by_every_new_line(folder: Path) -> None:
    def ended() -> Iterator[bool]:
        yield False
        write(folder, "3", "4")
        yield True

    write(folder, "1", "2")

    assert [line.line for line in read(folder, tail=1, ended=ended())] == ["2", "3", "4"]


def test_a_process_that_was_removed_has_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "gone") == []


# who a process is


def record_of(pid: int, start: str | None) -> Record:
    return Record(
        name="processor-a",
        pid=pid,
        start=start or "",
        shim_pid=pid,
        shim_start=start or "",
        space=pid_space(),
        labels={},
        port=18000,
        scratch="/nowhere",
        started_at="2026-01-01T00:00:00.000Z",
    )


def test_a_process_is_known_by_pid_and_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    assert record_of(sleeper.pid, start_time(sleeper.pid)).runs()


def test_a_later_process_of_the_same_pid_is_another(sleeper: subprocess.Popen[bytes]) -> None:
    assert not record_of(sleeper.pid, "1").runs()


def test_a_process_of_an_earlier_boot_does_not_run(sleeper: subprocess.Popen[bytes]) -> None:
    record = replace(record_of(sleeper.pid, start_time(sleeper.pid)), space="another boot")

    assert not record.runs()


def test_a_process_that_nobody_waited_for_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert start_time(process.pid) is None
    process.wait()


@pytest.mark.parametrize(("start", "space"), [("1", ""), ("", "another boot")], ids=["pid", "boot"])
def test_a_reused_pid_is_never_signalled(sleeper: subprocess.Popen[bytes], start: str, space: str) -> None:
    own = record_of(sleeper.pid, start_time(sleeper.pid))
    record = replace(own, start=start or own.start, space=space or own.space)

    record.signal(signal.SIGKILL)

    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.1)


def test_a_name_with_parentheses_does_not_hide_the_start_time(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([str(odd), "60"], executable=str(odd)) as process:
        assert record_of(process.pid, start_time(process.pid)).runs()
        process.kill()


# what a build takes


def test_only_this_machine_is_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    assert HostBuilder(tmp_path, tmp_path, {}).platforms((AMD64, ARM64)) == (ARM64,)


@pytest.mark.parametrize(
    ("line", "news"),
    [
        ("Collecting litellm==1.106.2 (from -r requirements.lock (line 1))", "collecting litellm==1.106.2"),
        (
            "Processing /wheels/six-1.17.0-py2.py3-none-any.whl (from -r x)",
            "processing six-1.17.0-py2.py3-none-any.whl",
        ),
        ("Installing collected packages: zipp, six", "installing 2 packages"),
        ("Using cached six-1.17.0-py2.py3-none-any.whl (11 kB)", None),
    ],
)
def test_progress_is_pips_in_short(line: str, news: str | None) -> None:
    assert host_build._news(line) == news


def test_pip_gets_its_own_settings_and_the_way_out_alone(tmp_path: Path) -> None:
    wanted = {"PIP_INDEX_URL": "u", "https_proxy": "p", "SSL_CERT_FILE": "c", "HOME": "h", "PATH": "b"}
    kept_out = {"AWS_SECRET_ACCESS_KEY": "a", "OPENAI_API_KEY": "o", "PIP_TARGET": "t", "PYTHONPATH": "y"}

    builder = HostBuilder(tmp_path, tmp_path, {**wanted, **kept_out})

    assert builder._environment == wanted
