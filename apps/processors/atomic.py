"""How any file of ours is replaced: in one step, durably, and one writer at a time."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Replace `path` with `text`: a reader sees the whole old file or the whole new one.

    `mode` is narrowed by the umask; 0o600 for files that hold a token.
    """
    # A sibling, because os.replace is atomic only within one filesystem; not mkstemp,
    # whose 0600 would make registry.yaml unreadable to the team.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can keep the name and lose the bytes
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:  # KeyboardInterrupt too: never leave the temporary file behind
        temporary.unlink(missing_ok=True)
        raise


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

    The kernel releases it when the holder dies, so a kill leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
