"""Push a processor's images to its image registry: each platform, then the index over them, then ask back."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from apps.errors import ConfigurationError, ImageNotFound, InvalidReference, PushFailed
from apps.processors.adapters.base import Engine, ImagePusher, ImageRegistry, Progress, RemoteManifest, Sent
from apps.processors.attestations import INDEX, Descriptor, IndexEntry, entries, index
from apps.processors.proving import Proofs, Prover
from apps.processors.reference import ImageReference, Platform, ProcessorRef
from apps.processors.spec import ProcessorSpec
from apps.processors.state import BuildRecord, LocalState, PushedImage, PushRecord

_CONFIG_LIMIT_BYTES: Final = 4 * 1024**2
_NO_PROOFS: Final = Proofs(None, None)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What `push` did."""

    ref: ProcessorRef
    record: PushRecord
    uploaded: tuple[int, ...]
    """Bytes of layers that had to be sent, for each of the record's images."""
    duration_ms: int

    def document(self) -> dict[str, Any]:
        """The contract's `processorctl push` document."""
        record = self.record
        return {
            "status": "success",
            "ref": str(self.ref),
            "repository": record.repository,
            "tag": record.tag,
            "index": f"{record.repository}@{record.index}",
            "images": [
                {
                    "platform": image.platform,
                    "oci": f"{record.repository}@{image.digest}",
                    "size_bytes": image.size_bytes,
                    "uploaded_bytes": uploaded,
                    "provenance": image.provenance is not None,
                    "sbom": image.sbom,
                }
                for image, uploaded in zip(record.images, self.uploaded, strict=True)
            ],
            "pin": list(self.pin_lines()),
            "duration_ms": self.duration_ms,
        }

    def pin_lines(self) -> tuple[str, ...]:
        """What to type to pin what was pushed."""
        return tuple(
            f"processorctl pin --ref {self.ref} --platform {Platform.parse(image.platform).architecture}"
            f" --oci {self.record.repository}@{image.digest}"
            for image in self.record.images
        )


@dataclass(frozen=True, slots=True)
class _Image:
    """One platform, as the image registry has it now."""

    platform: Platform
    manifest: RemoteManifest
    uploaded_bytes: int
    proofs: Proofs

    def entry(self) -> IndexEntry:
        of = self.manifest
        return IndexEntry(self.platform, of.digest, of.size_bytes, of.media_type, self.proofs.attestation)

    def record(self) -> PushedImage:
        size_bytes = sum(int(part["size"]) for part in _parts(self.manifest))
        attestation, sbom = self.proofs.attestation, self.proofs.sbom
        provenance = attestation.digest if attestation else None
        return PushedImage(str(self.platform), self.manifest.digest, provenance, sbom, size_bytes)


def push(
    spec: ProcessorSpec,
    platforms: tuple[Platform, ...],
    *,
    repository: str,
    engine: Engine,
    registry: ImageRegistry,
    pusher: ImagePusher,
    prover: Prover,
    state: LocalState,
    progress: Progress,
) -> Pushed:
    """Send the ref's last builds for `platforms` to `repository`, then name them by an index under the build's tag.

    What is there already is not sent. Provenance and SBOM are stored beside each image, where they can be made.
    Platforms that the tag has and that are not asked for stay in it: it names one source. The tag is changed last: a
    failure before leaves it as it was.

    Raises:
        ImageNotFound: a platform was not built, its image is gone, or the builds are of different sources.
        ConfigurationError: this engine makes no images, or `repository` is no name of one.
        Unauthorized, PushFailed, ImageRegistryFailed, EngineFailed.
    """
    began_s = time.monotonic()
    _check_repository(repository)
    builds = _builds(spec, platforms, engine, state)
    registry.check_push(repository)
    there = _Repository(repository, registry, pusher, progress)
    tag = builds[platforms[0]].tag
    standing = _entries(registry.manifest(repository, tag))
    images = []
    for platform, build in builds.items():
        image = there.image(platform, build)
        state.record_digest(spec.ref, build, image.manifest.digest)
        proofs = prover.prove(spec.ref, build, image.manifest, standing=standing.get(platform))
        images.append(replace(image, proofs=proofs))
    record = PushRecord(
        repository=repository,
        tag=tag,
        index=there.put_index(tag, images),
        images=tuple(image.record() for image in images),
        pushed_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
    state.record_push(spec.ref, record)
    return Pushed(
        ref=spec.ref,
        record=record,
        uploaded=tuple(image.uploaded_bytes for image in images),
        duration_ms=round((time.monotonic() - began_s) * 1000),
    )


def _check_repository(repository: str) -> None:
    try:
        ImageReference(repository, f"sha256:{'0' * 64}")
    except InvalidReference as exc:
        raise ConfigurationError(
            f"{repository!r} is no image repository",
            hint="see image.repository in registry.yaml and PROCESSOR_REPOSITORY_PREFIX (host[:port]/path)",
        ) from exc


def _builds(
    spec: ProcessorSpec, platforms: tuple[Platform, ...], engine: Engine, state: LocalState
) -> dict[Platform, BuildRecord]:
    """The last build for each platform: all there, of one source, their images still on this machine."""
    if not engine.gives_digests:
        raise ConfigurationError(
            f"the {engine.name} engine makes no images that could be pushed", hint="LOCAL_ENGINE=docker"
        )
    line = f"processorctl build --ref {spec.ref} --platforms {','.join(map(str, platforms))}"
    made = {Platform.parse(each.platform): each for each in state.builds(spec.ref) if each.engine == engine.name}
    if missing := [str(platform) for platform in platforms if platform not in made]:
        raise ImageNotFound(f"{spec.ref} was not built for {', '.join(missing)}", hint=line)
    builds = {platform: made[platform] for platform in platforms}
    if len({(build.tag, build.source_digest) for build in builds.values()}) > 1:
        tags = ", ".join(f"{build.tag} for {platform}" for platform, build in builds.items())
        raise ImageNotFound(f"the last builds of {spec.ref} are of different sources: {tags}", hint=line)
    for platform, build in builds.items():
        if not engine.has_image(build.image):
            raise ImageNotFound(
                f"the last build of {spec.ref} for {platform} is not on this machine any more", hint=line
            )
    return builds


@dataclass(frozen=True, slots=True)
class _Repository:
    """Where the images go. Whatever is sent is read back, and its digest compared."""

    name: str
    registry: ImageRegistry
    pusher: ImagePusher
    progress: Progress

    def image(self, platform: Platform, build: BuildRecord) -> _Image:
        """The build, sent unless it is there."""
        if build.digest and (manifest := self.registry.manifest(self.name, build.digest)):
            self.progress(f"{platform} is there already: {self.name}@{build.digest}")
            return _Image(platform, manifest, 0, _NO_PROOFS)
        tag = f"{build.tag}-{platform.architecture}"
        self.progress(f"pushing {platform} to {self.name}:{tag}")
        sent = self.pusher.push(build.image, self.name, tag, progress=lambda line: self.progress(f"{platform}: {line}"))
        # The containerd store knows the digest beforehand: there an image's id is its digest.
        if build.digest == build.image_id != sent.digest:
            raise PushFailed(
                f"{platform} was built as {build.digest} and pushed as {sent.digest}", hint="build and push it again"
            )
        manifest = self._read_back(sent.digest, sent.digest)
        return _Image(platform, manifest, self._uploaded_bytes(manifest, sent), _NO_PROOFS)

    def put_index(self, tag: str, images: Iterable[_Image]) -> str:
        """Have `tag` name the index over `images` and what it names for other platforms; returns its digest."""
        found = self.registry.manifest(self.name, tag)  # asked now: another platform may have been pushed meanwhile
        document = index((_entries(found) | {image.platform: image.entry() for image in images}).values())
        digest = Descriptor.of(document, INDEX).digest
        if found is None or found.digest != digest:
            self.registry.put_manifest(self.name, tag, document, media_type=INDEX)
            self._read_back(tag, digest)
        return digest

    def _read_back(self, reference: str, digest: str) -> RemoteManifest:
        found = self.registry.manifest(self.name, reference)
        if found is None or found.digest != digest:
            has = found.digest if found else "nothing"
            raise PushFailed(
                f"{self.name} was sent {digest} and has {has} under {reference}",
                hint=f"push again; does somebody else push there? see: docker buildx imagetools inspect {self.name}",
            )
        return found

    def _uploaded_bytes(self, manifest: RemoteManifest, sent: Sent) -> int:
        """What the layers that were sent take in the registry."""
        sizes = {_short(part["digest"]): int(part["size"]) for part in _parts(manifest)}
        if sent.layers - sizes.keys():  # the classic store names layers by what is in them
            config = self.registry.blob(
                self.name, manifest.document["config"]["digest"], limit_bytes=_CONFIG_LIMIT_BYTES
            )
            contents = json.loads(config)["rootfs"]["diff_ids"]
            layers = manifest.document["layers"]
            sizes |= {_short(name): int(layer["size"]) for name, layer in zip(contents, layers, strict=True)}
        return sum(sizes.get(layer, 0) for layer in sent.layers)


def _entries(found: RemoteManifest | None) -> dict[Platform, IndexEntry]:
    """What a tag names."""
    return {entry.platform: entry for entry in entries(found.document)} if found and found.is_index else {}


def _parts(manifest: RemoteManifest) -> list[dict[str, Any]]:
    return [manifest.document["config"], *manifest.document["layers"]]


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
