"""`processorctl build --check-reproducible` on real engines; and that our own processor is the same on any day."""

import os
import secrets
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_build import git
from tests.places import need_program
from tests.processors import add_processor
from tests.shell import Outcome, Shell

REF = "test/rebuilt@1"
OURS = "llm/litellm@1"
CONTAINERD = pytest.param("containerd", marks=pytest.mark.docker)
CLASSIC = pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic])
WORK = "processors/test/rebuilt/1"


@pytest.fixture(params=[CONTAINERD, CLASSIC])
def store(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each of Docker's image stores in turn, as the environment that leads there."""
    return {"DOCKER_HOST": request.getfixturevalue("classic_host")} if request.param == "classic" else {}


@pytest.fixture
def tiny(cli: Shell) -> Path:
    """The Dockerfile of a processor whose image nobody built yet."""
    add_processor(cli.root, REF, f"word = {secrets.token_hex(8)!r}\ndef run(context): ...\n")
    return cli.root / "code" / WORK / "Dockerfile"


def check(cli: Shell, *options: str, ref: str = REF, env: dict[str, str] | None = None) -> Outcome:
    words = ("processorctl", "build", "--ref", ref, "--platforms", "linux/amd64", "--check-reproducible", *options)
    return cli(*words, env=env, timeout_s=500)


def images(cli: Shell, env: dict[str, str]) -> set[str]:
    return set(docker(cli, env, "image", "ls", "--all", "--quiet", "--filter", f"label=theory.ref={REF}").split())


def docker(cli: Shell, env: dict[str, str], *words: str) -> str:
    argv, environment = ["docker", *words], cli.environment(env)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_clock_in_an_image_is_found_with_its_layer_and_file(cli: Shell, tiny: Path, store: dict[str, str]) -> None:
    tiny.write_text("FROM python:3.13-slim\nRUN echo 1 > /same && touch -d @0 /same && date +%s%N > /x\n")

    done = check(cli, "--json", env=store)

    error = done.document["error"]
    assert (done.status, error["code"]) == (1, "ERR_BUILD")
    assert error["message"].startswith("test/rebuilt@1 is not reproducible: two builds differ in /")
    [image] = error["details"]["images"]
    assert image["platform"] == "linux/amd64"
    assert image["first"] != image["second"]
    [layer] = image["layers"]
    assert layer["index"] == 1
    assert "date +%s%N > /x" in layer["created_by"]
    assert {each["path"]: each["differs"] for each in layer["files"]}["x"] in (["bytes"], ["bytes", "mtime"])
    assert "same" not in {each["path"] for each in layer["files"]}


@pytest.mark.docker
def test_for_people_the_files_are_listed_below_the_step(cli: Shell, tiny: Path) -> None:
    tiny.write_text("FROM python:3.13-slim\nRUN date +%s%N > /x && touch -d @0 /x\n")

    done = check(cli, "-q")

    assert done.status == 1
    assert (
        "linux/amd64, layer 1: RUN /bin/sh -c date +%s%N > /x && touch -d @0 /x # buildkit differs in\n" in done.stdout
    )
    assert "\n  /x (bytes)\n" in done.stdout
    assert "ERR_BUILD: test/rebuilt@1 is not reproducible" in done.stderr


def test_what_differs_between_two_clones_is_found_in_one(cli: Shell, tiny: Path, store: dict[str, str]) -> None:
    tiny.write_text(f"FROM python:3.13-slim\nCOPY {WORK}/handler.py /\n")

    [image] = check(cli, "--json", env=store).document["error"]["details"]["images"]

    assert [layer["files"] for layer in image["layers"]] == [[{"path": "handler.py", "differs": ["mode", "mtime"]}]]


def test_an_image_that_agrees_is_said_to_and_nothing_is_kept(cli: Shell, tiny: Path, store: dict[str, str]) -> None:
    text = f"FROM python:3.13-slim AS made\nCOPY {WORK}/handler.py /out/\n"
    tiny.write_text(f"{text}RUN chmod -R 755 /out && touch -d @0 /out /out/*\nFROM scratch\nCOPY --from=made /out/ /\n")
    built = cli("processorctl", "build", "--ref", REF, "--platforms", "linux/amd64", "--json", env=store, timeout_s=300)
    [image] = built.document["images"]
    before = (cli.root / "code/.theory/builds.json").read_bytes(), images(cli, store)

    document = check(cli, "--json", env=store).document

    after = (cli.root / "code/.theory/builds.json").read_bytes(), images(cli, store)
    docker(cli, store, "image", "rm", "--force", image["image_id"])
    agreed = {"platform": "linux/amd64", "digest": image["digest"], "image_id": image["image_id"]}
    assert (document["reproducible"], document["images"]) == (True, [agreed])
    assert (document["ref"], document["source_digest"]) == (REF, built.document["source_digest"])
    assert after == before


def test_images_that_disagree_leave_nothing_in_the_engine(cli: Shell, tiny: Path, store: dict[str, str]) -> None:
    tiny.write_text("FROM python:3.13-slim\nRUN date +%s%N > /x\n")
    before = images(cli, store)

    assert check(cli, "--json", env=store).status == 1

    assert images(cli, store) == before
    assert not (cli.root / "code/.theory/builds.json").exists()


def test_the_process_engine_has_no_image_to_compare(cli: Shell) -> None:
    error = check(cli, "--json", ref=OURS, env={"LOCAL_ENGINE": "process"}).document["error"]

    assert (error["code"], error["hint"]) == ("ERR_CONFIG", "LOCAL_ENGINE=docker")


@pytest.mark.docker
def test_a_step_that_fails_is_a_failed_build(cli: Shell, tiny: Path) -> None:
    tiny.write_text("FROM python:3.13-slim\nRUN exit 7\n")

    error = check(cli, "--json").document["error"]

    assert error["code"] == "ERR_BUILD"
    assert error["message"].endswith("exit 7: exit code: 7")


# our own processor


@pytest.mark.docker
@pytest.mark.parametrize("ref", [OURS, "image/thumbnail@1"])
def test_our_own_processors_are_reproducible(cli: Shell, ref: str) -> None:
    done = check(cli, "--json", ref=ref)

    assert done.document["reproducible"] is True, done


MOVED = """
COPY --from=faketime libfaketime.so.1 /
ENV LD_PRELOAD=/libfaketime.so.1 FAKETIME=+1d
RUN [ $(date +%F) = {tomorrow} ] && [ $(python -c 'import datetime; print(datetime.date.today())') = {tomorrow} ]
"""


@pytest.fixture
def faketime() -> Path:
    """The folder of libfaketime.so.1."""
    need_program("faketime")
    [found] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    return found.parent


@pytest.mark.docker
def test_two_clones_of_our_own_processor_agree_with_the_clock_moved_by_a_day(
    checkout: Path, tmp_path: Path, faketime: Path
) -> None:
    """In the second, every program of the build sees tomorrow. The engine's own clock can't be moved for a test: it is
    some seconds later, and whatever of it got into the image would differ by that.
    """
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "x")
    clone = tmp_path / "another" / "place"
    git(checkout, "clone", "--quiet", str(checkout), str(clone))
    file = clone / "code/processors/llm/litellm/1/Dockerfile"
    stage = "FROM --platform=$BUILDPLATFORM python:3.13-slim AS "
    text = file.read_text()
    moved = MOVED.format(tomorrow=(datetime.now(UTC) + timedelta(days=1)).date())
    assert text.count(stage) == 2
    for name in ("dependencies", "application"):
        text = text.replace(f"{stage}{name}\n", f"{stage}{name}{moved}")
    file.write_text(text)

    here = build(Shell(checkout, home=tmp_path))
    contexts = f"{os.environ.get('PROCESSOR_BUILD_CONTEXTS', '')} faketime={faketime}"
    there = build(Shell(clone, home=tmp_path, variables={"PROCESSOR_BUILD_CONTEXTS": contexts}))

    assert here["source_digest"] != there["source_digest"]
    assert here["images"] == there["images"]


def build(shell: Shell) -> dict[str, Any]:
    done = shell("processorctl", "build", "--ref", OURS, "--platforms", "linux/amd64", "--json", "-q", timeout_s=500)
    assert done.status == 0, done
    return done.document
