"""docs/ci/: the three lanes as plain shell, in clones of a repository that share nothing but it and a registry."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.modal_services import ModalService
from tests.integration.registries import Registry, registry
from tests.integration.test_build import git
from tests.processors import add_processor
from tests.shell import PROJECT, Outcome, Shell, copy_checkout

LANES = PROJECT / "docs" / "ci" / "lanes.sh"
REF = "test/lane@1"
HANDLER = """
    def run(context):
        context.token("as written")
        context.write("said.txt", "as written")
"""
pytestmark = pytest.mark.docker


@dataclass
class Origin:
    """The repository that all jobs clone, and where their images go."""

    repository: Path
    folder: Path
    registry: Registry

    def job(self, name: str) -> "Job":
        """A machine of its own: a fresh clone, a fresh home."""
        root = self.folder / name / "checkout"
        git(self.folder, "clone", "--quiet", str(self.repository), str(root))
        git(root, "config", "user.name", "x")
        git(root, "config", "user.email", "x@example.org")
        return Job(Shell(root, home=root.parent), self.registry)

    def pins(self) -> dict[str, str | None]:
        text = git(self.repository, "show", f"main:registry/{REF.replace('@', '/')}/registry.yaml")
        pins: dict[str, str | None] = json.loads(text)["image"]["platforms"]
        return pins

    def commits(self) -> list[str]:
        return git(self.repository, "log", "--format=%s", "main").splitlines()


@dataclass
class Job:
    shell: Shell
    registry: Registry

    def __call__(self, *words: str, **more: str) -> Outcome:
        """`sh docs/ci/lanes.sh WORDS…`, `more` in the environment."""
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PROCESSOR_REPOSITORY_PREFIX": self.registry.repository("org"),
            "GIT_BRANCH": "main",
            "GIT_USER": "x",
            **more,
        }
        environment = self.shell.environment(own)
        del environment["THEORY_ROOT"]  # in CI the checkout is where one stands
        done = subprocess.run(
            ["sh", str(LANES), *words],
            cwd=self.shell.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    folder = tmp_path_factory.mktemp("ci")
    work = copy_checkout(folder / "work")
    add_processor(work, REF, HANDLER, outputs=("said.txt",))
    file = work / "registry" / REF.replace("@", "/") / "registry.yaml"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))  # a line for each pin
    (work / ".gitignore").write_text("/code/.theory/\n")
    git(work, "init", "--quiet")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "first")
    git(folder, "clone", "--quiet", "--bare", str(work), str(folder / "origin.git"))
    with registry() as place:
        made = Origin(folder / "origin.git", folder, place)
        yield made
        _remove_images(place.repository("org"))


def _remove_images(prefix: str) -> None:
    argv = ["docker", "image", "ls", "--quiet", "--filter", f"reference={prefix}/*"]
    found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    if found:
        subprocess.run(["docker", "image", "rm", "--force", *set(found)], capture_output=True, check=True)


def test_a_pull_request_builds_starts_and_runs_in_mock_and_leaves_nothing_running(origin: Origin) -> None:
    job = origin.job("pull-request")

    done = job("pull_request", REF)

    assert done.status == 0, done
    assert '"status":"success"' in done.stdout
    assert '"mode":"mock"' in done.stdout
    assert job.shell("localctl", "status", "--json").document["containers"] == []
    assert origin.registry.tags("org/lane") == set()


def test_a_pull_request_with_a_broken_handler_fails_and_leaves_nothing_running(origin: Origin) -> None:
    job = origin.job("broken")
    (job.shell.root / "code/processors" / REF.replace("@", "/") / "handler.py").write_text("def run(context): 1 / 0\n")

    done = job("pull_request", REF)

    assert done.status == 1
    assert "ERR_RUNTIME" in done.stdout
    assert job.shell("localctl", "status", "--json").document["containers"] == []


def test_the_main_line_pushes_pins_and_commits_and_what_it_pinned_can_be_deployed(
    origin: Origin, modal_service: ModalService
) -> None:
    done = origin.job("main-line")("main_line", REF)

    assert done.status == 0, done
    assert origin.commits() == [f"Pin {REF}", "first"]
    pins = origin.pins()
    assert sorted(pins) == ["amd64", "arm64"]
    assert all((pin or "").startswith(origin.registry.repository("org/lane@sha256:")) for pin in pins.values())

    # another job, which shares no folder with the first
    deployed = origin.job("deploy")("deploy", REF, DEPLOY_TO="staging", **modal_service.environment)
    assert deployed.status == 0, deployed
    assert f"test-lane-v1 is {str(pins['amd64']).partition('@')[2]}" in deployed.stdout

    # and once more: the same images, nothing to send, nothing to commit
    again = origin.job("again")("main_line", REF)

    assert (again.status, origin.pins(), len(origin.commits())) == (0, pins, 2), again
    assert "the pins are as they were" in again.stderr


def test_what_is_pinned_and_not_in_the_registry_is_not_deployed(origin: Origin) -> None:
    job = origin.job("absent")
    image = f"{origin.registry.repository('org/lane')}@sha256:{'0' * 64}"
    pinned = job.shell("processorctl", "pin", "--ref", REF, "--platform", "amd64", "--oci", image)
    assert pinned.status == 0, pinned

    done = job("deploy", REF)

    assert done.status == 3
    assert "ERR_DRIFT" in done.stderr


def test_without_refs_a_lane_takes_all_processors(origin: Origin) -> None:
    done = origin.job("all")("deploy")

    assert done.status == 0, done
    assert "llm/litellm@1" in done.stdout
    assert REF in done.stdout


def test_an_unknown_lane_is_a_wrong_call(origin: Origin) -> None:
    assert origin.job("unknown")("nightly").status == 2
