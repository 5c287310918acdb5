"""Proofs beside an image in a real image registry; what makes them is told in each test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.errors import BuildFailed, EngineFailed
from apps.processors.adapters.base import BuildRequest, RemoteManifest
from apps.processors.adapters.oci_registry import OciRegistry
from apps.processors.attestations import IN_TOTO, MANIFEST, IndexEntry, Missing
from apps.processors.proving import SBOM, Proofs, Prover
from apps.processors.reference import AMD64, Platform, ProcessorRef
from apps.processors.state import BuildRecord
from tests.integration.registries import Registry, registry
from tests.integration.tiny_images import put_image

REF = ProcessorRef("llm", "echo", 3)
SOURCE = f"sha256:{'5' * 64}"
STATEMENT = b'{"predicateType": "https://slsa.dev/provenance/v0.2", "predicate": {}}'
BILL = b'{"bomFormat": "CycloneDX"}'


class Maker:
    """A builder and an engine that answer as they are told, and remember how often they were asked."""

    def __init__(self) -> None:
        self.statement: Callable[[], bytes | Missing] = lambda: STATEMENT
        self.bill: Callable[[], bytes | Missing] = lambda: BILL
        self.source_digest = SOURCE
        self.asked: list[str] = []

    def provenance(self, request: BuildRequest, platform: Platform, digest: str, **_: Any) -> bytes | Missing:
        self.asked.append(f"provenance of {digest} for {platform}")
        return self.statement()

    def sbom(self, image: str, **_: Any) -> bytes | Missing:
        self.asked.append(f"sbom of {image}")
        return self.bill()

    def request(self) -> BuildRequest:
        folder = Path("/")
        return BuildRequest(
            ref=REF,
            root=folder,
            context=folder,
            dockerfile=folder,
            repository="x.example/y",
            tag="3-5",
            source_digest=self.source_digest,
            platforms=(AMD64,),
            base=None,
            revision=None,
            created_epoch_s=0,
        )


class Place:
    """A registry with one image in it, and what is said while its proofs are made."""

    def __init__(self, made: Registry) -> None:
        self.registry, self.maker, self.said = OciRegistry(made.environment), Maker(), list[str]()
        image = put_image(made)
        found = self.registry.manifest(image.repository, image.digest)
        assert found is not None
        self.subject: RemoteManifest = found

    def prove(self, *, image_id: str | None = None, standing: IndexEntry | None = None) -> Proofs:
        made = Prover(self.maker, self.maker, self.maker.request, self.registry, self.said.append)
        digest = self.subject.digest
        build = BuildRecord("docker", "linux/amd64", "3-5", SOURCE, digest, "local", image_id or digest, 1, None, "now")
        return made.prove(REF, build, self.subject, standing=standing)

    def document(self, digest: str) -> dict[str, Any]:
        found = self.registry.manifest(self.subject.repository, digest)
        assert found is not None
        return dict(found.document)

    def blob(self, digest: str) -> bytes:
        return self.registry.blob(self.subject.repository, digest, limit_bytes=1000)


@pytest.fixture
def place() -> Iterator[Place]:
    with registry() as made:
        yield Place(made)


def test_the_statement_is_stored_as_an_attestation(place: Place) -> None:
    attestation = place.prove().attestation

    assert attestation is not None
    assert attestation.media_type == MANIFEST
    (layer,) = place.document(attestation.digest)["layers"]
    assert layer["mediaType"] == IN_TOTO
    assert place.blob(layer["digest"]) == STATEMENT


def test_the_bill_refers_to_the_image(place: Place) -> None:
    sbom = place.prove().sbom

    assert sbom is not None
    assert place.registry.attached(place.subject.repository, place.subject.digest, artifact_type=SBOM) == [sbom]
    assert place.blob(place.document(sbom)["layers"][0]["digest"]) == BILL


def test_proofs_leave_the_images_manifest_alone(place: Place) -> None:
    before = place.document(place.subject.digest)

    place.prove()

    assert place.document(place.subject.digest) == before


def test_what_stands_is_not_made_again(place: Place) -> None:
    first = place.prove()
    place.maker.asked.clear()
    standing = IndexEntry(AMD64, place.subject.digest, 1, attestation=first.attestation)

    assert place.prove(standing=standing) == first
    assert place.maker.asked == []


def test_the_attestation_of_another_image_does_not_stand(place: Place) -> None:
    standing = IndexEntry(AMD64, f"sha256:{'0' * 64}", 1, attestation=place.prove().attestation)
    place.maker.asked.clear()

    place.prove(standing=standing)

    assert place.maker.asked == [f"provenance of {place.subject.digest} for linux/amd64"]


def test_what_cannot_be_made_is_said_and_the_rest_is_stored(place: Place) -> None:
    place.maker.statement = lambda: Missing("this engine's BuildKit wrote no provenance")

    proofs = place.prove()

    assert proofs.attestation is None
    assert proofs.sbom is not None
    assert "linux/amd64: no provenance: this engine's BuildKit wrote no provenance" in place.said


def failing(error: Exception) -> Callable[[], bytes]:
    def fail() -> bytes:
        raise error

    return fail


def test_a_failure_to_make_a_proof_fails_no_push(place: Place) -> None:
    place.maker.statement = failing(BuildFailed("the cache is gone"))
    place.maker.bill = failing(EngineFailed("the engine is gone"))

    assert place.prove() == Proofs(None, None)
    assert "linux/amd64: no provenance: the cache is gone" in place.said
    assert "linux/amd64: no SBOM: the engine is gone" in place.said


def test_the_classic_store_is_asked_for_no_provenance(place: Place) -> None:
    """There an image's id is the digest of its config."""
    proofs = place.prove(image_id=f"sha256:{'1' * 64}")

    assert proofs.attestation is None
    assert "linux/amd64: no provenance: the classic image store keeps no provenance" in place.said
    assert place.maker.asked == ["sbom of local"]


def test_a_source_that_changed_since_is_not_said_to_have_made_the_image(place: Place) -> None:
    place.maker.source_digest = f"sha256:{'6' * 64}"

    assert place.prove().attestation is None
    assert "linux/amd64: no provenance: its source changed since it was built" in place.said


def test_the_same_proofs_again_are_the_same_documents(place: Place) -> None:
    assert place.prove() == place.prove()


def test_a_statement_of_another_kind_says_its_kind(place: Place) -> None:
    place.maker.statement = lambda: json.dumps({"predicateType": "https://example.org/x"}).encode()

    attestation = place.prove().attestation

    assert attestation is not None
    (layer,) = place.document(attestation.digest)["layers"]
    assert layer["annotations"] == {"in-toto.io/predicate-type": "https://example.org/x"}
