"""What is stored beside a pushed image: how it was built (provenance) and what is in it (a bill of materials)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from apps.errors import OperationError
from apps.processors.adapters.base import Artifact, BuildRequest, ImageRegistry, Progress, RemoteManifest
from apps.processors.attestations import MANIFEST, Descriptor, IndexEntry, Missing, attestation_manifest
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.state import BuildRecord

SBOM: Final = "application/vnd.cyclonedx+json"


class ProvenanceSource(Protocol):
    """What built an image and can tell how."""

    def provenance(
        self, request: BuildRequest, platform: Platform, digest: str, *, progress: Progress
    ) -> bytes | Missing:
        """An in-toto statement about the image whose manifest is `digest`, built as `request` says.

        It holds names, never values, and is the same for the same image. Raises BuildFailed, ImageRegistryFailed,
        EngineFailed, ConfigurationError.
        """
        ...


class Inventory(Protocol):
    """What can look into an image that is on this machine."""

    def sbom(
        self, image: str, *, ref: ProcessorRef, repository: str, platform: Platform, digest: str
    ) -> bytes | Missing:
        """A CycloneDX document (JSON) of the local `image`, which a registry has as `digest`; the same for the same
        image. Raises EngineFailed, ImageNotFound.
        """
        ...


@dataclass(frozen=True, slots=True)
class Proofs:
    """What a registry has about one image."""

    attestation: Descriptor | None
    """The manifest with its provenance, for the index; None without one."""
    sbom: str | None
    """Digest of the manifest that refers to the image; None without one."""


@dataclass(frozen=True, slots=True)
class Prover:
    """Makes proofs of images that were pushed, and stores them. What can't be made is said, and is no failure."""

    source: ProvenanceSource
    inventory: Inventory
    request: Callable[[], BuildRequest]
    """What a build would be made from now, asked for only when provenance has to be made."""
    registry: ImageRegistry
    progress: Progress
    detail: Progress = lambda _: None
    """Hears what the builder says while it tells how it built."""

    def prove(
        self, ref: ProcessorRef, build: BuildRecord, subject: RemoteManifest, *, standing: IndexEntry | None
    ) -> Proofs:
        """Have the registry hold provenance and SBOM of `subject`, the manifest that `build` was pushed as.

        Args:
            standing: what the tag's index has for this platform now. Proofs of the same digest are kept, not made.

        Raises:
            PushFailed, Unauthorized, ImageRegistryFailed: of the registry that they are stored in.
        """
        attestation = standing.attestation if standing and standing.digest == subject.digest else None
        return Proofs(attestation or self._attestation(build, subject), self._sbom(ref, build, subject))

    def _attestation(self, build: BuildRecord, subject: RemoteManifest) -> Descriptor | None:
        statement = self._made(build, "provenance", lambda: self._statement(build, subject))
        if statement is None:
            return None
        made = attestation_manifest(statement)
        for blob in made.blobs:
            self.registry.put_blob(subject.repository, blob)
        self.registry.put_manifest(subject.repository, made.descriptor.digest, made.manifest, media_type=MANIFEST)
        return made.descriptor

    def _statement(self, build: BuildRecord, subject: RemoteManifest) -> bytes | Missing:
        if build.image_id != subject.digest:  # an image's id there; nothing more has to be looked up
            return Missing("the classic image store keeps no provenance")
        request = self.request()
        if request.source_digest != build.source_digest:
            return Missing("its source changed since it was built")
        self.progress(f"{build.platform}: asking how it was built")
        return self.source.provenance(request, Platform.parse(build.platform), subject.digest, progress=self.detail)

    def _sbom(self, ref: ProcessorRef, build: BuildRecord, subject: RemoteManifest) -> str | None:
        there = self.registry.attached(subject.repository, subject.digest, artifact_type=SBOM)
        if there:
            return min(there)
        platform, repository = Platform.parse(build.platform), subject.repository
        self.progress(f"{platform}: looking what is in it")
        document = self._made(
            build,
            "SBOM",
            lambda: self.inventory.sbom(
                build.image, ref=ref, repository=repository, platform=platform, digest=subject.digest
            ),
        )
        return self.registry.attach(subject, Artifact(SBOM, document, {})) if document else None

    def _made(self, build: BuildRecord, what: str, make: Callable[[], bytes | Missing]) -> bytes | None:
        try:
            found = make()
        except OperationError as exc:  # the image is pushed, and as good without
            found = Missing(exc.message)
        if isinstance(found, Missing):
            self.progress(f"{build.platform}: no {what}: {found.reason}")
            return None
        return found
