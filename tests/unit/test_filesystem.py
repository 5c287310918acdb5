import errno
import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import ConfigurationError, InvalidInputs, OutputExists, StorageFailed, UploadFailed
from apps.storage import select
from apps.storage.filesystem import FilesystemBackend
from tests.places import small_disk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def backend(root: Path) -> FilesystemBackend:
    made = FilesystemBackend(root)
    made.check()
    return made


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without hard links, as FAT is."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture(params=["links", "no links"])
def either(request: pytest.FixtureRequest, backend: FilesystemBackend) -> FilesystemBackend:
    if request.param == "no links":
        request.getfixturevalue("no_links")
    return backend


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put(backend: FilesystemBackend, key: str, data: bytes) -> None:
    writer = backend.create(key, mime="text/plain")
    try:
        writer.write(data)
        writer.commit(size_bytes=len(data), digest=digest_of(data))
    finally:
        writer.abort()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# What a key may be


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../x",
        "a/..",
        ".",
        "a/./b",
        "a//b",
        "a/",
        "/a",
        "a\0b",
        "a/b\n",
        "a/\x1b[2J",
        "a/\x7f",
        "a/\x9b",
        "a/\ud800",
        "a/" + "x" * 256,
        "a/" + "é" * 128,
        "/".join(["x" * 100] * 11),
        ".tmp",
        ".tmp/x",
        ".TMP/x",
        ".tmpx",
    ],
)
def test_a_key_that_can_not_be_is_refused_before_anything_is_written(
    backend: FilesystemBackend, root: Path, key: str
) -> None:
    with pytest.raises(InvalidInputs):
        backend.create(key, mime="text/plain")

    assert files(root.parent) == set()


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "artifacts/frames/0001.png",
        "a/grüße 1.txt",
        "a/...",
        "a/.tmp/x",
        "a/-rf",
        "a/" + "x" * 255,
        "a/~",
        "a/$(id)",
    ],
)
def test_an_object_lies_under_its_key(backend: FilesystemBackend, root: Path, key: str) -> None:
    put(backend, key, b"bytes")

    assert (root / key).read_bytes() == b"bytes"
    assert backend.locate(key) == str(root / key)


@given(key=st.text(st.sampled_from("ab./~\\\0\n .é"), max_size=12) | st.text(max_size=12))
def test_no_key_leads_out_of_the_root(key: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        backend = FilesystemBackend(Path(place, "root"))
        backend.check()
        try:
            put(backend, key, b"bytes")
        except InvalidInputs:
            assert files(Path(place)) == set()
        else:
            assert files(Path(place)) == {f"root/{key}"}


# Symbolic links and other strangers


def test_a_linked_folder_is_not_followed(backend: FilesystemBackend, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "a").symlink_to(outside)

    for use in (
        lambda: put(backend, "a/x", b"x"),
        lambda: put(backend, "a/b/x", b"x"),
        lambda: backend.read("a/secret", limit_bytes=99),
        lambda: backend.open("a/secret"),
        lambda: backend.stat("a/secret"),
    ):
        with pytest.raises(StorageFailed, match="symbolic link"):
            use()
    assert files(outside) == {"secret"}


def test_a_linked_file_is_neither_read_nor_written_through(
    backend: FilesystemBackend, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (root / "a").symlink_to(secret)

    with pytest.raises(OutputExists):
        put(backend, "a", b"secret")
    with pytest.raises(StorageFailed, match="symbolic link"):
        backend.read("a", limit_bytes=99)
    assert secret.read_bytes() == b"secret"


def test_a_dangling_link_is_not_written_through(backend: FilesystemBackend, root: Path, tmp_path: Path) -> None:
    (root / "a").symlink_to(tmp_path / "made-through-the-link")

    with pytest.raises(OutputExists):
        put(backend, "a", b"x")

    assert not (tmp_path / "made-through-the-link").exists()


def test_a_linked_staging_folder_is_not_followed(backend: FilesystemBackend, root: Path, tmp_path: Path) -> None:
    (root / ".tmp").rmdir()
    (root / ".tmp").symlink_to(tmp_path)

    with pytest.raises(StorageFailed, match="symbolic link"):
        backend.create("a", mime="")


@pytest.mark.timeout(10)
def test_a_pipe_in_the_way_stops_nobody(backend: FilesystemBackend, root: Path) -> None:
    os.mkfifo(root / "a")

    with pytest.raises(StorageFailed, match="not a file"):
        backend.read("a", limit_bytes=1)
    with pytest.raises(OutputExists):
        put(backend, "a", b"")


def test_a_file_where_a_folder_must_be_is_an_output_that_exists(backend: FilesystemBackend) -> None:
    put(backend, "a", b"x")

    with pytest.raises(OutputExists, match="nothing can lie below it"):
        put(backend, "a/b", b"x")


def test_a_folder_where_a_file_must_be_is_an_output_that_exists(backend: FilesystemBackend) -> None:
    put(backend, "a/b", b"x")

    with pytest.raises(OutputExists):
        put(backend, "a", b"x")


# Create-once


def test_other_bytes_never_replace_an_object(either: FilesystemBackend, root: Path) -> None:
    put(either, "a/b", b"first")

    with pytest.raises(OutputExists, match="other content"):
        put(either, "a/b", b"other")

    assert (root / "a/b").read_bytes() == b"first"


def test_the_same_bytes_again_are_success(either: FilesystemBackend, root: Path) -> None:
    put(either, "a/b", b"first")
    before = (root / "a/b").stat()

    put(either, "a/b", b"first")

    assert (root / "a/b").stat().st_ino == before.st_ino
    assert (root / "a/b").stat().st_mtime_ns == before.st_mtime_ns


def test_of_many_writers_exactly_one_wins(either: FilesystemBackend, root: Path) -> None:
    together = threading.Barrier(16)

    def write(number: int) -> int | None:
        data = str(number).encode() * 1000
        writer = either.create("a/b", mime="")
        writer.write(data)
        together.wait()
        try:
            writer.commit(size_bytes=len(data), digest=digest_of(data))
        except OutputExists:
            return None
        return number

    with ThreadPoolExecutor(16) as threads:
        winners = [number for number in threads.map(write, range(16)) if number is not None]

    assert len(winners) == 1
    assert (root / "a/b").read_bytes() == str(winners[0]).encode() * 1000


@pytest.mark.usefixtures("no_links")
def test_without_links_writers_take_turns(backend: FilesystemBackend, root: Path) -> None:
    with ThreadPoolExecutor(1) as thread, (root / ".tmp" / "lock").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        writing = thread.submit(put, backend, "a/b", b"second")
        with pytest.raises(TimeoutError):
            writing.result(timeout=0.2)
        (root / "a").mkdir(exist_ok=True)
        (root / "a" / "b").write_bytes(b"first")
        fcntl.flock(turn, fcntl.LOCK_UN)
        with pytest.raises(OutputExists):
            writing.result(timeout=5)


def test_keys_that_differ_in_case_do_not_overwrite_where_case_is_ignored(
    backend: FilesystemBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ignoring_case(call: Callable[..., Any], name_at: int, folder: str) -> Callable[..., Any]:
        def same_name(*args: Any, **options: Any) -> Any:
            if options.get(folder) is not None:
                known = {each.casefold(): each for each in os.listdir(options[folder])}
                words = list(args)
                words[name_at] = known.get(str(args[name_at]).casefold(), args[name_at])
                return call(*words, **options)
            return call(*args, **options)

        return same_name

    monkeypatch.setattr(os, "open", ignoring_case(os.open, 0, "dir_fd"))
    monkeypatch.setattr(os, "mkdir", ignoring_case(os.mkdir, 0, "dir_fd"))
    monkeypatch.setattr(os, "link", ignoring_case(os.link, 1, "dst_dir_fd"))
    put(backend, "a/readme", b"first")

    put(backend, "A/README", b"first")
    with pytest.raises(OutputExists):
        put(backend, "A/Readme", b"other")

    assert files(root) == {"a/readme"}
    assert (root / "a/readme").read_bytes() == b"first"


def test_nothing_is_visible_before_commit(backend: FilesystemBackend) -> None:
    writer = backend.create("a/b", mime="")
    writer.write(b"bytes")

    assert backend.stat("a/b") is None
    writer.abort()


@pytest.mark.parametrize(
    ("size_bytes", "digest"),
    [(4, digest_of(b"bytes")), (6, digest_of(b"bytes")), (5, digest_of(b"other")), (5, "sha256:"), (5, "")],
)
def test_bytes_that_are_not_the_announced_ones_are_dropped(
    backend: FilesystemBackend, root: Path, size_bytes: int, digest: str
) -> None:
    writer = backend.create("a/b", mime="")
    writer.write(b"by")
    writer.write(memoryview(b"tes"))

    with pytest.raises(UploadFailed):
        writer.commit(size_bytes=size_bytes, digest=digest)

    assert files(root) == set()


def test_abort_leaves_nothing_and_may_come_twice(backend: FilesystemBackend, root: Path) -> None:
    writer = backend.create("a/b", mime="")
    writer.write(b"bytes")

    writer.abort()
    writer.abort()

    assert files(root) == set()


def test_abort_after_commit_keeps_the_object(either: FilesystemBackend, root: Path) -> None:
    writer = either.create("a/b", mime="")
    writer.commit(size_bytes=0, digest=digest_of(b""))

    writer.abort()

    assert (root / "a/b").read_bytes() == b""


def test_no_descriptor_is_left_open(either: FilesystemBackend, root: Path) -> None:
    before = os.listdir("/proc/self/fd")

    put(either, "a/b", b"x")
    (root / "link").symlink_to("/")
    for key in ("a/b", "a", "a/b/c", "link", "link/x"):
        with pytest.raises((OutputExists, StorageFailed)):
            put(either, key, b"other")
        with pytest.raises((OutputExists, StorageFailed)):
            either.read(key, limit_bytes=0)
    either.check()

    assert os.listdir("/proc/self/fd") == before


# Durability: a power cut can't be provoked, so the calls that guard against it are watched


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """`fsync PATH` and `link NAME` in the order they happen, paths relative to the root."""
    seen: list[str] = []
    fsync, link = os.fsync, os.link

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        seen.append("fsync " + os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), root))

    def watched_link(source: str, name: str, **options: Any) -> None:
        link(source, name, **options)
        seen.append(f"link {name}")

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "link", watched_link)
    return seen


def test_bytes_are_synced_before_the_name_and_names_before_success(
    backend: FilesystemBackend, calls: list[str]
) -> None:
    put(backend, "a/b/c", b"bytes")

    assert calls[0].startswith("fsync .tmp/")
    assert calls[1:] == ["fsync .", "fsync a", "link c", "fsync a/b"]


def test_an_object_that_was_there_is_synced_too(backend: FilesystemBackend, calls: list[str]) -> None:
    put(backend, "a/b", b"bytes")
    calls.clear()

    put(backend, "a/b", b"bytes")

    assert calls[-1] == "fsync a"


def test_a_new_root_is_synced_into_its_parent(root: Path, calls: list[str]) -> None:
    FilesystemBackend(root / "deep" / "er").check()

    assert calls == ["fsync ..", "fsync .", "fsync deep"]


def test_a_filesystem_that_can_not_sync_folders_serves(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _failing_for_folders(errno.EINVAL))

    put(backend, "a/b", b"bytes")

    assert backend.read("a/b", limit_bytes=9) == b"bytes"


def test_a_folder_that_was_not_synced_is_no_success(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _failing_for_folders(errno.EIO))

    with pytest.raises(StorageFailed, match="disk reports an error"):
        put(backend, "a/b", b"bytes")


def _failing_for_folders(number: int) -> Callable[[int], None]:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    return failing


# What can be wrong with a disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    yield from small_disk(tmp_path / "disk", size="1m")


def test_a_full_disk_is_said_and_leaves_nothing(disk: Path) -> None:
    backend = FilesystemBackend(disk / "root")
    backend.check()
    writer = backend.create("a/b", mime="")

    with pytest.raises(StorageFailed, match="no space left") as caught:
        writer.write(bytes(2_000_000))
    writer.abort()

    assert str(disk / "root/a/b") in caught.value.message
    assert "ARTIFACTS_ROOT" in caught.value.hint
    assert files(disk) == set()


def test_check_finds_a_full_disk(disk: Path) -> None:
    backend = FilesystemBackend(disk / "root")
    backend.check()
    with pytest.raises(OSError, match="No space left"):
        (disk / "ballast").write_bytes(bytes(2_000_000))

    with pytest.raises(StorageFailed, match="no space left"):
        backend.check()
    assert files(disk) == {"ballast"}


def test_check_finds_a_read_only_disk(tmp_path: Path) -> None:
    for disk in small_disk(tmp_path / "disk", size="1m,ro"):
        with pytest.raises(StorageFailed, match="read-only"):
            FilesystemBackend(disk / "root").check()


def test_check_finds_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # whom no mode bit lets in
    try:
        with pytest.raises(StorageFailed, match="permission denied"):
            FilesystemBackend(tmp_path / "root").check()
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o700)


def test_check_finds_a_root_that_is_a_file(root: Path) -> None:
    root.write_text("")

    with pytest.raises(StorageFailed, match="not a folder"):
        FilesystemBackend(root).check()
    with pytest.raises(StorageFailed, match="not a folder"):
        FilesystemBackend(root / "below").check()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EMFILE])
def test_an_error_of_the_disk_names_the_path_and_what_to_do(
    backend: FilesystemBackend, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    writer = backend.create("a/b", mime="")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        with pytest.raises(StorageFailed) as caught:
            writer.write(b"x")
    writer.abort()

    assert caught.value.message.startswith(f"{root / 'a/b'}: ")
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


def test_a_root_that_vanished_is_said(backend: FilesystemBackend, root: Path) -> None:
    (root / ".tmp").rmdir()
    root.rmdir()

    with pytest.raises(StorageFailed, match="is not there"):
        backend.create("a", mime="")


# check


def test_check_makes_the_root_and_leaves_nothing_in_it(root: Path) -> None:
    FilesystemBackend(root / "x" / "y").check()

    assert (root / "x" / "y").is_dir()
    assert files(root) == set()


def test_check_drops_what_killed_writers_left_a_day_ago(backend: FilesystemBackend, root: Path) -> None:
    for name, age_s in (("old", 25 * 3600), ("young", 23 * 3600), ("lock", 25 * 3600)):
        (root / ".tmp" / name).write_bytes(b"x")
        now = (root / ".tmp" / name).stat().st_mtime
        os.utime(root / ".tmp" / name, (now - age_s, now - age_s))

    backend.check()

    assert files(root) == {".tmp/young", ".tmp/lock"}


# Reading


def test_what_is_absent_reads_as_none(backend: FilesystemBackend, tmp_path: Path) -> None:
    nowhere = FilesystemBackend(tmp_path / "never made")

    for place in (backend, nowhere):
        assert place.read("a/b", limit_bytes=1) is None
        assert place.stat("a/b") is None
        with pytest.raises(StorageFailed, match="not there"):
            place.open("a/b")


def test_an_object_is_read_up_to_the_limit_and_not_beyond(backend: FilesystemBackend) -> None:
    put(backend, "a/b", b"12345")

    assert backend.read("a/b", limit_bytes=5) == b"12345"
    with pytest.raises(StorageFailed, match="more than 4 bytes"):
        backend.read("a/b", limit_bytes=4)


def test_an_object_tells_its_size_and_its_bytes(backend: FilesystemBackend) -> None:
    put(backend, "a/b", b"12345")

    found = backend.stat("a/b")

    assert found is not None
    assert (found.size_bytes, found.digest) == (5, None)
    with backend.open("a/b") as file:
        assert file.read() == b"12345"


# select


def test_the_filesystem_backend_is_selected_by_its_name(root: Path) -> None:
    found = select.backend("filesystem", artifacts_root=root)

    assert found.name == "filesystem"
    assert found.locate("a") == str(root / "a")


def test_an_unknown_backend_is_a_configuration_error(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="STORAGE_BACKEND"):
        select.backend("tape", artifacts_root=root)


# Digests, listing, removal


def test_a_digest_is_of_what_is_stored(backend: FilesystemBackend) -> None:
    put(backend, "a/b", b"bytes")

    assert backend.digest("a/b") == (5, digest_of(b"bytes"))
    assert backend.digest("a/c") is None


def test_a_listing_has_files_below_the_prefix_sorted_by_key(backend: FilesystemBackend, root: Path) -> None:
    for key in ("a/z", "a/b/c", "a/b.txt", "ab/c"):
        put(backend, key, key.encode())
    (root / "a" / "link").symlink_to("/etc")

    assert list(backend.list("a/")) == [("a/b.txt", 7), ("a/b/c", 5), ("a/z", 3)]
    assert list(backend.list("nothing/here/")) == []


def test_a_folder_that_can_not_be_read_ends_a_listing(
    backend: FilesystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(backend, "a/b/c", b"")

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(StorageFailed, match="permission denied"):
        list(backend.list("a/"))


def test_what_is_removed_leaves_no_empty_folder(backend: FilesystemBackend, root: Path) -> None:
    put(backend, "a/b/c", b"")
    put(backend, "a/d", b"")

    backend.delete("a/b/c")
    backend.delete("a/b/c")

    assert (sorted(path.name for path in root.iterdir()), files(root)) == ([".tmp", "a"], {"a/d"})


def test_a_symbolic_link_is_never_followed_to_remove(backend: FilesystemBackend, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (root / "a").symlink_to(outside)

    with pytest.raises(StorageFailed, match="symbolic link"):
        backend.delete("a/kept")

    assert (outside / "kept").exists()
