"""Places that tests can't find on every machine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def small_disk(path: Path, *, size: str) -> Iterator[Path]:
    """A tmpfs mounted at `path` (`size` and further options as mount takes them) until the generator ends.

    Only root may mount; elsewhere the test is skipped.
    """
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
