"""The bytes of an image index and of the attestations in it: what BuildKit would write, equal for equal images."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from apps.processors.reference import AMD64, ARM64, PLATFORMS, Platform

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
IN_TOTO: Final = "application/vnd.in-toto+json"

_TYPE: Final = "vnd.docker.reference.type"
_SUBJECT: Final = "vnd.docker.reference.digest"
_ATTESTATION: Final = "attestation-manifest"


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be made for an image, which is as good without it."""

    reason: str
    """For people: a clause."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """How OCI documents name other ones."""

    media_type: str
    digest: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes, media_type: str) -> "Descriptor":
        return cls(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Descriptor":
        return cls(str(document["mediaType"]), str(document["digest"]), int(document["size"]))

    def document(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One platform of an index."""

    platform: Platform
    digest: str
    """Of the platform's manifest."""
    size_bytes: int
    """Of that manifest's own document."""
    media_type: str = MANIFEST
    attestation: Descriptor | None = None
    """The attestation manifest about that manifest."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is stored for one statement: the manifest, and the blobs that have to be there before it."""

    manifest: bytes
    config: bytes
    statement: bytes

    @property
    def blobs(self) -> tuple[bytes, bytes]:
        return self.config, self.statement

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor.of(self.manifest, MANIFEST)


def index(entries: Iterable[IndexEntry]) -> bytes:
    """An OCI image index over `entries`: amd64, arm64, then what attests to them in the same order.

    The order given does not matter; a platform that is given twice is a ValueError.
    """
    found = sorted(entries, key=lambda entry: PLATFORMS.index(entry.platform))
    if len({entry.platform for entry in found}) != len(found):
        raise ValueError("an index names each platform once")
    manifests = [_image(entry) for entry in found]
    manifests += [_attesting(entry.attestation, entry.digest) for entry in found if entry.attestation]
    return _written({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def entries(document: Mapping[str, Any]) -> tuple[IndexEntry, ...]:
    """The images of an index (whoever made it) for platforms that we build for, with their attestations.

    What has no platform, or another one, is left out; of two for one platform the first counts, as for Docker.
    """
    attesting = {
        each["annotations"].get(_SUBJECT): Descriptor.read(each)
        for each in document.get("manifests", ())
        if _attests(each)
    }
    found: dict[Platform, IndexEntry] = {}
    for each in document.get("manifests", ()):
        platform = _platform(each)
        if platform is not None and platform not in found:
            of = Descriptor.read(each)
            found[platform] = IndexEntry(
                platform, of.digest, of.size_bytes, of.media_type, attestation=attesting.get(of.digest)
            )
    return tuple(found[platform] for platform in PLATFORMS if platform in found)


def attestation_manifest(statement: bytes) -> Attestation:
    """What stores one in-toto statement (JSON with a predicateType) beside an image, as BuildKit does.

    Source: https://docs.docker.com/build/metadata/attestations/attestation-storage/
    """
    layer = Descriptor.of(statement, IN_TOTO)
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = json.dumps(
        {"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs}, separators=(",", ":")
    ).encode()
    predicate = {"in-toto.io/predicate-type": json.loads(statement)["predicateType"]}
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor.of(config, CONFIG).document(),
        "layers": [layer.document() | {"annotations": predicate}],
    }
    return Attestation(_written(document), config, statement)


def _image(entry: IndexEntry) -> dict[str, Any]:
    of = Descriptor(entry.media_type, entry.digest, entry.size_bytes).document()
    return of | {"platform": {"architecture": entry.platform.architecture, "os": "linux"}}


def _attesting(attestation: Descriptor, subject: str) -> dict[str, Any]:
    return attestation.document() | {
        "annotations": {_SUBJECT: subject, _TYPE: _ATTESTATION},
        "platform": {"architecture": "unknown", "os": "unknown"},
    }


def _attests(entry: Mapping[str, Any]) -> bool:
    return (entry.get("annotations") or {}).get(_TYPE) == _ATTESTATION


def _platform(entry: Mapping[str, Any]) -> Platform | None:
    """The platform of an index's entry, when it is an image's and one that we build for."""
    named = entry.get("platform") or {}
    # An attestation says unknown/unknown, but nothing keeps a tool from naming the platform that it is about.
    if _attests(entry) or named.get("os") != "linux":
        return None
    # amd64/v3 would not run on every amd64; v1 and v8 are what no variant means.
    known = {("amd64", ""): AMD64, ("amd64", "v1"): AMD64, ("arm64", ""): ARM64, ("arm64", "v8"): ARM64}
    return known.get((str(named.get("architecture")), str(named.get("variant") or "")))


def _written(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
