"""Builds on a real engine: what the images are, and that equal sources give equal bytes."""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from apps.errors import BuildFailed, ConfigurationError, EngineFailed, ImageRegistryFailed
from apps.processors import dockerfile, sources
from apps.processors.adapters.base import BuildRequest, BuiltImage, Progress
from apps.processors.adapters.buildx import BuildxBuilder
from apps.processors.reference import AMD64, PLATFORMS, Platform, ProcessorRef
from apps.processors.sources import Ignore
from apps.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
REF = ProcessorRef("test", "tiny", 1)
DOCKERFILE = """\
FROM --platform=$BUILDPLATFORM python:3.13-slim AS made
ARG SOURCE_DATE_EPOCH=0
COPY handler.py /out/app/
RUN chmod -R u=rwX,go=rX /out && find /out -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
FROM python:3.13-slim
COPY --from=made /out/ /
USER 65532:65532
CMD ["python", "/app/handler.py"]
"""
COMMITTED = {
    **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_COMMITTER_DATE": "1700000000 +0200",
}


class Engine:
    """A Docker Engine, and the tiny processor's builds on it."""

    def __init__(self, repository: str, host: str | None) -> None:
        self.repository = repository
        self.environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}

    def docker(self, *words: str) -> str:
        done = subprocess.run(["docker", *words], env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def inspect(self, image: str) -> dict[str, Any]:
        return dict(json.loads(self.docker("image", "inspect", "--format", "{{json .}}", image)))

    def builder(
        self, *, contexts: Mapping[str, str] | None = None, secrets: tuple[str, ...] = (), **variables: str
    ) -> BuildxBuilder:
        environment = self.environment | variables
        given = Settings.read(environment).build_contexts
        return BuildxBuilder(environment, given if contexts is None else contexts, secrets, PROJECT)

    def build(
        self,
        root: Path,
        builder: BuildxBuilder | None = None,
        *,
        platforms: tuple[Platform, ...] = (AMD64,),
        progress: Progress = lambda line: None,
    ) -> list[BuiltImage]:
        builder = builder or self.builder()
        path = root / "Dockerfile"
        base = builder.base(dockerfile.base_name(path))
        named = (base.name, base.digest) if base else None
        source = sources.read(root, root, path, base=named, environment=self.environment)
        request = BuildRequest(
            ref=REF,
            root=root,
            context=root,
            dockerfile=path,
            repository=self.repository,
            tag=f"1-{source.digest[7:19]}",
            source_digest=source.digest,
            platforms=platforms,
            base=base,
            revision=source.revision,
            created_epoch_s=source.created_epoch_s,
        )
        return builder.build(request, progress=progress)


CONTAINERD = pytest.param("containerd", marks=pytest.mark.docker)
CLASSIC = pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic])


@pytest.fixture(params=[CONTAINERD, CLASSIC])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each of Docker's image stores in turn; a test's images are removed at its end."""
    host = request.getfixturevalue("classic_host") if request.param == "classic" else None
    made = Engine(f"localhost:5000/test-build/{secrets.token_hex(4)}", host)
    yield made
    if found := made.docker("image", "ls", "--quiet", made.repository).split():
        made.docker("image", "rm", "--force", *set(found))


only_containerd = pytest.mark.parametrize("engine", [CONTAINERD], indirect=True)
only_classic = pytest.mark.parametrize("engine", [CLASSIC], indirect=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A committed tiny processor of its own, so that nothing of it was built before."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "Dockerfile").write_text(DOCKERFILE)
    (root / ".dockerignore").write_text("*\n!handler.py\n")
    (root / "handler.py").write_text(f"print({secrets.token_hex(8)!r})\n")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "x")
    return root


def git(root: Path, *words: str) -> str:
    argv = ["git", "-C", str(root), "-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false", *words]
    done = subprocess.run(argv, env=os.environ | COMMITTED, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def no_cache(tmp_path: Path) -> str:
    """A PATH whose docker builds without looking at what it built before."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$1 $2" in "buildx build") shift 2; set -- buildx build --no-cache "$@";; esac\n'
        f'exec {shutil.which("docker")} "$@"\n'
    )
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


# equal sources, equal bytes


def test_two_clones_give_the_same_images_for_both_platforms_though_built_anew(
    engine: Engine, root: Path, tmp_path: Path, no_cache: str
) -> None:
    clone = tmp_path / "another" / "place"
    git(root, "clone", "--quiet", str(root), str(clone))
    os.utime(clone / "handler.py", (0, 0))
    (clone / "handler.py").chmod(0o600)

    here = engine.build(root, engine.builder(PATH=no_cache), platforms=PLATFORMS)
    there = engine.build(clone, engine.builder(PATH=no_cache), platforms=PLATFORMS)

    assert [each.platform for each in here] == list(PLATFORMS)
    assert here[0].image_id != here[1].image_id
    assert there == here


def test_an_unchanged_build_gives_the_same_image(engine: Engine, root: Path) -> None:
    assert engine.build(root) == engine.build(root)


def test_a_change_of_one_line_gives_another_image(engine: Engine, root: Path) -> None:
    [before] = engine.build(root)

    with (root / "handler.py").open("a") as file:
        file.write("print(2)\n")
    [after] = engine.build(root)

    assert after.image_id != before.image_id


def test_a_file_of_another_checkout_with_the_same_size_and_time_is_not_taken_for_ours(
    engine: Engine, root: Path, tmp_path: Path
) -> None:
    """BuildKit would: the folders have one name, and of the file nothing differs but the bytes."""
    other = tmp_path / "beside" / root.name
    shutil.copytree(root, other)
    (other / "handler.py").write_text("".join(reversed((root / "handler.py").read_text())))
    for place in (root, other):
        os.utime(place / "handler.py", (0, 0))

    [ours], [theirs] = engine.build(root), engine.build(other)

    assert ours.image_id != theirs.image_id


# what the images are


def test_an_image_says_what_it_is_made_from_and_nothing_else(engine: Engine, root: Path) -> None:
    base = engine.builder().base("python:3.13-slim")
    assert base is not None

    for image in engine.build(root, platforms=PLATFORMS):
        inspected = engine.inspect(image.image)
        assert inspected["Architecture"] == image.platform.architecture
        assert inspected["Created"].startswith("2023-11-14T22:13:20")
        assert inspected["Config"]["Labels"] == {
            "theory.ref": "test/tiny@1",
            "org.opencontainers.image.title": "test-tiny-v1",
            "org.opencontainers.image.version": "1",
            "org.opencontainers.image.base.name": "python:3.13-slim",
            "org.opencontainers.image.base.digest": base.digest,
            "org.opencontainers.image.revision": git(root, "rev-parse", "HEAD"),
            "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
        }


def test_the_base_that_is_named_is_the_base_that_is_used(engine: Engine, root: Path) -> None:
    base = engine.builder().base("python:3.13-slim")
    assert base is not None
    assert base.context is not None
    reference = base.context.removeprefix("docker-image://")
    engine.docker("pull", "--quiet", "--platform", "linux/amd64", reference)

    [image] = engine.build(root)

    layers = engine.inspect(reference)["RootFS"]["Layers"]
    assert engine.inspect(image.image)["RootFS"]["Layers"][: len(layers)] == layers


@only_containerd
def test_the_digest_is_the_one_that_a_registry_shows_of_an_oci_manifest(engine: Engine, root: Path) -> None:
    for image in engine.build(root, platforms=PLATFORMS):
        [tag] = engine.inspect(image.image)["RepoTags"]
        assert tag == f"{engine.repository}:{tag.rpartition(':')[2]}"
        assert tag.endswith(f"-{image.platform.architecture}")
        engine.docker("push", "--quiet", tag)

        raw = engine.docker("buildx", "imagetools", "inspect", "--raw", tag)

        assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == image.digest == image.image_id
        manifest = json.loads(raw)
        parts = [manifest, manifest["config"], *manifest["layers"]]
        assert all(part["mediaType"].startswith("application/vnd.oci.image.") for part in parts)
        stored = sum(part["size"] for part in parts[1:]) + len(raw)
        assert image.size_bytes == stored


@only_classic
def test_the_classic_store_knows_no_digest_but_an_image_id(engine: Engine, root: Path) -> None:
    for image in engine.build(root, platforms=PLATFORMS):
        assert image.digest is None
        assert image.image == image.image_id == engine.inspect(image.image_id)["Id"]


def test_the_image_runs_as_built(engine: Engine, root: Path) -> None:
    [image] = engine.build(root)

    said = engine.docker("run", "--rm", "--network", "none", image.image)

    assert f"print({said!r})\n" == (root / "handler.py").read_text()


@only_containerd
def test_an_image_from_scratch_names_no_base(engine: Engine, root: Path) -> None:
    (root / "Dockerfile").write_text("FROM scratch\nCOPY handler.py /\n")

    [image] = engine.build(root)

    assert not [name for name in engine.inspect(image.image)["Config"]["Labels"] if ".base." in name]


# what the build may read


@only_containerd
def test_the_source_is_what_buildkit_is_sent(engine: Engine, root: Path) -> None:
    """One odd tree and one odd .dockerignore, against BuildKit's own reading of both."""
    names = [
        *("a/b/c.py", "a/b/d.txt", "a/e.py", "f.py", "g/h/i/j.py", "g/h/k", "g/.hidden", "l/m/deep/n", "l/o", "p q.py"),
        *("r/döör.py", "s[1].py", "t/*.py", "u/x.pyc", "u/keep.pyc", "v/w", "v.w", "vxw", "y/z/", "deep/1"),
    ]
    rules = ["# no rule", "*", "!a", "a/b/*.txt", "!g/h", "**/i", "!**/deep", "!/r/", "!s\\[1\\].py", "! t/**"]
    rules += ["!u", "**/*.pyc", "!**/keep.pyc", "!v?w", "v.w", "!y", "!Dockerfile"]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("")
    (root / "a" / "link").symlink_to("../f.py")
    (root / "a" / "linked").symlink_to("b")
    (root / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (root / ".dockerignore").write_text("\n".join(rules))

    argv = ["docker", "buildx", "build", "--builder=default", "--quiet", "--output=type=tar,dest=-", str(root)]
    sent = subprocess.run(argv, env=engine.environment, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(sent)) as tar:
        expected = sorted(entry.name for entry in tar if not entry.isdir())

    assert sorted(sources.files(root, Ignore.of(root, root / "Dockerfile"))) == expected
    assert {"a/link", "g/h/k", "l/m/deep/n", "r/döör.py", "t/*.py", "u/keep.pyc", "v/w"} - set(expected) == {"v/w"}


# the base image


@only_containerd
def test_a_base_whose_registry_does_not_answer_is_an_error_that_names_the_way_around(engine: Engine) -> None:
    with pytest.raises(ImageRegistryFailed, match="base image localhost:1/org/base:2 can't be resolved") as caught:
        engine.builder().base("localhost:1/org/base:2")

    assert caught.value.hint.startswith(
        "behind a mirror: PROCESSOR_BUILD_CONTEXTS=localhost:1/org/base:2=docker-image://"
    )


@only_containerd
def test_a_base_that_its_registry_does_not_have_is_a_failed_build(engine: Engine) -> None:
    with pytest.raises(BuildFailed, match="no base image localhost:5000/test-build/absent:1"):
        engine.builder().base("localhost:5000/test-build/absent:1")


@only_containerd
def test_a_base_that_is_pinned_already_is_not_looked_up(engine: Engine) -> None:
    base = engine.builder().base(f"localhost:1/org/base:2@sha256:{'0' * 64}")

    assert base is not None
    assert (base.digest, base.context) == (f"sha256:{'0' * 64}", None)


@only_containerd
def test_a_build_context_for_the_base_must_be_an_image(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match=r"maps the base image python:3\.13-slim to '\./folder'"):
        engine.builder(contexts={"docker.io/library/python:3.13-slim": "./folder"}).base("python:3.13-slim")


def test_a_base_that_only_this_machine_has_is_used(engine: Engine, root: Path) -> None:
    [image] = engine.build(root)
    alone = f"localhost:1/{secrets.token_hex(4)}/base:1"
    engine.docker("tag", image.image, alone)
    try:
        (root / "Dockerfile").write_text(f"FROM {alone}\nCOPY handler.py /second.py\n")
        [second] = engine.build(root)
    finally:
        engine.docker("image", "rm", alone)

    assert engine.inspect(second.image)["Config"]["Labels"]["org.opencontainers.image.base.digest"] == image.image_id
    first = engine.inspect(image.image)["RootFS"]["Layers"]
    assert engine.inspect(second.image)["RootFS"]["Layers"][: len(first)] == first


@only_classic
def test_the_docker_context_in_effect_decides_where_images_go(engine: Engine, root: Path, tmp_path: Path) -> None:
    host = engine.environment["DOCKER_HOST"]
    engine.environment["DOCKER_CONFIG"] = str(tmp_path / "config")
    del engine.environment["DOCKER_HOST"]
    engine.docker("context", "create", "second", "--docker", f"host={host}")
    engine.docker("context", "use", "second")

    [image] = engine.build(root, engine.builder(BUILDX_BUILDER="another"))

    assert image.digest is None  # the default context's engine would know one


@only_containerd
@pytest.mark.parametrize("variable", ["SOURCE_DATE_EPOCH=5", "DOCKER_DEFAULT_PLATFORM=linux/arm64"])
def test_the_callers_variables_change_no_image(engine: Engine, root: Path, variable: str) -> None:
    before = engine.build(root)

    name, _, value = variable.partition("=")
    engine.environment[name] = value

    assert engine.build(root) == before


# failures


def test_a_failed_step_is_named_with_its_last_lines(engine: Engine, root: Path) -> None:
    (root / "Dockerfile").write_text(f"{DOCKERFILE}RUN echo last words; exit 7\n")

    with pytest.raises(BuildFailed) as caught:
        engine.build(root)

    assert re.match(r"test/tiny@1 did not build for linux/amd64 at \[stage-1 ./.\] RUN echo last", caught.value.message)
    assert caught.value.message.endswith("; exit 7: exit code: 7")
    assert caught.value.details["platform"] == "linux/amd64"
    assert any("last words" in line for line in caught.value.details["log"])
    assert len(caught.value.details["log"]) <= 30


def test_of_two_platforms_the_one_that_failed_is_named(engine: Engine, root: Path) -> None:
    step = "ARG TARGETARCH\nRUN [ $TARGETARCH = amd64 ] || exit 7\n"
    (root / "Dockerfile").write_text(DOCKERFILE.replace("COPY handler", f"{step}COPY handler"))

    with pytest.raises(BuildFailed) as caught:
        engine.build(root, platforms=PLATFORMS)

    assert caught.value.message.startswith("test/tiny@1 did not build for linux/arm64 at [")
    assert caught.value.details["platform"] == "linux/arm64"


@only_containerd
def test_a_base_of_an_earlier_stage_that_cannot_be_had_is_the_registrys_failure(engine: Engine, root: Path) -> None:
    (root / "Dockerfile").write_text(f"FROM localhost:1/org/tools:2 AS tools\n{DOCKERFILE}COPY --from=tools / /\n")

    with pytest.raises(ImageRegistryFailed, match=r"localhost:1/org/tools:2") as caught:
        engine.build(root)

    assert "PROCESSOR_BUILD_CONTEXTS=localhost:1/org/tools:2=" in caught.value.hint


def test_secrets_reach_the_build_and_neither_its_lines_nor_the_image(
    engine: Engine, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://me:hunter2222@mirror/simple\n")
    step = "RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=word cat /run/secrets/*; exit $((1-$OK))\n"
    text = DOCKERFILE.replace("FROM python", "ARG OK=0\n" + step + "FROM python")
    (root / "Dockerfile").write_text(text)
    words = (f"id=pip_conf,src={tmp_path / 'pip.conf'}", "id=word,env=WORD")
    lines: list[str] = []

    with pytest.raises(BuildFailed) as caught:
        engine.build(root, engine.builder(secrets=words, WORD="opensesame"), progress=lines.append)
    said = "\n".join([*lines, str(caught.value.document())])
    (root / "Dockerfile").write_text(text.replace("OK=0", "OK=1"))
    [image] = engine.build(root, engine.builder(secrets=words, WORD="opensesame"), progress=lines.append)

    assert "[global]" in said
    assert "hunter2222" not in said
    assert "opensesame" not in said
    history = engine.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.image)
    assert "secret" not in history
    assert "pip.conf" not in engine.docker("run", "--rm", image.image, "sh", "-c", "ls /etc; ls -a /run")


@only_containerd
def test_a_secret_file_that_is_absent_is_said_before_anything_is_built(engine: Engine, root: Path) -> None:
    lines: list[str] = []

    with pytest.raises(ConfigurationError, match="PROCESSOR_BUILD_SECRETS names absent/ca"):
        engine.build(root, engine.builder(secrets=("id=ca,src=absent/ca",)), progress=lines.append)

    assert lines == []


@only_containerd
def test_an_engine_that_does_not_answer_is_an_error_of_the_engine(engine: Engine) -> None:
    with pytest.raises(EngineFailed, match="does not answer") as caught:
        engine.builder(DOCKER_HOST="unix:///nowhere.sock").base("python:3.13-slim")

    assert "LOCAL_ENGINE=process" in caught.value.hint


STUCK = """
import sys
from pathlib import Path
sys.path[:0] = [{project!r}, {project!r} + "/code/runtime"]
from tests.integration.test_build import Engine
print("up", flush=True)
Engine({repository!r}, None).build(Path({root!r}), progress=lambda line: print(line, flush=True))
"""


@only_containerd
def test_ctrl_c_ends_the_build(engine: Engine, root: Path) -> None:
    (root / "Dockerfile").write_text(f"{DOCKERFILE}RUN echo now; sleep 300\n")
    code = STUCK.format(project=str(PROJECT), repository=engine.repository, root=str(root))
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(
        argv, env=engine.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        wait_for(process.stdout.readline, "now")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)

    assert process.returncode == -signal.SIGINT, stderr
    assert time.monotonic() - began < 30
    assert str(root) not in " ".join(path.read_text() for path in command_lines())


def wait_for(readline: Callable[[], str], word: str) -> None:
    while line := readline():
        if line.split()[-1:] == [word] and "RUN" not in line:
            return
    pytest.fail(f"never read {word!r}")


def command_lines() -> Iterator[Path]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            path.read_text()
        except OSError:
            continue
        yield path
