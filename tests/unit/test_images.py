import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from apps.errors import BuildFailed, ConfigurationError, ImageNotFound
from apps.processors import images, selection
from apps.processors.adapters.base import BaseImage, BuildRequest, BuiltImage, Progress
from apps.processors.reference import AMD64, ARM64, PLATFORMS, ImageReference, Platform, ProcessorRef
from apps.processors.selection import Selection
from apps.processors.spec import Build, ProcessorSpec, Runtime, Secrets
from apps.processors.state import BuildRecord, LocalState
from apps.settings import Settings

REF = ProcessorRef("llm", "echo", 3)
ONE, TWO = (ImageReference("ghcr.io/org/llm-echo", "sha256:" + digit * 64) for digit in "12")
BUILT, ID = "sha256:" + "b" * 64, "sha256:" + "c" * 64


def spec(root: Path = Path("/nowhere"), **pins: ImageReference | None) -> ProcessorSpec:
    return ProcessorSpec(
        ref=REF,
        file=root / "registry/llm/echo/3/registry.yaml",
        repository="ghcr.io/org/llm-echo",
        pins={platform: pins.get(platform.architecture) for platform in PLATFORMS},
        pull_secret=None,
        build=Build(context="code", dockerfile="code/Dockerfile"),
        runtime=Runtime(port=8000, cpu=1, memory_gb=1, scratch_gb=1, timeout_s=60, concurrency=1, gpu=None),
        secrets=Secrets((), ()),
        inputs={},
        outputs=(),
        document={},
        spec_json="{}",
        spec_digest="sha256:" + "0" * 64,
    )


def record(*, pin: ImageReference | None = None, platform: Platform = AMD64, engine: str = "docker") -> BuildRecord:
    return BuildRecord(
        engine=engine,
        platform=str(platform),
        tag="3-0123456789ab",
        source_digest="sha256:" + "5" * 64,
        digest=BUILT if engine == "docker" else None,
        image=ID,
        image_id=ID,
        size_bytes=1,
        pin=str(pin) if pin else None,
        built_at="2026-01-01T00:00:00.000Z",
    )


def select(
    pin: ImageReference | None, builds: tuple[BuildRecord, ...], *, forced: str | None = None, engine: str = "docker"
) -> Selection:
    return selection.select(
        spec(amd64=pin), AMD64, builds=builds, engine=engine, gives_digests=engine == "docker", forced=forced
    )


# which image runs: pin now, pin when it was built ("-": no build), forced → what is taken

RULE = [
    (None, "-", None, None),
    (None, None, None, "build"),
    (None, ONE, None, "build"),  # the pin was taken away: there is nothing else
    (ONE, "-", None, "pin"),
    (ONE, None, None, "pin"),  # pinned after the build
    (ONE, ONE, None, "build"),  # built after it was pinned
    (TWO, ONE, None, "pin"),  # pinned to something else after the build
    (None, "-", "pin", None),
    (None, None, "pin", None),
    (None, ONE, "pin", None),
    (ONE, "-", "pin", "pin"),
    (ONE, None, "pin", "pin"),
    (ONE, ONE, "pin", "pin"),
    (TWO, ONE, "pin", "pin"),
    (None, "-", "build", None),
    (None, None, "build", "build"),
    (None, ONE, "build", "build"),
    (ONE, "-", "build", None),
    (ONE, None, "build", "build"),
    (ONE, ONE, "build", "build"),
    (TWO, ONE, "build", "build"),
]


@pytest.mark.parametrize(("pin", "at_build", "forced", "taken"), RULE)
def test_the_newest_build_wins_while_its_pin_stands(
    pin: ImageReference | None, at_build: ImageReference | str | None, forced: str | None, taken: str | None
) -> None:
    builds = () if isinstance(at_build, str) else (record(pin=at_build),)

    if taken is None:
        with pytest.raises(ImageNotFound) as caught:
            select(pin, builds, forced=forced)
        assert caught.value.hint == "processorctl build --ref llm/echo@3 --platforms linux/amd64"
        return
    selection = select(pin, builds, forced=forced)

    assert selection.source == taken
    if taken == "build":
        assert (selection.digest, selection.image, selection.reference) == (BUILT, ID, None)
    else:
        assert pin is not None
        assert (selection.digest, selection.image, selection.reference) == (pin.digest, None, pin)


def test_a_pin_that_changed_after_the_build_is_said() -> None:
    assert select(TWO, (record(pin=ONE),)).notes == (
        "the pin of llm/echo@3 for linux/amd64 changed after the last build: the pin is taken",
    )


@pytest.mark.parametrize(("pin", "at_build"), [(None, None), (ONE, ONE)])
def test_a_choice_that_surprises_nobody_has_no_notes(
    pin: ImageReference | None, at_build: ImageReference | None
) -> None:
    assert select(pin, (record(pin=at_build),)).notes == ()


def test_builds_and_pins_of_another_platform_do_not_count() -> None:
    with pytest.raises(ImageNotFound):
        selection.select(spec(arm64=ONE), AMD64, builds=(record(platform=ARM64),), engine="docker", gives_digests=True)


def test_each_platform_has_its_own_choice() -> None:
    both = spec(amd64=ONE, arm64=TWO)
    builds = (record(platform=AMD64, pin=ONE), record(platform=ARM64, pin=ONE))

    chosen = [selection.select(both, p, builds=builds, engine="docker", gives_digests=True).source for p in PLATFORMS]

    assert chosen == ["build", "pin"]


def test_builds_of_another_engine_do_not_count() -> None:
    with pytest.raises(ImageNotFound, match="neither built nor pinned"):
        select(None, (record(engine="process"),))


def test_a_build_without_a_digest_goes_by_its_image_id() -> None:
    assert select(None, (replace(record(), digest=None),)).digest == ID


@pytest.mark.parametrize("at_build", [None, ONE, TWO])
def test_an_engine_without_digests_ignores_pins_and_says_so(at_build: ImageReference | None) -> None:
    selection = select(ONE, (record(engine="process", pin=at_build),), engine="process")

    assert (selection.source, selection.digest) == ("build", ID)
    assert selection.notes == (
        "the pin of llm/echo@3 for linux/amd64 is ignored: the process engine runs builds alone",
    )


def test_an_engine_without_digests_needs_a_build() -> None:
    with pytest.raises(ImageNotFound, match="was not built for linux/amd64"):
        select(ONE, (record(),), engine="process")


def test_a_pin_cannot_be_forced_on_an_engine_without_digests() -> None:
    with pytest.raises(ConfigurationError, match="knows no pins"):
        select(ONE, (record(engine="process"),), engine="process", forced="pin")


# build


@dataclass
class Builder:
    """An ImageBuilder that makes nothing, for some platforms."""

    possible: tuple[Platform, ...] = PLATFORMS
    engine: str = "docker"
    found: BaseImage | None = None
    failing: bool = False
    asked_base: list[str] = field(default_factory=list)
    requests: list[BuildRequest] = field(default_factory=list)

    def platforms(self, asked: tuple[Platform, ...]) -> tuple[Platform, ...]:
        return tuple(platform for platform in asked if platform in self.possible)

    def base(self, name: str) -> BaseImage | None:
        self.asked_base.append(name)
        return self.found

    def build(self, request: BuildRequest, *, progress: Progress) -> list[BuiltImage]:
        self.requests.append(request)
        if self.failing:
            raise BuildFailed("no")
        return [BuiltImage(platform, BUILT, ID, ID, 7) for platform in request.platforms]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("code", "registry"):
        (tmp_path / folder).mkdir()
    (tmp_path / "code/Dockerfile").write_text("FROM python:3.13-slim\nCOPY handler.py /\n")
    (tmp_path / "code/Dockerfile.dockerignore").write_text("*\n!handler.py\n")
    (tmp_path / "code/handler.py").write_text("pass\n")
    return tmp_path


@pytest.fixture
def state(root: Path) -> LocalState:
    return LocalState(root / "code/.theory")


Build_ = Callable[..., images.BuildResult]


@pytest.fixture
def build(root: Path, state: LocalState) -> Build_:
    def built(
        builder: Builder,
        *,
        platforms: tuple[Platform, ...] = PLATFORMS,
        environ: dict[str, str] | None = None,
        progress: Progress = lambda line: None,
        **pins: ImageReference,
    ) -> images.BuildResult:
        settings = Settings.read({"PATH": os.environ["PATH"], **(environ or {})}, caller=root)
        return images.build(
            spec(root, **pins), platforms, settings=settings, builder=builder, state=state, progress=progress
        )

    return built


def test_the_document_of_a_build_is_the_contracts(build: Build_) -> None:
    document = build(Builder(possible=(AMD64,))).document()
    duration_ms = document.pop("duration_ms")

    assert isinstance(duration_ms, int)
    assert document == {
        "status": "success",
        "ref": "llm/echo@3",
        "engine": "docker",
        "tag": f"3-{document['source_digest'][7:19]}",
        "source_digest": document["source_digest"],
        "images": [{"platform": "linux/amd64", "digest": BUILT, "image_id": ID, "size_bytes": 7}],
        "skipped": ["linux/arm64"],
    }


def test_everything_that_decides_the_bytes_is_in_the_request(build: Build_, root: Path) -> None:
    builder = Builder(found=BaseImage("python:3.13-slim", "sha256:" + "9" * 64, None))

    result = build(builder)

    assert builder.asked_base == ["python:3.13-slim"]
    assert builder.requests == [
        BuildRequest(
            ref=REF,
            root=root,
            context=root / "code",
            dockerfile=root / "code/Dockerfile",
            repository="ghcr.io/org/llm-echo",
            tag=result.tag,
            source_digest=result.source_digest,
            platforms=PLATFORMS,
            base=builder.found,
            revision=None,
            created_epoch_s=0,
        )
    ]


def test_the_base_that_is_used_changes_the_source_digest(build: Build_) -> None:
    digests = [BaseImage("python:3.13-slim", "sha256:" + digit * 64, None) for digit in "89"]

    one, two = (build(Builder(found=base)).source_digest for base in digests)

    assert one != two


def test_a_pin_changes_no_source_digest(build: Build_) -> None:
    assert build(Builder(), amd64=ONE).source_digest == build(Builder()).source_digest


@pytest.mark.parametrize("prefix", ["localhost:5000/team", "localhost:5000/team/"])
def test_a_repository_prefix_replaces_what_is_before_the_last_slash(build: Build_, prefix: str) -> None:
    builder = Builder()

    build(builder, environ={"PROCESSOR_REPOSITORY_PREFIX": prefix})

    assert builder.requests[0].repository == "localhost:5000/team/llm-echo"


def test_each_platform_is_recorded_with_the_pin_that_stands(build: Build_, state: LocalState) -> None:
    result = build(Builder(), amd64=ONE)

    assert [(each.platform, each.pin, each.identity, each.source_digest) for each in state.builds(REF)] == [
        ("linux/amd64", str(ONE), BUILT, result.source_digest),
        ("linux/arm64", None, BUILT, result.source_digest),
    ]


def test_what_was_just_built_is_what_is_selected(build: Build_, state: LocalState, root: Path) -> None:
    build(Builder(), amd64=ONE)

    chosen = selection.select(
        spec(root, amd64=ONE), AMD64, builds=state.builds(REF), engine="docker", gives_digests=True
    )

    assert chosen.source == "build"


def test_a_failed_build_leaves_the_record_of_the_last_good_one(build: Build_, state: LocalState) -> None:
    build(Builder())
    before = state.builds(REF)

    with pytest.raises(BuildFailed):
        build(Builder(failing=True))

    assert state.builds(REF) == before


def test_nothing_is_built_when_every_platform_is_skipped(build: Build_, state: LocalState) -> None:
    builder = Builder(possible=(), engine="process")

    document = build(builder, platforms=(ARM64,)).document()

    assert (builder.requests, document["images"], document["skipped"]) == ([], [], ["linux/arm64"])
    assert state.builds(REF) == ()


def test_a_source_without_a_commit_is_said(build: Build_) -> None:
    said: list[str] = []

    build(Builder(), progress=said.append)

    assert said == ["llm/echo@3: no commit is known that touched what it is built from; its images name no revision"]
