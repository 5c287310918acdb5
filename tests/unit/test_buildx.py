"""What the builder makes of docker's words; tests/integration/test_build.py has the real engine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from apps.errors import BuildFailed, ConfigurationError, EngineFailed, OperationError
from apps.processors.adapters import build_secrets, buildx
from apps.processors.adapters.base import BuildRequest
from apps.processors.adapters.buildx import BuildxBuilder
from apps.processors.reference import AMD64, ProcessorRef

DIGEST = "sha256:" + "1" * 64
INFO: Mapping[str, Any] = {
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "ClientInfo": {"Plugins": [{"Name": "buildx"}]},
}


class Docker:
    """A docker command in a folder of its own, that answers `docker info` and each other call as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says("info", json.dumps(INFO))

    def says(self, verb: str, stdout: str = "", *, stderr: str = "", status: int = 0) -> None:
        for name, text in (("out", stdout), ("err", stderr), ("status", str(status))):
            (self.folder / f"{verb}.{name}").write_text(text)
        (self.folder / "docker").write_text(
            f'#!/bin/sh\necho "$@" >> {self.folder}/calls\n[ "$1" = buildx ] && shift\nf={self.folder}/$1\n'
            '[ -e "$f.status" ] || exit 1\ncat "$f.out"; cat "$f.err" >&2; exit "$(cat "$f.status")"\n'
        )
        (self.folder / "docker").chmod(0o755)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def builder(self, **contexts: str) -> BuildxBuilder:
        return BuildxBuilder({"PATH": f"{self.folder}:/usr/bin:/bin"}, contexts, (), self.folder)


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    return BuildRequest(
        ref=ProcessorRef("llm", "echo", 3),
        root=tmp_path,
        context=tmp_path,
        dockerfile=tmp_path / "Dockerfile",
        repository="ghcr.io/org/llm-echo",
        tag="3-111111111111",
        source_digest=DIGEST,
        platforms=(AMD64,),
        base=None,
        revision=None,
        created_epoch_s=0,
    )


def test_without_docker_the_other_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="docker is not installed") as caught:
        BuildxBuilder({"PATH": str(tmp_path)}, {}, (), tmp_path).base("python:3.13-slim")

    assert "LOCAL_ENGINE=process" in caught.value.hint


def test_without_buildx_its_package_is_named(docker: Docker) -> None:
    docker.says("info", json.dumps({**INFO, "ClientInfo": {"Plugins": []}}))

    with pytest.raises(EngineFailed, match="no buildx") as caught:
        docker.builder().base("python:3.13-slim")

    assert "docker-buildx" in caught.value.hint


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("permission denied while trying to connect to the Docker daemon socket at unix:///var/run", "no permission"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "does not answer"),
    ],
)
def test_an_engine_out_of_reach_is_an_error_of_the_engine(docker: Docker, stderr: str, words: str) -> None:
    docker.says("info", "{}", stderr=stderr, status=1)

    with pytest.raises(EngineFailed, match=words) as caught:
        docker.builder().base("scratch")

    assert caught.value.details == {"said": stderr}


def test_the_engine_is_asked_before_the_registry(docker: Docker) -> None:
    docker.says("info", "{}", status=1)

    with pytest.raises(EngineFailed):
        docker.builder().base("python:3.13-slim")

    assert [call.split()[0] for call in docker.calls()] == ["info"]


def test_an_engine_on_another_machine_is_refused_unasked(docker: Docker) -> None:
    environment = {"PATH": f"{docker.folder}:/usr/bin:/bin", "DOCKER_HOST": "tcp://192.0.2.1:2375"}

    with pytest.raises(ConfigurationError, match="on another machine"):
        BuildxBuilder(environment, {}, (), docker.folder).base("scratch")

    assert not (docker.folder / "calls").exists()


def test_an_engine_that_does_not_come_back_is_an_error_of_the_engine(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buildx, "ANSWER_S", 0.2)
    (docker.folder / "docker").write_text("#!/bin/sh\nexec sleep 60\n")

    with pytest.raises(EngineFailed, match=r"docker info did not answer within 0\.2 s"):
        docker.builder().base("python:3.13-slim")


def test_an_image_that_is_gone_after_its_build_is_not_reported(docker: Docker, request_: BuildRequest) -> None:
    (docker.folder / "docker").write_text(
        f"#!/bin/sh\n[ $1 = info ] && exec cat {docker.folder}/info.out\n"
        "for word; do case $word in --metadata-file=*) "
        f"""echo '{{"containerimage.digest": "{DIGEST}"}}' > "${{word#*=}}"; exit 0;; esac; done; exit 1\n"""
    )

    with pytest.raises(EngineFailed, match=f"no image {DIGEST} after building it"):
        docker.builder().build(request_, progress=lambda line: None)


@pytest.mark.parametrize(
    ("name", "mapped", "asked", "context"),
    [
        ("python:3.13-slim", {}, "python:3.13-slim", f"docker-image://python@{DIGEST}"),
        ("docker.io/library/python", {"python": "docker-image://m/p:1"}, "m/p:1", f"docker-image://m/p@{DIGEST}"),
        ("a/b:1", {"docker.io/a/b:1": "docker-image://h:5000/b"}, "h:5000/b", f"docker-image://h:5000/b@{DIGEST}"),
        ("h:5000/b", {"b": "docker-image://c"}, "h:5000/b", f"docker-image://h:5000/b@{DIGEST}"),
    ],
)
def test_the_base_is_what_the_build_context_or_the_registry_says_pinned(
    docker: Docker, name: str, mapped: dict[str, str], asked: str, context: str
) -> None:
    docker.says("imagetools", json.dumps({"digest": DIGEST}))

    base = docker.builder(**mapped).base(name)

    assert base is not None
    assert (base.name, base.digest, base.context) == (name, DIGEST, context)
    assert f" {asked} " in docker.calls()[-1]


def test_of_a_pulled_base_the_classic_store_tells_the_digest_that_it_was_pulled_by(docker: Docker) -> None:
    docker.says("info", json.dumps({**INFO, "DriverStatus": [["Backing Filesystem", "extfs"]]}))
    docker.says("image", json.dumps({"Id": "sha256:" + "2" * 64, "RepoDigests": [f"python@{DIGEST}"]}))

    base = docker.builder().base("python:3.13-slim")

    assert base is not None
    assert (base.digest, base.context) == (DIGEST, None)


def failure(docker: Docker, request: BuildRequest, said: str) -> OperationError:
    docker.says("build", said, status=1)
    with pytest.raises(OperationError) as caught:
        docker.builder().build(request, progress=lambda line: None)
    return caught.value


def test_a_platform_that_cannot_be_executed_here_has_its_own_hint(docker: Docker, request_: BuildRequest) -> None:
    said = "#5 0.1 exec /bin/sh: exec format error\n------\n > [2/2] RUN true:\n------\nERROR: failed to solve: x\n"

    error = failure(docker, request_, said)

    assert isinstance(error, BuildFailed)
    assert error.message == "llm/echo@3 did not build for linux/amd64 at [2/2] RUN true: x"
    assert "FROM --platform=$BUILDPLATFORM" in error.hint


def test_a_long_step_is_cut_short(docker: Docker, request_: BuildRequest) -> None:
    step = f"RUN true {'&& true ' * 50}"
    process = f'process "/bin/sh -c {step}" did not complete successfully: exit code: 1'

    error = failure(docker, request_, f" > [2/2] {step}:\nERROR: failed to solve: {process}\n")

    assert error.message.endswith("…: exit code: 1")
    assert len(error.message) < 200


def test_an_engine_that_goes_away_during_the_build_is_an_error_of_the_engine(
    docker: Docker, request_: BuildRequest
) -> None:
    assert isinstance(failure(docker, request_, "ERROR: Cannot connect to the Docker daemon at x\n"), EngineFailed)


def test_a_build_that_fails_without_a_word_is_still_a_failed_build(docker: Docker, request_: BuildRequest) -> None:
    error = failure(docker, request_, "")

    assert isinstance(error, BuildFailed)
    assert error.details == {"platform": "linux/amd64", "log": []}


# the values of secrets


def test_a_secrets_values_are_hidden_whole_and_by_line_without_names_and_paths(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text(
        "[global]\n# a comment\nindex-url = https://u:secret@h/s\ncert = /run/secrets/ca\nloneword\n"
    )

    found = build_secrets.values(["id=a,src=conf"], {}, tmp_path)

    assert found[1:] == ["https://u:secret@h/s", "loneword"]
    assert found[0] == (tmp_path / "conf").read_text().strip()


@pytest.mark.parametrize("word", ["id=a,env=NAME", "id=NAME", "type=env,id=a,src=NAME"])
def test_a_secret_of_the_environment_is_hidden(word: str, tmp_path: Path) -> None:
    assert build_secrets.values([word], {"NAME": "opensesame"}, tmp_path) == ["opensesame"]


def test_a_bundle_of_certificates_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("certificate\n" * 10_000)

    assert build_secrets.values(["id=ca,source=ca"], {}, tmp_path) == []


@pytest.mark.parametrize("word", ["src=conf", "id=", "conf"])
def test_a_secret_without_an_id_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="PROCESSOR_BUILD_SECRETS holds"):
        build_secrets.values([word], {}, tmp_path)
