"""Images of processors: what they are made from, and their build."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apps.processors import dockerfile, sources
from apps.processors.adapters.base import BaseImage, BuildRequest, BuiltImage, ImageBuilder, Progress
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.sources import Source
from apps.processors.spec import ProcessorSpec
from apps.processors.state import BuildRecord, LocalState
from apps.settings import Settings


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What `build` made."""

    ref: ProcessorRef
    engine: str
    tag: str
    source_digest: str
    images: tuple[BuiltImage, ...]
    skipped: tuple[Platform, ...]
    """Asked for, but the engine can't have them on this machine."""
    duration_ms: int

    def document(self) -> dict[str, Any]:
        """The contract's `processorctl build` document."""
        return {
            "status": "success",
            "ref": str(self.ref),
            "engine": self.engine,
            "tag": self.tag,
            "source_digest": self.source_digest,
            "images": [
                {
                    "platform": str(image.platform),
                    "digest": image.digest,
                    "image_id": image.image_id,
                    "size_bytes": image.size_bytes,
                }
                for image in self.images
            ],
            "skipped": [str(platform) for platform in self.skipped],
            "duration_ms": self.duration_ms,
        }


def build(
    spec: ProcessorSpec,
    platforms: tuple[Platform, ...],
    *,
    settings: Settings,
    builder: ImageBuilder,
    state: LocalState,
    progress: Progress,
) -> BuildResult:
    """Build the processor for `platforms` and record each with the pin that stands now.

    Raises BuildFailed, EngineFailed, ImageRegistryFailed (the base image), ConfigurationError.
    """
    began = time.monotonic()
    wanted = request(spec, platforms, settings=settings, builder=builder, progress=progress)
    possible = wanted.platforms
    built = tuple(builder.build(wanted, progress=progress)) if possible else ()
    state.record_builds(spec.ref, [_record(image, wanted, builder.engine, spec) for image in built])
    return BuildResult(
        ref=spec.ref,
        engine=builder.engine,
        tag=wanted.tag,
        source_digest=wanted.source_digest,
        images=built,
        skipped=tuple(platform for platform in platforms if platform not in possible),
        duration_ms=round((time.monotonic() - began) * 1000),
    )


def request(
    spec: ProcessorSpec,
    platforms: tuple[Platform, ...],
    *,
    settings: Settings,
    builder: ImageBuilder,
    progress: Progress,
) -> BuildRequest:
    """All that decides what a build of `spec` would make now, for those of `platforms` that can be built here.

    Raises BuildFailed, EngineFailed, ImageRegistryFailed (the base image), ConfigurationError.
    """
    possible = builder.platforms(platforms)
    base = builder.base(dockerfile.base_name(settings.root / spec.build.dockerfile))
    made_from = source(spec, settings.root, base, environment=settings.environment)
    if made_from.revision is None:
        progress(f"{spec.ref}: no commit is known that touched what it is built from; its images name no revision")
    return BuildRequest(
        ref=spec.ref,
        root=settings.root,
        context=settings.root / spec.build.context,
        dockerfile=settings.root / spec.build.dockerfile,
        repository=repository(spec, settings.repository_prefix),
        tag=f"{spec.ref.version}-{made_from.digest.removeprefix('sha256:')[:12]}",
        source_digest=made_from.digest,
        platforms=possible,
        base=base,
        revision=made_from.revision,
        created_epoch_s=made_from.created_epoch_s,
    )


def source(
    spec: ProcessorSpec, root: Path, base: BaseImage | None, *, environment: Mapping[str, str] | None = None
) -> Source:
    """What an image of `spec` would be made from now. registry.yaml is no part of it: a pin changes no image.

    `environment` is what git may see. Raises BuildFailed.
    """
    return sources.read(
        root,
        root / spec.build.context,
        root / spec.build.dockerfile,
        base=(base.name, base.digest) if base else None,
        environment=environment or {},
    )


def repository(spec: ProcessorSpec, prefix: str | None) -> str:
    """Where the images of `spec` belong; `prefix` takes the place of what is before the last slash."""
    if prefix is None:
        return spec.repository
    return f"{prefix.rstrip('/')}/{spec.repository.rpartition('/')[2]}"


def _record(image: BuiltImage, request: BuildRequest, engine: str, spec: ProcessorSpec) -> BuildRecord:
    pin = spec.pins.get(image.platform)
    return BuildRecord(
        engine=engine,
        platform=str(image.platform),
        tag=request.tag,
        source_digest=request.source_digest,
        digest=image.digest,
        image=image.image,
        image_id=image.image_id,
        size_bytes=image.size_bytes,
        pin=str(pin) if pin else None,
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
