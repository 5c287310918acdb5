"""Pins: put one into registry.yaml, ask the image registry about it first, put the previous one back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.errors import ConfigurationError, ImageNotFound, InvalidReference
from apps.processors import attestations, git, images, registry
from apps.processors.adapters.base import ImageRegistry, RemoteManifest
from apps.processors.atomic import exclusive_lock
from apps.processors.reference import ImageReference, Platform, ProcessorRef
from apps.processors.state import LocalState

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to pin."""

    ref: ProcessorRef
    platform: Platform
    image: ImageReference
    revision: str | None = None
    """The commit that it was found in, for a rollback."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """What `pin` did."""

    asked: Asked
    previous: ImageReference | None

    @property
    def changed(self) -> bool:
        return self.previous != self.asked.image

    def document(self) -> dict[str, Any]:
        """The contract's `processorctl pin` document; a rollback says which commit the pin is from."""
        asked = self.asked
        return {
            "status": "success",
            "ref": str(asked.ref),
            "platform": str(asked.platform),
            "oci": str(asked.image),
            "previous": str(self.previous) if self.previous else None,
            "changed": self.changed,
            **({"revision": asked.revision} if asked.revision else {}),
        }

    def text(self) -> str:
        asked = self.asked
        if not self.changed:
            return f"{asked.ref} is pinned to {asked.image} for {asked.platform} already"
        origin = f" (of commit {asked.revision[:12]})" if asked.revision else ""
        before = f", before to {self.previous.digest}" if self.previous else ""
        return f"{asked.ref} is pinned to {asked.image} for {asked.platform}{origin}{before}"


def pin(
    asked: Asked, *, root: Path, prefix: str | None, state: LocalState, images_at: ImageRegistry | None, warn: Warn
) -> Pinned:
    """Make `asked.image` the pin of its platform: one line of registry.yaml.

    Args:
        prefix: PROCESSOR_REPOSITORY_PREFIX: a repository under it is as expected as registry.yaml's own.
        images_at: asked first whether the digest is an image of that platform; None: nobody is asked.

    Raises RefNotFound, InvalidRegistry, ConfigurationError; when asked: ImageNotFound, InvalidReference,
    Unauthorized, ImageRegistryFailed.
    """
    spec = registry.load(root, asked.ref)
    if asked.image.repository not in (spec.repository, images.repository(spec, prefix)):
        warn(f"{asked.image.repository} is not the repository of {asked.ref}, which is {spec.repository}")
    if images_at is not None:
        check(asked, images_at)
    with exclusive_lock(state.folder / "locks" / "registry.lock"):
        previous = registry.pin(root, asked.ref, asked.platform, asked.image)
    return Pinned(asked, previous)


def previous(ref: ProcessorRef, platform: Platform, *, root: Path, environment: Mapping[str, str]) -> Asked:
    """The pin before the present one: that of the newest committed registry.yaml which holds another.

    Versions without a pin of the platform are passed over. `environment` is what git may see.
    Raises RefNotFound, InvalidRegistry, ConfigurationError (no git, no repository), ImageNotFound (no other pin).
    """
    spec = registry.load(root, ref)
    for revision, text in git.versions(spec.file, environment=environment):
        image = registry.pin_in(text, platform)
        if image is not None and image != spec.pins[platform]:
            return Asked(ref, platform, image, revision)
    if git.is_shallow(spec.file.parent, environment=environment):
        raise ConfigurationError(
            f"this shallow clone holds no other pin of {ref} for {platform}", hint="git fetch --unshallow"
        )
    raise ImageNotFound(
        f"no commit of {spec.file.relative_to(root)} holds another pin for {platform}",
        hint=f"name one: processorctl pin --ref {ref} --platform {platform.architecture} --oci REPOSITORY@DIGEST",
    )


def check(asked: Asked, images_at: ImageRegistry) -> None:
    """Ask the image registry whether the digest is there, and the manifest of an image of the platform.

    Raises ImageNotFound, InvalidReference, Unauthorized, ImageRegistryFailed.
    """
    image, platform = asked.image, asked.platform
    found = images_at.manifest(image.repository, image.digest)
    if found is None:
        raise ImageNotFound(f"{image} is not in the image registry", hint=f"processorctl push --ref {asked.ref}")
    if found.is_index:
        entries = platforms_of(found)
        lines = ", ".join(f"{each} {entry}" for each, entry in entries.items())
        raise InvalidReference(
            f"{image} is an index; a pin holds one platform's manifest",
            hint=f"pin one of its images: {lines}" if entries else "it has no image for linux/amd64 or linux/arm64",
            details={"images": [{"platform": str(each), "oci": str(entry)} for each, entry in entries.items()]},
        )
    actual = images_at.platform(found)
    if actual != platform:
        raise InvalidReference(
            f"{image} is {f'for {actual}' if actual else 'no image of a platform that we build for'}, not {platform}",
            hint=f"processorctl pin --ref {asked.ref} --platform {actual.architecture} --oci {image}" if actual else "",
            details={"platform": str(actual) if actual else None},
        )


def platforms_of(index: RemoteManifest) -> dict[Platform, ImageReference]:
    """The images of an index by platform. An entry for an attestation is none.

    Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-index.md
    """
    return {
        entry.platform: ImageReference(index.repository, entry.digest)
        for entry in attestations.entries(index.document)
        if entry.digest.startswith("sha256:")
    }
