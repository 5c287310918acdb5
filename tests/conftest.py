"""Fixtures are places: an engine, a checkout, a terminal in it. tests/shell.py has the terminal."""

import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from tests.integration import bucket_canary, buckets
from tests.shell import Shell, copy_checkout

# A shell's background job has Ctrl-C ignored, and hands that on to what it starts: then nothing here could be
# interrupted, and the tests that try would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test is timed: what an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@cache
def _engine_failure(host: str) -> str:
    """Why no Docker Engine answers at `host` ("" is where the docker command looks); empty when one does."""
    argv = ["docker", *(["--host", host] if host else []), "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


def _need(what: str, failure: str, required_by: str = "REQUIRE_DOCKER") -> None:
    if failure and os.environ.get(required_by):
        pytest.fail(f"{required_by} is set, and {what} does not answer: {failure}", pytrace=False)
    if failure:
        pytest.skip(f"needs {what}: {failure}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing engine or S3 server skips what is marked to need it; REQUIRE_DOCKER=1 and REQUIRE_BUCKET=1 fail it."""
    if item.get_closest_marker("docker"):
        _need("a Docker Engine", _engine_failure(""))
    if item.get_closest_marker("classic"):
        host = os.environ.get("CLASSIC_DOCKER_HOST", "")
        _need("a classic Docker Engine", _engine_failure(host) if host else "CLASSIC_DOCKER_HOST is not set")
    if item.get_closest_marker("bucket"):
        _need("an S3 server", buckets.missing(), "REQUIRE_BUCKET")


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[buckets.BucketServer]:
    """An S3 server that all tests marked `bucket` share, proven to refuse misuse. To kill one, start another."""
    with buckets.bucket_server(tmp_path_factory.mktemp("bucket-server")) as server:
        canary = server.make_bucket()
        assert bucket_canary.answers(canary) == bucket_canary.REFUSALS, "this S3 server is too lax to test with"
        canary.remove()
        yield server


@pytest.fixture
def bucket(bucket_server: buckets.BucketServer) -> Iterator[buckets.Bucket]:
    """A new bucket on the shared server; for tests marked `bucket`."""
    made = bucket_server.make_bucket()
    yield made
    made.remove()


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
