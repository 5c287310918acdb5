"""How any file of ours is replaced: in one step, durably, and one writer at a time."""

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apps.errors import StorageFailed

_RANDOM = re.compile("[0-9a-f]{8}")


def write_text(path: Path, text: str, *, mode: int = 0o666, like: os.stat_result | None = None) -> None:
    """Replace `path` with `text`: a reader sees the whole old file or the whole new one.

    `mode` is narrowed by the umask; 0o600 for files that hold a token. With `like` it does not count: mode, group
    and owner become those, the last two as far as we may. Raises StorageFailed (disk full, read-only, not allowed):
    the old file is then as it was.
    """
    with _told(path):
        _drop_abandoned(path)
        _replace(path, text, mode, like)


def _replace(path: Path, text: str, mode: int, like: os.stat_result | None) -> None:
    temporary, descriptor = _sibling(path, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            if like is not None:
                _resemble(file.fileno(), like)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can keep the name and lose the bytes
            os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:  # KeyboardInterrupt too: never leave the temporary file behind
        temporary.unlink(missing_ok=True)
        raise


def _sibling(path: Path, mode: int) -> tuple[Path, int]:
    """A temporary file beside `path`, locked for as long as its writer lives."""
    while True:
        # A sibling, because os.replace is atomic only within one filesystem; not mkstemp,
        # whose 0600 would make registry.yaml unreadable to the team.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with suppress(OSError):  # a filesystem without locks: there nothing is ever taken for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # it was taken for abandoned before it was locked


def _drop_abandoned(path: Path) -> None:
    """Remove the temporary files of writers of `path` that were killed: nobody holds a lock on them."""
    prefix = f".{path.name}."
    for name in os.listdir(path.parent):
        if name.startswith(prefix) and _RANDOM.fullmatch(name, len(prefix)):
            found = path.with_name(name)
            with suppress(OSError), found.open("rb") as file:  # gone meanwhile, or of one that writes now
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.unlink()


def _resemble(descriptor: int, other: os.stat_result) -> None:
    with suppress(PermissionError):
        os.fchown(descriptor, -1, other.st_gid)
    with suppress(PermissionError):  # root alone may give a file away
        os.fchown(descriptor, other.st_uid, -1)
    os.fchmod(descriptor, stat.S_IMODE(other.st_mode))  # last: a new owner can cost bits of it


def sync_directory(path: Path) -> None:
    """Make names created or replaced in the folder `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made when absent, never removed); waits while another process holds it.

    The kernel releases it when the holder dies, so a kill leaves nothing to clean up. Raises StorageFailed.
    """
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageFailed(
            f"{path} can't be written: {exc.strerror or exc}", hint=f"make room, or make {path.parent} writable"
        ) from exc
