"""Files and folders that a power cut leaves as they were said to be, and names that are given only once.

Everything is relative to a folder's descriptor: a folder that is swapped for a symbolic link meanwhile changes
nothing. All of it raises OSError.
"""

import errno
import fcntl
import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK: Final = "lock"  # in the folder of temporary files
ABANDONED_S: Final = 24 * 3600  # a temporary file untouched for so long has no writer

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: to open a FIFO that somebody put there must not wait for its writer.
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # FAT, some FUSE and SMB


def give_name(temporary: str, staging: int, name: str, folder: int) -> None:
    """Make the temporary file visible as `name`. Raises FileExistsError when that is taken."""
    try:
        os.link(temporary, name, src_dir_fd=staging, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        _rename_once(temporary, staging, name, folder)


def _rename_once(temporary: str, staging: int, name: str, folder: int) -> None:
    # rename(2) replaces, so writers take turns. Not an O_EXCL reservation: a kill would leave it, empty, for good.
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=staging)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _exists(name, folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        os.rename(temporary, name, src_dir_fd=staging, dst_dir_fd=folder)
    finally:
        os.close(lock)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def holds(name: str, folder: int, size_bytes: int, digest: str) -> bool:
    """Whether `name` is a file of exactly these bytes."""
    try:
        descriptor = os.open(name, READ, dir_fd=folder)
    except OSError:  # a symbolic link, a socket, or not ours to read
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            return False
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    finally:
        os.close(descriptor)


def make_folder(name: str, parent: int) -> None:
    """Make the folder `name` when absent, so that a power cut leaves it."""
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return
    sync(parent)


def make_folders(path: Path) -> None:
    """`mkdir --parents`, durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        parent = os.open(folder.parent, FOLDER)
        try:
            sync(parent)
        finally:
            os.close(parent)


def sync(folder: int) -> None:
    """Make the names in `folder` survive a power cut, where its filesystem can."""
    try:
        os.fsync(folder)
    except OSError as exc:
        # Some filesystems can't sync a folder at all; PostgreSQL's fsync_fname_ext lets this pass as well.
        if exc.errno != errno.EINVAL:
            raise


def sweep(staging: int) -> None:
    """Remove temporary files whose writer was killed long ago."""
    before = time.time() - ABANDONED_S
    with os.scandir(staging) as entries:
        for entry in entries:
            with suppress(OSError):  # another process sweeps too
                if entry.name != LOCK and entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.name, dir_fd=staging)
