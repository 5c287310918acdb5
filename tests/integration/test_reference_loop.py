"""The examples of the CLI reference as they stand there: on the process engine, on Docker, on its classic store."""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processors import runtime_lock
from tests.shell import Outcome, Shell, copy_checkout
from tests.typist import ARCHITECTURE, Typist

REF = "llm/litellm@1"
FOREIGN = {"amd64": "arm64", "arm64": "amd64"}[ARCHITECTURE]

BUILD = "processorctl build --ref llm/litellm@1 --platforms linux/amd64"
BUILD_BOTH = r"""
python manage.py processorctl build \
  --ref llm/litellm@1 \
  --platforms linux/amd64,linux/arm64 \
  --json
"""
START = "OPENAI_API_KEY=$OPENAI_API_KEY python manage.py localctl start --ref llm/litellm@1"
RUN = r"""
python manage.py localctl run \
  --ref llm/litellm@1 \
  --mode mock \
  --write-prefix "/artifacts/outputs/test/{execution_id}/" \
  --inputs-json '{"schema":"v1","params":{"messages":[{"role":"user","content":"test"}]}}' \
  --json
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A checkout with llm/litellm@1 built and started by the reference's first two steps."""

    engine: str
    typed: Typist

    @property
    def shell(self) -> Shell:
        return self.typed.shell

    @property
    def artifacts(self) -> Path:
        return self.shell.root / "code/.theory/artifacts"

    def status(self) -> dict[str, Any]:
        (row,) = self.shell("localctl", "status", "--json").document["containers"]
        return dict(row)

    def response(self, envelope: dict[str, Any]) -> bytes:
        (path,) = (output["path"] for output in envelope["outputs"] if output["path"].endswith("response.txt"))
        return (self.artifacts / path.lstrip("/")).read_bytes()


PROCESS = "process"
DOCKER = pytest.param("docker", marks=pytest.mark.docker)
CLASSIC = pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic])
only_docker = pytest.mark.parametrize("place", [DOCKER], indirect=True)


@pytest.fixture(scope="module", params=[PROCESS, DOCKER, CLASSIC])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    root = copy_checkout(folder / "checkout")
    repository = f"localhost:5000/test-loop-{secrets.token_hex(4)}"
    variables = {"PROCESSOR_REPOSITORY_PREFIX": repository}
    if request.param == "process":
        variables |= {"LOCAL_ENGINE": "process"}
        # Its mock needs no LiteLLM, which takes half a minute to install.
        (root / "code/processors/llm/litellm/1/requirements.lock").write_text(runtime_lock())
    if request.param == "classic":
        variables |= {"DOCKER_HOST": request.getfixturevalue("classic_host")}
    shell = Shell(root, home=folder, variables=variables)
    typist = Typist(shell)
    try:
        typist(BUILD)
        typist(START)
        yield Place("process" if request.param == "process" else "docker", typist)
    finally:
        shell.close()
        if request.param != "process":
            remove_images(shell, repository)


def docker(shell: Shell, *words: str) -> str:
    done = subprocess.run(["docker", *words], env=shell.environment(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def remove_images(shell: Shell, repository: str) -> None:
    # By name: equal builds of other checkouts have the same id.
    listed = docker(shell, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{repository}/llm-litellm")
    if listed:
        docker(shell, "image", "rm", *listed.split())


# the examples


def test_a_second_start_reuses_the_container(place: Place) -> None:
    done = place.typed("localctl start --ref llm/litellm@1\n")

    assert done.stdout.startswith("llm/litellm@1 runs already on http://127.0.0.1:")


def test_run_with_json_prints_the_envelope(place: Place) -> None:
    envelope = json.loads(place.typed("localctl run --ref llm/litellm@1 --mode mock --json").stdout)

    assert envelope["status"] == "success"
    folder = f"/artifacts/outputs/llm-litellm-v1/{envelope['execution_id']}"
    paths = [output["path"] for output in envelope["outputs"]]
    assert paths == [f"{folder}/text/response.txt", f"{folder}/usage.json"]
    assert envelope["meta"]["engine"] == place.engine
    assert envelope["meta"]["secrets_present"] == ["OPENAI_API_KEY"]
    assert envelope["meta"]["image_digest"] == place.status()["image_digest"]


def test_run_with_a_write_prefix_and_inputs_writes_there(place: Place) -> None:
    envelope = json.loads(place.typed(RUN).stdout)

    assert envelope["index_path"] == f"/artifacts/outputs/test/{envelope['execution_id']}/outputs.json"
    assert (place.artifacts / envelope["index_path"].lstrip("/")).exists()


def test_the_three_ways_to_give_inputs_are_the_same(place: Place) -> None:
    ways = (
        """localctl run --ref llm/litellm@1 --inputs-json '{"schema":"v1","params":{...}}'""",
        "localctl run --ref llm/litellm@1 --inputs-file inputs.json",
        "cat inputs.json | localctl run --ref llm/litellm@1 --inputs -",
    )

    said = [place.typed(way).stdout.partition("\n")[0] for way in ways]

    assert len(set(said)) == 1
    assert said[0].endswith(".")


def test_run_takes_a_platform(place: Place) -> None:
    done = place.typed("localctl run --ref llm/litellm@1 --platform amd64 --mode mock --json")

    assert json.loads(done.stdout)["status"] == "success"


def test_run_streams_tokens_and_events(place: Place) -> None:
    words = ("localctl", "run", "--ref", REF, "--stream")

    text = place.shell(*words)
    *events, envelope = place.shell(*words, "--json").documents

    tokens = "".join(event["data"]["text"] for event in events if event["event"] == "token")
    assert text.stdout.startswith(f"{tokens}\n")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert place.response(envelope).decode() == tokens


def test_status_lists_the_container(place: Place) -> None:
    lines = place.typed("python manage.py localctl status").stdout.splitlines()

    assert lines[0].split() == ["REF", "ENGINE", "STATE", "HEALTH", "PORT", "SOURCE", "IMAGE", "DRIFT"]
    row = next(line.split() for line in lines if line.startswith(f"{REF} "))
    assert row[1] == place.engine
    assert row[3:5] == ["running", "ready"]
    assert row[-1] == "-"


@pytest.mark.parametrize("place", [DOCKER, CLASSIC], indirect=True)
def test_start_on_another_engine_is_refused_with_the_line_that_stops_this_one(place: Place) -> None:
    env = {"LOCAL_ENGINE": "process", "OPENAI_API_KEY": "any"}

    done = place.shell("localctl", "start", "--ref", REF, env=env)

    assert done.status == 78
    assert done.stderr == (
        f"ERR_CONFIG: {REF} runs on the docker engine\nhint: stop it first: localctl stop --ref {REF}\n"
    )


@only_docker
def test_two_checkouts_on_one_engine_do_not_meet(place: Place, tmp_path: Path) -> None:
    here = place.status()
    variables = {**place.shell.variables, "OPENAI_API_KEY": "any"}
    shell = Shell(copy_checkout(tmp_path / "checkout"), home=tmp_path, variables=variables)
    there = Place("docker", Typist(shell))
    try:
        for words in (("processorctl", "build", "--platforms", ARCHITECTURE), ("localctl", "start")):
            assert shell(*words, "--ref", REF, timeout_s=300).status == 0

        other = there.status()
        stopped = shell("localctl", "stop", "--all", "--json").document
    finally:
        shell.close()

    assert (other["image_digest"], other["health"]) == (here["image_digest"], "ready")
    assert not {other["id"], other["name"], other["port"]} & {here["id"], here["name"], here["port"]}
    assert stopped["containers"] == [{"ref": REF, "stopped": True}]
    assert place.status() == here


# both platforms; from here on the container is no more what the examples started


@only_docker
def test_both_platforms_are_built_and_the_foreign_one_runs_by_emulation(place: Place) -> None:
    built = json.loads(place.typed(BUILD_BOTH).stdout)
    own = place.response(json.loads(place.typed(RUN).stdout))
    images = {image["platform"]: image for image in built["images"]}
    assert images.keys() == {"linux/amd64", "linux/arm64"}
    assert_is_a_good_image(place.shell, images[f"linux/{FOREIGN}"]["digest"], FOREIGN)

    started = start_by_emulation(place.shell)
    envelope = json.loads(place.typed(RUN).stdout)
    refused = place.shell("localctl", "run", "--ref", REF, "--platform", ARCHITECTURE, "--json")

    assert started["image"] == {
        "digest": images[f"linux/{FOREIGN}"]["digest"],
        "source": "build",
        "platform": f"linux/{FOREIGN}",
    }
    assert envelope["meta"]["image_digest"] == started["image"]["digest"]
    assert place.response(envelope) == own
    assert (refused.status, refused.document["error"]["code"]) == (3, "ERR_DRIFT")


def start_by_emulation(shell: Shell) -> dict[str, Any]:
    words = ("localctl", "start", "--ref", REF, "--platform", FOREIGN, "--timeout", "300", "--json")
    done: Outcome = shell(*words, env={"OPENAI_API_KEY": "any"}, timeout_s=400)
    if "exec format error" in done.stdout and not os.environ.get("REQUIRE_DOCKER"):
        pytest.skip(f"no emulation of {FOREIGN} here")
    assert done.status == 0, done
    return done.document


def assert_is_a_good_image(shell: Shell, image: str, architecture: str) -> None:
    (inspected,) = json.loads(docker(shell, "image", "inspect", image))
    config = inspected["Config"]
    assert (inspected["Os"], inspected["Architecture"]) == ("linux", architecture)
    assert config["User"] == "65532:65532"
    assert config["Cmd"] == ["python", "-m", "processor_runtime"]
    labels = config["Labels"]
    assert labels["theory.ref"] == REF
    assert labels["org.opencontainers.image.base.name"] == "python:3.13-slim"
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")


# the end


def test_logs_follow_until_the_container_is_stopped(place: Place) -> None:
    follow = place.typed.spawn("python manage.py localctl logs --ref llm/litellm@1 --follow")
    assert follow.stderr
    first = follow.stderr.readline()

    done = place.typed("python manage.py localctl stop --ref llm/litellm@1")

    with follow:
        rest = follow.stderr.read()
    assert done.stdout == f"{REF} is stopped\n"
    assert "listening on" in first
    assert rest.endswith(": stopped\n")
    if place.engine == "docker":  # elsewhere load() misses LiteLLM
        assert "Traceback" not in rest
    assert follow.returncode == 0
    kept = place.shell("localctl", "logs", "--ref", REF)
    assert kept.stderr == first + rest
