"""A missing engine skips the tests that need it, and fails them where REQUIRE_DOCKER says that it must be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import PROJECT

MARKED = """
import pytest

@pytest.mark.{marker}
def test_of_an_engine() -> None:
    pass
"""


def _run(tmp_path: Path, marker: str, **variables: str) -> subprocess.CompletedProcess[str]:
    test = tmp_path / "test_marked.py"
    test.write_text(MARKED.format(marker=marker))
    nowhere = f"unix://{tmp_path}/no.sock"
    argv = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "--rootdir=.", "-p", "tests.conftest", str(test)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("REQUIRE_", "DOCKER_"))}
    env |= {"DOCKER_HOST": nowhere, "CLASSIC_DOCKER_HOST": nowhere, **variables}
    return subprocess.run([*argv, "-p", "no:cacheprovider"], cwd=PROJECT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("marker", ["docker", "classic"])
def test_without_an_engine_a_test_that_needs_it_is_skipped_and_says_why(tmp_path: Path, marker: str) -> None:
    done = _run(tmp_path, marker)

    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "Docker Engine: " in done.stdout


@pytest.mark.parametrize("marker", ["docker", "classic"])
def test_where_docker_is_required_a_missing_engine_fails_the_test(tmp_path: Path, marker: str) -> None:
    done = _run(tmp_path, marker, REQUIRE_DOCKER="1")

    assert done.returncode == 1, done.stdout
    assert "REQUIRE_DOCKER is set" in done.stdout
