import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.errors import ConfigurationError, ImageNotFound, InvalidRegistry, RefNotFound
from apps.processors import pinning, registry
from apps.processors.adapters.base import RemoteManifest
from apps.processors.pinning import Asked, Pinned
from apps.processors.reference import AMD64, ARM64, ImageReference, Platform, ProcessorRef
from apps.processors.state import LocalState
from tests.unit.test_registry_pin import NEW, OLD, OTHER, REF, block, place, write

AUTHOR = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Pin = Callable[[ImageReference], Pinned]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pin(tmp_path: Path, said: list[str]) -> Pin:
    def pinned(image: ImageReference, *, prefix: str | None = None, platform: Platform = AMD64) -> Pinned:
        state = LocalState(tmp_path / "code/.theory")
        asked = Asked(REF, platform, image)
        return pinning.pin(asked, root=tmp_path, prefix=prefix, state=state, images_at=None, warn=said.append)

    return pinned


# pin


def test_the_document_of_a_pin_is_the_contracts(tmp_path: Path, pin: Pin) -> None:
    write(tmp_path, block(f"amd64: {OLD}"))

    assert pin(NEW).document() == {
        "status": "success",
        "ref": "llm/echo@3",
        "platform": "linux/amd64",
        "oci": str(NEW),
        "previous": str(OLD),
        "changed": True,
    }


def test_the_first_pin_has_no_previous_one(tmp_path: Path, pin: Pin) -> None:
    write(tmp_path, block("amd64:"))

    assert pin(NEW).document()["previous"] is None


def test_a_pin_that_stands_is_not_changed_and_its_own_previous_one(tmp_path: Path, pin: Pin) -> None:
    write(tmp_path, block(f"amd64: {NEW}"))

    document = pin(NEW).document()

    assert (document["previous"], document["changed"]) == (str(NEW), False)


def test_another_repository_is_pinned_and_warned_of(tmp_path: Path, pin: Pin, said: list[str]) -> None:
    write(tmp_path, block("amd64:"))
    image = ImageReference("ghcr.io/org/image", NEW.digest)

    pin(image)

    assert registry.load(tmp_path, REF).pins[AMD64] == image
    assert said == ["ghcr.io/org/image is not the repository of llm/echo@3, which is ghcr.io/org/llm-echo"]


def test_where_push_goes_by_the_prefix_is_not_another_repository(
    tmp_path: Path, pin: Callable[..., Pinned], said: list[str]
) -> None:
    write(tmp_path, block("amd64:"))

    pin(ImageReference("localhost:5000/team/llm-echo", NEW.digest), prefix="localhost:5000/team")

    assert said == []


# rollback


class Repository:
    """A checkout in git; each `commit` is registry.yaml with this pin."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet")

    def git(self, *words: str) -> str:
        argv = ["git", "-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false", *words]
        done = subprocess.run(
            argv, cwd=self.root, env={**os.environ, **AUTHOR}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, text: str) -> str:
        write(self.root, text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "x")
        return self.git("rev-parse", "HEAD")

    def previous(self, platform: Platform = AMD64) -> Asked:
        return pinning.previous(REF, platform, root=self.root, environment=os.environ)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_the_pin_before_is_the_newest_committed_one_that_differs(repository: Repository) -> None:
    repository.commit(block(f"amd64: {OTHER}"))
    revision = repository.commit(block(f"amd64: {OLD}"))
    repository.commit(block(f"amd64: {NEW}"))

    assert repository.previous() == Asked(REF, AMD64, OLD, revision)


def test_a_pin_that_was_not_committed_goes_back_to_the_committed_one(repository: Repository) -> None:
    revision = repository.commit(block(f"amd64: {OLD}"))
    write(repository.root, block(f"amd64: {NEW}"))

    assert repository.previous() == Asked(REF, AMD64, OLD, revision)


def test_commits_that_change_something_else_are_passed_over(repository: Repository) -> None:
    repository.commit(block(f"amd64: {OLD}"))
    revision = repository.commit(block(f"amd64: {OLD}  # as tested"))
    repository.commit(block(f"amd64: {NEW}"))
    repository.commit(block(f"amd64: {NEW}", f"arm64: {OTHER}"))

    assert repository.previous() == Asked(REF, AMD64, OLD, revision)


def test_commits_without_a_pin_are_passed_over(repository: Repository) -> None:
    repository.commit(block(f"amd64: {OLD}"))
    repository.commit(block("amd64:"))
    repository.commit("not: a registry")
    repository.commit("{")
    repository.git("rm", "--quiet", str(place(repository.root)))
    repository.git("commit", "--quiet", "--message", "gone")
    repository.commit(block(f"amd64: {NEW}"))

    assert repository.previous().image == OLD


def test_each_platform_has_a_history_of_its_own(repository: Repository) -> None:
    repository.commit(block(f"amd64: {OLD}", f"arm64: {OTHER}"))
    repository.commit(block(f"amd64: {NEW}", f"arm64: {NEW}"))

    assert (repository.previous(AMD64).image, repository.previous(ARM64).image) == (OLD, OTHER)


def test_a_pin_that_was_taken_away_comes_back(repository: Repository) -> None:
    repository.commit(block(f"amd64: {OLD}"))
    write(repository.root, block("amd64:"))

    assert repository.previous().image == OLD


def test_the_history_of_a_linked_file_is_that_of_its_target(repository: Repository) -> None:
    repository.commit(block(f"amd64: {OLD}"))
    path = place(repository.root)
    path.rename(path.with_name("real.yaml"))
    path.symlink_to("real.yaml")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "x")
    path.write_text(block(f"amd64: {NEW}"))

    assert repository.previous().image == OLD


def test_a_pin_without_another_one_before_is_refused(repository: Repository) -> None:
    repository.commit(block("amd64:"))
    repository.commit(block(f"amd64: {NEW}"))

    with pytest.raises(ImageNotFound) as caught:
        repository.previous()

    path = "registry/llm/echo/3/registry.yaml"
    assert caught.value.message == f"no commit of {path} holds another pin for linux/amd64"
    assert caught.value.hint.endswith("processorctl pin --ref llm/echo@3 --platform amd64 --oci REPOSITORY@DIGEST")


def test_a_shallow_clone_says_that_it_is_one(repository: Repository, tmp_path: Path) -> None:
    repository.commit(block(f"amd64: {OLD}"))
    repository.commit(block(f"amd64: {NEW}"))
    repository.git("clone", "--quiet", "--depth=1", f"file://{tmp_path}", "shallow")

    with pytest.raises(ConfigurationError) as caught:
        pinning.previous(REF, AMD64, root=tmp_path / "shallow", environment=os.environ)

    assert caught.value.hint == "git fetch --unshallow"


def test_a_folder_outside_of_git_is_refused(tmp_path: Path) -> None:
    write(tmp_path, block(f"amd64: {NEW}"))

    with pytest.raises(ConfigurationError, match="not a git repository"):
        pinning.previous(REF, AMD64, root=tmp_path, environment=os.environ)


def test_a_repository_without_a_commit_is_refused(repository: Repository) -> None:
    write(repository.root, block(f"amd64: {NEW}"))

    with pytest.raises(ConfigurationError, match="does not have any commits yet"):
        repository.previous()


def test_a_machine_without_git_is_refused(tmp_path: Path) -> None:
    write(tmp_path, block(f"amd64: {NEW}"))

    with pytest.raises(ConfigurationError) as caught:
        pinning.previous(REF, AMD64, root=tmp_path, environment={"PATH": str(tmp_path)})

    assert caught.value.hint == "install git"


def test_a_hooks_repository_is_not_asked(repository: Repository, tmp_path: Path) -> None:
    repository.commit(block(f"amd64: {OLD}"))
    repository.commit(block(f"amd64: {NEW}"))
    environment = {**os.environ, "GIT_DIR": str(tmp_path / "elsewhere")}

    assert pinning.previous(REF, AMD64, root=tmp_path, environment=environment).image == OLD


def test_an_unknown_ref_and_a_wrong_file_are_refused_as_everywhere(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound):
        pinning.previous(ProcessorRef("no", "such", 1), AMD64, root=tmp_path, environment={})
    write(tmp_path, "{}")
    with pytest.raises(InvalidRegistry):
        pinning.previous(REF, AMD64, root=tmp_path, environment={})


def test_a_rollback_names_the_commit_of_the_pin(tmp_path: Path) -> None:
    asked = Asked(REF, AMD64, OLD, "c" * 40)

    assert Pinned(asked, NEW).document()["revision"] == "c" * 40
    assert "commit cccccccccccc" in Pinned(asked, NEW).text()


# what an index holds


def test_attestations_and_foreign_platforms_are_no_images_of_an_index() -> None:
    places = [("linux", "arm64"), ("unknown", "unknown"), ("linux", "amd64"), ("windows", "amd64"), ("linux", "s390x")]
    entries = [
        {
            "mediaType": MANIFEST,
            "size": 1,
            "digest": f"sha256:{number:064}",
            "platform": {"os": system, "architecture": architecture},
        }
        for number, (system, architecture) in enumerate(places)
    ]
    attesting = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    manifests = [entries[2] | attesting | {"digest": "sha256:" + "8" * 64}, *entries]
    index = RemoteManifest("localhost:5000/x", "sha256:" + "0" * 64, INDEX, {"manifests": manifests}, 1)

    assert pinning.platforms_of(index) == {
        AMD64: ImageReference("localhost:5000/x", f"sha256:{2:064}"),
        ARM64: ImageReference("localhost:5000/x", f"sha256:{0:064}"),
    }


def test_a_digest_of_a_kind_that_no_pin_holds_is_not_offered() -> None:
    entry = {"mediaType": MANIFEST, "size": 1, "digest": "sha512:" + "9" * 128}
    manifests = [{**entry, "platform": {"os": "linux", "architecture": "amd64"}}]
    index = RemoteManifest("localhost:5000/x", "sha256:" + "0" * 64, INDEX, {"manifests": manifests}, 1)

    assert pinning.platforms_of(index) == {}
