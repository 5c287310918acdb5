"""What this checkout has: its processors with their pins and builds, and one of them in full."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apps.processors import registry
from apps.processors.reference import ImageReference, Platform, ProcessorRef
from apps.processors.registry import ProcessorSpec
from apps.processors.state import BuildRecord, LocalState


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
class Shown:
    """One processor in full."""

    spec: ProcessorSpec

    def document(self) -> dict[str, Any]:
        """The contract's `processorctl show` document."""
        spec = self.spec
        image = {"repository": spec.repository, "pins": _pins(spec.pins), "pull_secret": spec.pull_secret}
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


def show(root: Path, ref: ProcessorRef) -> Shown:
    """The processor `ref`. Raises RefNotFound, InvalidRegistry."""
    return Shown(registry.load(root, ref))


def _pins(pins: Mapping[Platform, ImageReference | None]) -> dict[str, str | None]:
    return {str(platform): str(pin) if pin else None for platform, pin in pins.items()}
