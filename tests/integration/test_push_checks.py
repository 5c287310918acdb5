"""What `push` believes: neither that the engine sent what was built, nor that the registry has what was sent."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from apps.errors import PushFailed
from apps.processors import publishing, registry
from apps.processors.adapters.base import Engine, Progress, Sent
from apps.processors.adapters.oci_registry import OciRegistry
from apps.processors.proving import Prover
from apps.processors.reference import AMD64, ProcessorRef
from apps.processors.state import BuildRecord, LocalState
from tests.integration import registries
from tests.shell import PROJECT

REF = ProcessorRef("llm", "litellm", 1)
BUILT, OTHER = "sha256:" + "b" * 64, "sha256:" + "d" * 64
BUILD = BuildRecord(
    engine="docker",
    platform="linux/amd64",
    tag="1-0123456789ab",
    source_digest="sha256:" + "5" * 64,
    digest=BUILT,
    image=BUILT,
    image_id=BUILT,
    size_bytes=1,
    pin=None,
    built_at="2026-01-01T00:00:00.000Z",
)


class AnyEngine:
    """Has every image."""

    name, gives_digests = "docker", True

    def has_image(self, image: str) -> bool:
        return True


@dataclass
class Liar:
    """Sends nothing, and says that it sent `digest`."""

    digest: str

    def push(self, image: str, repository: str, tag: str, *, progress: Progress) -> Sent:
        return Sent(self.digest, frozenset())


def push(tmp_path: Path, made: registries.Registry, build: BuildRecord, pusher: Liar) -> publishing.Pushed:
    state = LocalState(tmp_path)
    state.record_builds(REF, [build])
    place = OciRegistry(made.environment)
    nothing = cast(Any, None)  # it does not come to proofs
    return publishing.push(
        registry.load(PROJECT, REF),
        (AMD64,),
        repository=made.repository(),
        engine=cast(Engine, AnyEngine()),
        registry=place,
        pusher=pusher,
        prover=Prover(nothing, nothing, nothing, place, nothing),
        state=state,
        progress=lambda line: None,
    )


def test_another_image_than_was_built_is_caught(tmp_path: Path) -> None:
    with registries.registry() as made:
        with pytest.raises(PushFailed, match=f"was built as {BUILT} and pushed as {OTHER}"):
            push(tmp_path, made, BUILD, Liar(OTHER))

        assert made.tags() == set()


@pytest.mark.parametrize("digest", [BUILT, None], ids=["containerd", "classic"])
def test_an_image_that_did_not_arrive_is_caught(tmp_path: Path, digest: str | None) -> None:
    with registries.registry() as made:
        with pytest.raises(PushFailed, match=f"was sent {BUILT} and has nothing under {BUILT}"):
            push(tmp_path, made, replace(BUILD, digest=digest, image_id=digest or OTHER), Liar(BUILT))

        assert made.tags() == set()
