"""Service: build an image twice, without cache, and tell whether it is the same image."""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from apps.errors import BuildFailed, ConfigurationError
from apps.processors import images, sources
from apps.processors.adapters.base import BuildRequest, ImageBuilder, Progress, Rebuilder, Rebuilt
from apps.processors.image_difference import ImageDifference, LayerDifference, compare
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.spec import ProcessorSpec
from apps.settings import Settings


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two builds for one platform."""

    platform: Platform
    first: Rebuilt
    second: Rebuilt
    difference: ImageDifference | None
    """None when both are one image."""

    def document(self) -> dict[str, Any]:
        if self.difference is None:
            return {"platform": str(self.platform), **asdict(self.first)}
        return {
            "platform": str(self.platform),
            "first": asdict(self.first),
            "second": asdict(self.second),
            **asdict(self.difference),
        }


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What `check` found."""

    ref: ProcessorRef
    engine: str
    source_digest: str
    images: tuple[Comparison, ...]
    duration_ms: int

    def document(self) -> dict[str, Any]:
        """The document of a `processorctl build --check-reproducible` that found no difference."""
        return {
            "status": "success",
            "ref": str(self.ref),
            "engine": self.engine,
            "source_digest": self.source_digest,
            "reproducible": True,
            "images": [each.document() for each in self.images],
            "duration_ms": self.duration_ms,
        }

    def error(self) -> BuildFailed | None:
        """What differs, in details.images; None when nothing does."""
        found = [each for each in self.images if each.difference]
        if not found:
            return None
        findings = list(_findings(found))
        where, what = findings[0]
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        return BuildFailed(
            f"{self.ref} is not reproducible: two builds differ in {what}{more}; {where}",
            hint="give every file a fixed content, mode and time: see docs/guides/building.md",
            details={"reproducible": False, "images": [each.document() for each in found]},
        )

    def text(self) -> str:
        """For people: the digests, or all that differs."""
        agreed = [each for each in self.images if each.difference is None]
        lines = [f"{self.ref} {each.platform} is {each.first.digest or each.first.image_id} twice" for each in agreed]
        for where, found in groupby(_findings(self.images), key=itemgetter(0)):
            lines += [f"{where} differs in", *(f"  {what}" for _, what in found)]
        return "\n".join(lines)


def check(
    spec: ProcessorSpec,
    platforms: tuple[Platform, ...],
    *,
    settings: Settings,
    builder: ImageBuilder,
    rebuilder: Rebuilder | None,
    progress: Progress,
) -> Reproduced:
    """Build twice for each platform and compare. The second build reads a copy of the source that differs from it in
    what no clone has to have in common: where it lies, times, the modes that a umask decides.

    What was built and recorded before stays as it is. Takes as much disk as two archives of the image. Raises
    ConfigurationError (no `rebuilder`: this engine makes no images), BuildFailed, EngineFailed, ImageRegistryFailed.
    """
    if rebuilder is None:
        raise ConfigurationError(
            f"the {builder.engine} engine makes no images that could be compared", hint="LOCAL_ENGINE=docker"
        )
    began_s = time.monotonic()
    request = images.request(spec, platforms, settings=settings, builder=builder, progress=progress)
    with tempfile.TemporaryDirectory(prefix="theory-reproducing-") as folder:
        compared = _Compared(Path(folder), request, rebuilder, progress)
        found = tuple(compared.platform(platform) for platform in request.platforms)
    return Reproduced(
        ref=spec.ref,
        engine=builder.engine,
        source_digest=request.source_digest,
        images=found,
        duration_ms=round((time.monotonic() - began_s) * 1000),
    )


class _Compared:
    """The two builds of a request; what they write is in `folder`."""

    def __init__(self, folder: Path, request: BuildRequest, rebuilder: Rebuilder, progress: Progress) -> None:
        self._folder, self._rebuilder, self._progress = folder, rebuilder, progress
        context, dockerfile = sources.copy(request.context, request.dockerfile, folder / "elsewhere")
        self._requests = (request, replace(request, context=context, dockerfile=dockerfile))

    def platform(self, platform: Platform) -> Comparison:
        archives = (self._folder / "first.tar", self._folder / "second.tar")
        made = []
        for request, archive, word in zip(self._requests, archives, ("first", "second"), strict=True):
            self._progress(f"{request.ref} for {platform}, {word} of two builds without cache")
            made.append(self._rebuilder.rebuild(request, platform, archive, progress=self._progress))
        first, second = made
        difference = compare(*archives) if first != second else None
        for archive in archives:
            archive.unlink()
        return Comparison(platform, first, second, difference)


def _findings(compared: Iterable[Comparison]) -> Iterable[tuple[str, str]]:
    """Where, and what differs there."""
    for each in compared:
        if each.difference is None:
            continue
        for layer in each.difference.layers:
            where = f"{each.platform}, layer {layer.index}: {_shortened(layer.created_by or 'unknown step')}"
            yield from ((where, what) for what in _of_layer(layer))
        if each.difference.config:
            yield f"{each.platform}, configuration", ", ".join(each.difference.config)
        if not (each.difference.layers or each.difference.config):
            yield f"{each.platform}, manifest", "the digests alone"


def _of_layer(layer: LayerDifference) -> Iterable[str]:
    if layer.differs == "presence":
        yield "one of the builds has it alone"
    elif not layer.files:
        yield f"its {layer.differs}, no file"
    for file in layer.files:
        yield f"/{file.path} ({', '.join(file.differs).replace('_', ' in the ')})"
    if layer.more:
        yield f"{layer.more} more files"


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"
