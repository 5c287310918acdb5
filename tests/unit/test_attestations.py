"""Indexes and attestations against what BuildKit wrote (moby 26.1) for the same image, byte for byte."""

import hashlib
import itertools
import json
from typing import Any

import pytest

from apps.processors.attestations import (
    IN_TOTO,
    MANIFEST,
    Descriptor,
    IndexEntry,
    attestation_manifest,
    entries,
    index,
)
from apps.processors.reference import AMD64, ARM64, Platform

IMAGE = "sha256:66d00afb1edef6d2666eeffb3b5a260f5b26f501eec5b496dd10838cdfcf85da"
OTHER = f"sha256:{'1' * 64}"
ATTESTING = Descriptor(MANIFEST, "sha256:2f4b7aaad922914fd56fd2eac6101132baf8f84e6b80613569970a3abe756b9d", 566)
BUILDKIT_INDEX = b"""\
{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.index.v1+json",
  "manifests": [
    {
      "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "digest": "sha256:66d00afb1edef6d2666eeffb3b5a260f5b26f501eec5b496dd10838cdfcf85da",
      "size": 670,
      "platform": {
        "architecture": "amd64",
        "os": "linux"
      }
    },
    {
      "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "digest": "sha256:2f4b7aaad922914fd56fd2eac6101132baf8f84e6b80613569970a3abe756b9d",
      "size": 566,
      "annotations": {
        "vnd.docker.reference.digest": "sha256:66d00afb1edef6d2666eeffb3b5a260f5b26f501eec5b496dd10838cdfcf85da",
        "vnd.docker.reference.type": "attestation-manifest"
      },
      "platform": {
        "architecture": "unknown",
        "os": "unknown"
      }
    }
  ]
}"""
STATEMENT = b'{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://slsa.dev/provenance/v0.2"}'


def entry(**more: Any) -> dict[str, Any]:
    return {"mediaType": MANIFEST, "digest": OTHER, "size": 7, **more}


def platform(architecture: str, os: str = "linux", **more: str) -> dict[str, Any]:
    return {"platform": {"architecture": architecture, "os": os, **more}}


def test_an_index_is_what_buildkit_writes() -> None:
    assert index([IndexEntry(AMD64, IMAGE, 670, attestation=ATTESTING)]) == BUILDKIT_INDEX


def test_an_index_does_not_depend_on_the_order_of_its_entries() -> None:
    made = [IndexEntry(AMD64, IMAGE, 670, attestation=ATTESTING), IndexEntry(ARM64, OTHER, 671)]

    assert {index(order) for order in itertools.permutations(made)} == {index(made)}
    assert [each["digest"] for each in json.loads(index(made))["manifests"]] == [IMAGE, OTHER, ATTESTING.digest]


def test_an_index_names_a_platform_once() -> None:
    with pytest.raises(ValueError, match="once"):
        index([IndexEntry(AMD64, IMAGE, 670), IndexEntry(AMD64, OTHER, 670)])


def images(document: dict[str, Any]) -> dict[Platform, str]:
    return {each.platform: each.digest for each in entries(document)}


def test_what_an_index_holds_is_read_back() -> None:
    made = (
        IndexEntry(AMD64, IMAGE, 670, attestation=ATTESTING),
        IndexEntry(ARM64, OTHER, 671, "application/vnd.docker.distribution.manifest.v2+json"),
    )

    assert entries(json.loads(index(made))) == made


def test_an_attestation_is_never_taken_for_an_image() -> None:
    of = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": IMAGE}
    document = {"manifests": [entry(annotations=of, **platform("amd64")), entry(digest=IMAGE, **platform("arm64"))]}

    assert images(document) == {ARM64: IMAGE}


@pytest.mark.parametrize(
    "other",
    [
        {},
        platform("unknown", "unknown"),
        platform("amd64", "windows"),
        platform("amd64", variant="v3"),
        platform("arm", variant="v7"),
        platform("riscv64"),
    ],
)
def test_what_is_for_no_platform_of_ours_is_left_out(other: dict[str, Any]) -> None:
    document = {"manifests": [entry(**other), entry(digest=IMAGE, **platform("amd64"))]}

    assert images(document) == {AMD64: IMAGE}


def test_a_variant_that_every_machine_of_the_platform_has_counts_as_none() -> None:
    document = {"manifests": [entry(**platform("arm64", variant="v8"))]}

    assert images(document) == {ARM64: OTHER}


def test_of_two_images_for_one_platform_the_first_counts() -> None:
    document = {"manifests": [entry(digest=IMAGE, **platform("amd64")), entry(**platform("amd64"))]}

    assert images(document) == {AMD64: IMAGE}


def test_an_index_without_images_has_none() -> None:
    assert images({"manifests": []}) == {}


def test_an_attestations_manifest_names_its_blobs() -> None:
    made = attestation_manifest(STATEMENT)

    document = json.loads(made.manifest)
    digests = [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in made.blobs]
    assert [document["config"]["digest"], document["layers"][0]["digest"]] == digests
    assert [document["config"]["size"], document["layers"][0]["size"]] == [len(blob) for blob in made.blobs]


def test_an_attestations_manifest_says_what_it_states() -> None:
    layer = json.loads(attestation_manifest(STATEMENT).manifest)["layers"][0]

    assert layer["mediaType"] == IN_TOTO
    assert layer["annotations"] == {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"}


def test_an_attestations_descriptor_is_its_manifests() -> None:
    made = attestation_manifest(STATEMENT)

    assert made.descriptor == Descriptor.of(made.manifest, MANIFEST)
