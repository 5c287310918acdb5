"""A missing engine or S3 server skips the tests that need it, and fails them where REQUIRE_… says that it must be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import PROJECT
from tests.integration import buckets

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


@pytest.mark.parametrize(("required", "outcome"), [("", "skipped"), ("1", "failed")])
def test_a_missing_s3_server_is_told_like_a_missing_engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, required: str, outcome: str
) -> None:
    from tests.conftest import pytest_runtest_setup

    item = request.node
    item.add_marker(pytest.mark.bucket)
    monkeypatch.setattr(buckets, "WEED", PROJECT / "no-such-program")
    monkeypatch.setenv("REQUIRE_BUCKET", required)

    with pytest.raises(
        pytest.fail.Exception if outcome == "failed" else pytest.skip.Exception, match="no-such-program"
    ):
        pytest_runtest_setup(item)
