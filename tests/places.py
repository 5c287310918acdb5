"""Places and programs that tests can't find on every machine."""

import os
import shutil
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


def knowing_hosts(file: Path) -> list[str]:
    """What a command must begin with to find its hosts in `file` instead of /etc/hosts.

    Only root may mount; elsewhere the test is skipped.
    """
    prefix = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(file)]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs hosts of its own: {tried.stderr.strip()}")
    return prefix


def need_program(name: str) -> str:
    """Where the program is. Missing, it skips the test; with REQUIRE_DOCKER=1, where all is installed, it fails it."""
    found = shutil.which(name)
    if found is None and os.environ.get("REQUIRE_DOCKER"):
        pytest.fail(f"REQUIRE_DOCKER is set, and there is no {name}", pytrace=False)
    if found is None:
        pytest.skip(f"needs {name}")
    return found
