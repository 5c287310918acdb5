import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.errors import StorageFailed
from apps.processors.atomic import exclusive_lock, write_text
from tests.places import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", size="64k")


@pytest.fixture
def umask() -> Iterator[None]:
    previous = os.umask(0o022)
    yield
    os.umask(previous)


# write_text


def test_a_file_is_made_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"

    write_text(path, "a long first text\n")
    write_text(path, "é\n")

    assert path.read_bytes() == b"\xc3\xa9\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_reader_sees_a_whole_text_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    texts = {letter * 50_000 for letter in "ab"}
    write_text(path, "a" * 50_000)
    seen, ended = set(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for text in sorted(texts):
            write_text(path, text)
    ended.set()
    reader.join()

    assert seen <= texts


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o644), (0o600, 0o600)])
def test_the_mode_is_narrowed_by_the_umask(tmp_path: Path, umask: None, mode: int, expected: int) -> None:
    path = tmp_path / "file"

    write_text(path, "x", mode=mode)

    assert path.stat().st_mode & 0o777 == expected


def test_a_token_is_private_even_where_a_public_file_was(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "run_tokens.json"
    path.write_text("{}")

    write_text(path, "secret", mode=0o600)

    assert path.stat().st_mode & 0o777 == 0o600


def test_bytes_and_name_are_on_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)

    write_text(tmp_path / "state.json", "x")

    assert calls == ["file", "rename", "folder"]


def test_a_full_disk_leaves_the_old_text_and_no_other_file(disk: Path) -> None:
    path = disk / "state.json"
    write_text(path, "old")

    with pytest.raises(StorageFailed, match="No space left"):
        write_text(path, "x" * 200_000)

    assert path.read_text() == "old"
    assert [entry.name for entry in disk.iterdir()] == ["state.json"]


def test_an_interrupted_write_leaves_the_old_text_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


KILLED = """
import os, sys
sys.path[:0] = [{project!r}, {project!r} + "/code/runtime"]
from pathlib import Path
from apps.processors import atomic
def wait(*_):
    print("about to replace", flush=True)
    sys.stdin.read()
os.replace = wait
atomic.write_text(Path(sys.argv[1]), "new")
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written its text for `tmp_path/state.json` beside it, and not put it in place."""
    script = KILLED.format(project=str(Path(__file__).parents[2]))
    argv = [sys.executable, "-c", script, str(tmp_path / "state.json")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "about to replace\n"
        yield process
        process.kill()


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    assert len(list(tmp_path.iterdir())) == 1
    writer.kill()
    writer.wait()

    write_text(tmp_path / "state.json", "newer")

    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_what_a_writer_at_work_has_beside_its_file_is_left_alone(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    (temporary,) = tmp_path.iterdir()

    write_text(tmp_path / "state.json", "newer")

    assert temporary.read_text() == "new"


def test_hidden_files_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    others = {".state.json.swp", ".state.json.original", ".other.json.0123abcd", "state.json.0123abcd"}
    for name in others:
        (tmp_path / name).touch()

    write_text(tmp_path / "state.json", "x")

    assert {entry.name for entry in tmp_path.iterdir()} == {"state.json", *others}


# exclusive_lock

HOLD = """
import sys, time
sys.path[:0] = [{project!r}, {project!r} + "/code/runtime"]
from pathlib import Path
from apps.errors import StorageFailed
from apps.processors.atomic import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock `tmp_path/locks/a.lock`."""
    script = HOLD.format(project=str(Path(__file__).parents[2]))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "locks" / "a.lock")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def _is_held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_lock_is_held_for_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.lock"

    with exclusive_lock(path):
        assert _is_held(path)

    assert not _is_held(path)


def test_a_lock_is_let_go_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive_lock(tmp_path / "a.lock"):
        raise RuntimeError

    assert not _is_held(tmp_path / "a.lock")


def test_a_lock_waits_for_another_process_and_gets_it_when_that_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    killer = threading.Timer(0.3, holder.kill)
    began = time.monotonic()
    killer.start()

    with exclusive_lock(tmp_path / "locks" / "a.lock"):
        waited = time.monotonic() - began

    killer.join()
    assert waited >= 0.3


def test_locks_of_other_names_do_not_wait(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with exclusive_lock(tmp_path / "locks" / "b.lock"):
        assert holder.poll() is None


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "a.lock"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not _is_held(tmp_path / "a.lock")
    finally:
        child.kill()
        child.wait()
