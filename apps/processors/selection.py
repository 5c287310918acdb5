"""Which image runs: the choice between pin and build, and what differs from it."""

from collections.abc import Collection
from typing import NamedTuple

from apps.errors import ConfigurationError, ImageNotFound
from apps.processors.reference import ImageReference, Platform, ProcessorRef
from apps.processors.spec import ProcessorSpec
from apps.processors.state import BuildRecord, ContainerRecord

# Named tuples: frozen dataclasses take four times as long to make, and every run pays for it.


class Selection(NamedTuple):
    """The image that `start` takes, and that everything which runs is compared with."""

    source: str
    """pin or build."""
    digest: str
    """What a container of it reports as its image: a manifest digest, or an image id where there is none."""
    image: str | None
    """What `Engine.launch` takes; None for a pin, which has to be found on the machine or pulled."""
    reference: ImageReference | None
    """The pin; None for a build."""
    platform: Platform
    notes: tuple[str, ...]
    """What a user should hear of the choice."""
    also: tuple[str, ...] = ()
    """What else names this image: a build that was started before its push reports its id."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.digest, *self.also))


def select(
    spec: ProcessorSpec,
    platform: Platform,
    *,
    builds: tuple[BuildRecord, ...],
    engine: str,
    gives_digests: bool,
    forced: str | None = None,
) -> Selection:
    """Choose between the newest build and the pin, without a clock and without asking the engine.

    The build wins while the pin of its platform is still the one that stood when it was made; a changed pin wins
    over the build. An engine that gives no digests knows no pins.

    Args:
        builds: the ref's, of all engines and platforms.
        forced: pin or build: take that one, whatever the rule says; None: the rule.

    Raises:
        ImageNotFound: there is neither, or not the one that is forced.
        ConfigurationError: a pin is forced on an engine that knows none.
    """
    made = next((each for each in builds if (each.engine, each.platform) == (engine, str(platform))), None)
    pin = spec.pins.get(platform)
    if not gives_digests:
        if forced == "pin":
            raise ConfigurationError(
                f"the {engine} engine knows no pins", hint="LOCAL_ENGINE=docker, or take the build"
            )
        notes = (
            (f"the pin of {spec.ref} for {platform} is ignored: the {engine} engine runs builds alone",) if pin else ()
        )
        return _built(spec, platform, made, notes)
    if forced == "build":
        return _built(spec, platform, made)
    if forced == "pin" or made is None:
        return _pinned(spec, platform, pin, made, forced=forced == "pin")
    if pin is None or made.pin == str(pin):
        return _built(spec, platform, made)
    note = f"the pin of {spec.ref} for {platform} changed after the last build: the pin is taken"
    return _pinned(spec, platform, pin, made, notes=() if pin.digest == made.digest else (note,))


def forced_note(ref: ProcessorRef, forced: str) -> str:
    """What a user should hear of a choice that `start` was told, there and whenever it counts."""
    if forced == "drift":
        return f"{ref}: --allow-drift at start: what runs is not compared with the registry until the next one"
    return f"{ref}: --source {forced} at start, which counts until the next one"


class Standard(NamedTuple):
    """What a container that was started is compared with until the next start."""

    selection: Selection
    spec_digest: str
    note: str | None
    """What a user should hear whenever a choice was forced at start."""


def standard(
    spec: ProcessorSpec,
    platform: Platform,
    record: ContainerRecord | None,
    *,
    builds: tuple[BuildRecord, ...],
    engine: str,
    gives_digests: bool,
) -> Standard:
    """What `start` would select now; where it was told otherwise at the last start, that. Raises as `select`."""
    forced = record.forced if record is not None else None
    if record is not None and forced == "drift" and record.platform == str(platform):
        kept = Selection(record.source, record.image_digest, None, None, platform, ())
        return Standard(kept, record.spec_digest, forced_note(spec.ref, forced))
    forced = forced if forced in ("build", "pin") else None
    selection = select(spec, platform, builds=builds, engine=engine, gives_digests=gives_digests, forced=forced)
    return Standard(selection, spec.spec_digest, forced_note(spec.ref, forced) if forced else None)


def difference(
    *, image: str, spec: str, selection: Selection, spec_now: str, known_as: Collection[str] = ()
) -> dict[str, str] | None:
    """Running and selected digest of the first thing that differs, image before spec; None without drift.

    `known_as` are further names of the running image, by the engine's word.
    """
    if selection.names.isdisjoint((image, *known_as)):
        return {"of": "image", "running": image, "selected": selection.digest}
    if spec != spec_now:
        return {"of": "spec", "running": spec, "selected": spec_now}
    return None


def _built(spec: ProcessorSpec, platform: Platform, made: BuildRecord | None, notes: tuple[str, ...] = ()) -> Selection:
    if made is None:
        raise ImageNotFound(f"{spec.ref} was not built for {platform}", hint=_build_line(spec, platform))
    return Selection("build", made.identity, made.image, None, platform, notes, made.identities[1:])


def _pinned(
    spec: ProcessorSpec,
    platform: Platform,
    pin: ImageReference | None,
    made: BuildRecord | None,
    *,
    notes: tuple[str, ...] = (),
    forced: bool = False,
) -> Selection:
    if pin is None:
        what = "has no pin" if forced else "was neither built nor pinned"
        raise ImageNotFound(f"{spec.ref} {what} for {platform}", hint=_build_line(spec, platform))
    also = made.identities[1:] if made is not None and made.digest == pin.digest else ()
    return Selection("pin", pin.digest, None, pin, platform, notes, also)


def _build_line(spec: ProcessorSpec, platform: Platform) -> str:
    return f"processorctl build --ref {spec.ref} --platforms {platform}"
