"""Scratch space on disk: who uses how much of it, and leaving nothing behind."""

import asyncio
import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final

OURS: Final = ("worker-", "spool-")
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system


def prepare(root: Path) -> None:
    """Make `root`, and empty it of what an earlier runtime left. Raises OSError."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in root.iterdir():
        if entry.name.startswith(OURS):
            remove(entry)
    probe = root / f"worker-probe-{os.getpid()}"
    probe.mkdir()
    probe.rmdir()


def usage(root: Path) -> dict[str, int]:
    """Bytes on disk under each entry of `root`. May take long: call it in a thread."""
    found = {}
    for name in os.listdir(root):
        found[name] = _tree_bytes(root / name)
    return found


def _tree_bytes(top: Path) -> int:
    total = 0
    for folder, _, names in os.walk(top):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * _BLOCK_BYTES
    return total


def remove(path: Path) -> None:
    """Delete a tree, also one whose folders forbid it. What can't be deleted stays."""
    if not path.is_symlink() and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            for folder, names, _ in os.walk(path):
                for name in ("", *names):
                    with contextlib.suppress(OSError):
                        os.chmod(os.path.join(folder, name), stat.S_IRWXU, follow_symlinks=False)
            shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_later(path: Path) -> None:
    """Delete a tree without holding up the event loop."""
    asyncio.get_running_loop().run_in_executor(None, remove, path)


def clean_tmp(since: float, kept: Path, folder: Path = Path("/tmp")) -> None:  # noqa: S108
    """Delete what is newer than `since` (seconds since 1970) in /tmp and ours, but not `kept`, nor what it is in.

    Only for a container, whose /tmp is nobody else's: a failed execution's leftovers would fill it for all.
    """
    me = os.geteuid()
    for entry in list(os.scandir(folder)):
        if kept.is_relative_to(entry.path):
            continue  # scratch space, which may be in /tmp too: idle workers live in it
        with contextlib.suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            # the kernel stamps files by a clock that ticks every few milliseconds
            if found.st_uid == me and max(found.st_mtime, found.st_ctime) >= since - 0.1:
                remove(Path(entry.path))
