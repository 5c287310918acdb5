"""Fixtures are places: an engine, a checkout, a terminal in it. tests/shell.py has the terminal."""

import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.shell import Shell, copy_checkout

# A shell's background job has Ctrl-C ignored, and hands that on to what it starts: then nothing here could be
# interrupted, and the tests that try would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _engine_failure(host: str) -> str:
    """Why no Docker Engine answers at `host` ("" is where the docker command looks); empty when one does."""
    argv = ["docker", *(["--host", host] if host else []), "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


def _need(what: str, failure: str) -> None:
    if failure and os.environ.get("REQUIRE_DOCKER"):
        pytest.fail(f"REQUIRE_DOCKER is set, and {what} does not answer: {failure}", pytrace=False)
    if failure:
        pytest.skip(f"needs {what}: {failure}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing engine skips what is marked to need it; with REQUIRE_DOCKER=1 it fails it."""
    if item.get_closest_marker("docker"):
        _need("a Docker Engine", _engine_failure(""))
    if item.get_closest_marker("classic"):
        host = os.environ.get("CLASSIC_DOCKER_HOST", "")
        _need("a classic Docker Engine", _engine_failure(host) if host else "CLASSIC_DOCKER_HOST is not set")


@pytest.fixture(scope="session")
def classic_host() -> str:
    """DOCKER_HOST of the engine with the classic image store; for tests marked `classic`."""
    return os.environ["CLASSIC_DOCKER_HOST"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own: registry/ and code/ as committed here, no local state, no git."""
    return copy_checkout(tmp_path / "checkout")


@pytest.fixture
def cli(checkout: Path, tmp_path: Path) -> Iterator[Shell]:
    """A terminal in `checkout`: `cli("localctl", "status", "--json").document`."""
    shell = Shell(checkout, home=tmp_path)
    yield shell
    shell.close()
