"""What this checkout has: its processors with their pins and builds, and one of them in full."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apps.processors import registry
from apps.processors.adapters.base import ImageRegistry
from apps.processors.attestations import entries
from apps.processors.proving import SBOM
from apps.processors.reference import PLATFORMS, ImageReference, Platform, ProcessorRef
from apps.processors.registry import ProcessorSpec
from apps.processors.state import BuildRecord, LocalState, PushRecord


@dataclass(frozen=True, slots=True)
class Entry:
    """One processor: its spec, and the newest build of each engine and platform."""

    spec: ProcessorSpec
    builds: tuple[BuildRecord, ...]

    def document(self) -> dict[str, Any]:
        return {
            "ref": str(self.spec.ref),
            "slug": self.spec.ref.slug,
            "pins": _pins(self.spec.pins),
            "builds": [asdict(build) for build in self.builds],
        }


@dataclass(frozen=True, slots=True)
class Listing:
    """Every processor, sorted by ref."""

    entries: tuple[Entry, ...]

    def document(self) -> dict[str, Any]:
        """The contract's `processorctl list` document."""
        return {"status": "success", "processors": [entry.document() for entry in self.entries]}


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One platform's image: the pinned one, or the one of the last push where nothing is pinned."""

    oci: ImageReference | None
    in_registry: bool | None = None
    """None: nobody was asked."""
    size_bytes: int | None = None
    """Config and layers, compressed: what a machine fetches that has nothing of it."""
    provenance: str | None = None
    """Digest of the attestation's manifest."""
    sbom: str | None = None
    """Digest of the manifest that refers to the image."""

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "oci": str(self.oci) if self.oci else None}


@dataclass(frozen=True, slots=True)
class Shown:
    """One processor in full."""

    spec: ProcessorSpec
    index: ImageReference | None
    """Of the last push from this checkout."""
    images: Mapping[Platform, ShownImage]

    def document(self) -> dict[str, Any]:
        """The contract's `processorctl show` document."""
        spec = self.spec
        image = {
            "repository": spec.repository,
            "pull_secret": spec.pull_secret,
            "pins": _pins(spec.pins),
            "index": str(self.index) if self.index else None,
            "platforms": {str(platform): image.document() for platform, image in self.images.items()},
        }
        return {
            "status": "success",
            "ref": str(spec.ref),
            "spec": spec.document,
            "spec_digest": spec.spec_digest,
            "image": image,
        }


def listing(root: Path, *, state: LocalState) -> Listing:
    """All processors of the checkout at `root`. Raises InvalidRegistry."""
    return Listing(tuple(Entry(spec, state.builds(spec.ref)) for spec in registry.load_all(root)))


def show(root: Path, ref: ProcessorRef, *, state: LocalState, remote: ImageRegistry | None = None) -> Shown:
    """The processor `ref`, by what this checkout knows of its images or, where `remote` is given, by what that says.

    Raises RefNotFound, InvalidRegistry; asking also Unauthorized, ImageRegistryFailed.
    """
    spec, push = registry.load(root, ref), state.push(ref)
    tags = {build.tag for build in state.builds(ref)} | ({push.tag} if push else set())
    pushed, images = _pushed(push), {}
    for platform in PLATFORMS:
        known, pin = pushed.get(platform, ShownImage(None)), spec.pins.get(platform)
        if pin:
            known = replace(known, oci=pin) if known.oci and known.oci.digest == pin.digest else ShownImage(pin)
        images[platform] = _asked(known.oci, tags, remote) if remote and known.oci else known
    return Shown(spec, ImageReference(push.repository, push.index) if push else None, images)


def _pushed(push: PushRecord | None) -> dict[Platform, ShownImage]:
    if push is None:
        return {}
    return {
        Platform.parse(each.platform): ShownImage(
            ImageReference(push.repository, each.digest), None, each.size_bytes, each.provenance, each.sbom
        )
        for each in push.images
    }


def _asked(oci: ImageReference, tags: Iterable[str], remote: ImageRegistry) -> ShownImage:
    """What the image registry says of an image. Its provenance is named by the index of one of `tags`."""
    manifest = remote.manifest(oci.repository, oci.digest)
    if manifest is None or manifest.is_index:
        return ShownImage(oci, in_registry=manifest is not None)
    parts = [manifest.document.get("config", {}), *manifest.document.get("layers", ())]
    return ShownImage(
        oci,
        in_registry=True,
        size_bytes=sum(int(part.get("size", 0)) for part in parts),
        provenance=next(_attestations(oci, tags, remote), None),
        sbom=min(remote.attached(oci.repository, oci.digest, artifact_type=SBOM), default=None),
    )


def _attestations(oci: ImageReference, tags: Iterable[str], remote: ImageRegistry) -> Iterator[str]:
    for tag in sorted(tags):
        index = remote.manifest(oci.repository, tag)
        for entry in entries(index.document) if index else ():
            if entry.digest == oci.digest and entry.attestation:
                yield entry.attestation.digest


def _pins(pins: Mapping[Platform, ImageReference | None]) -> dict[str, str | None]:
    return {str(platform): str(pin) if pin else None for platform, pin in pins.items()}
