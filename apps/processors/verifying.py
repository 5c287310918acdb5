"""Whether what the registry promises is so: its pins at the image registry, the last builds, what runs here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from apps.errors import Drift, ImageNotFound, InvalidReference, OperationError, Unverified
from apps.processors import pinning
from apps.processors.adapters.base import Container, Engine, ImageRegistry
from apps.processors.containers import image_of
from apps.processors.reference import PLATFORMS, Platform, ProcessorRef
from apps.processors.selection import difference, select
from apps.processors.spec import ProcessorSpec
from apps.processors.state import BuildRecord, LocalState

SourceNow = Callable[[ProcessorSpec], str]
"""The digest of what a build of the processor would be made from now. Raises OperationError."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the registry says, or that nobody could say."""

    ref: str
    platform: str
    check: str
    """The column of its row."""
    known: bool
    """Whether it is a difference; else it could not be asked."""
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one platform of one processor. None where there is nothing to compare with."""

    ref: str
    platform: str
    pin: str | None
    registry: str | None = None
    """present, absent or unknown."""
    platform_ok: bool | None = None
    build: str | None = None
    """same: the last build on this machine is what is pinned; or differs."""
    source: str = "never built"
    """On this machine: built (as it is now), changed since, never built or unknown."""
    local: str = "not started"
    """What runs on this machine: same, differs, not started or unknown."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    def document(self) -> dict[str, Any]:
        """The document of a `processorctl verify` that found nothing."""
        return {"status": "success", "checked": [asdict(row) for row in self.rows]}

    def error(self) -> OperationError | None:
        """Drift for a difference, which outweighs an absence; Unverified for one; None when all agrees."""
        known = [each for each in self.findings if each.known]
        found = known or list(self.findings)
        if not found:
            return None
        more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
        return (Drift if known else Unverified)(
            f"{found[0].message}{more}",
            hint=found[0].hint,
            details={
                "findings": [_document(each) for each in self.findings],
                "checked": [asdict(row) for row in self.rows],
            },
        )


def _document(finding: Finding) -> dict[str, Any]:
    names = ("ref", "platform", "check", "message", "hint")
    kind = "difference" if finding.known else "unverified"
    return {"kind": kind, **{name: getattr(finding, name) for name in names}}


def verify(
    specs: Sequence[ProcessorSpec],
    *,
    images_at: ImageRegistry,
    engines: Sequence[Engine],
    state: LocalState,
    built_for: str,
    source_now: SourceNow,
) -> Verified:
    """Compare each processor's pins with the image registry, its last builds and what runs here.

    Args:
        engines: those that may have something of this checkout running.
        built_for: the engine whose builds count.
    """
    here = _Here.ask(engines, state)
    rows, findings = [], []
    for spec in specs:
        source = _Source(spec, state.builds(spec.ref), built_for, source_now)
        for platform in PLATFORMS:
            check = _Check(spec, platform)
            check.at_registry(images_at)
            check.against_build(source)
            check.against_running(here, state)
            rows.append(check.row)
            findings += check.findings
    return Verified(tuple(rows), tuple(findings))


class _Source:
    """A processor's builds and the source as it is now, which is read once and only where there is a build."""

    def __init__(self, spec: ProcessorSpec, builds: tuple[BuildRecord, ...], engine: str, now: SourceNow) -> None:
        self._spec, self._now = spec, now
        self._builds = {each.platform: each for each in builds if each.engine == engine}
        self._digest: str | OperationError | None = None

    def build(self, platform: Platform) -> BuildRecord | None:
        return self._builds.get(str(platform))

    @property
    def digest(self) -> str:
        """Raises OperationError."""
        if self._digest is None:
            try:
                self._digest = self._now(self._spec)
            except OperationError as exc:
                self._digest = exc
        if isinstance(self._digest, OperationError):
            raise self._digest
        return self._digest


@dataclass(frozen=True, slots=True)
class _Here:
    """What runs on this machine, as far as the engines answer."""

    running: tuple[tuple[Engine, Container], ...]
    silent: dict[str, OperationError]
    """Engines that did not answer."""

    @classmethod
    def ask(cls, engines: Sequence[Engine], state: LocalState) -> "_Here":
        running: list[tuple[Engine, Container]] = []
        silent: dict[str, OperationError] = {}
        for engine in engines:
            try:
                running += [(engine, each) for each in engine.containers() if each.state == "running"]
            except OperationError as exc:
                silent[engine.name] = exc
        return cls(tuple(running), silent)

    def of(self, ref: ProcessorRef, platform: Platform) -> Iterator[tuple[Engine, Container]]:
        for engine, container in self.running:
            labels = container.labels
            at = labels.get("theory.platform") or str(engine.platform())  # not one of ours, but under our name
            if (labels.get("theory.ref"), at) == (str(ref), str(platform)):
                yield engine, container


class _Check:
    """One platform of one processor, step by step."""

    def __init__(self, spec: ProcessorSpec, platform: Platform) -> None:
        self.spec, self.platform = spec, platform
        self.pin = spec.pins[platform]
        self.row = Row(str(spec.ref), str(platform), str(self.pin) if self.pin else None)
        self.findings: list[Finding] = []
        self._which = f"--ref {spec.ref} --platform {platform.architecture}"

    def at_registry(self, images_at: ImageRegistry) -> None:
        if self.pin is None:
            return
        try:
            pinning.check(pinning.Asked(self.spec.ref, self.platform, self.pin), images_at)
            self.row = replace(self.row, registry="present", platform_ok=True)
        except ImageNotFound as exc:
            self.row = replace(self.row, registry="absent")
            self._differs("registry", exc.message, exc.hint)
        except InvalidReference as exc:
            self.row = replace(self.row, registry="present", platform_ok=False)
            self._differs("platform_ok", exc.message, exc.hint)
        except OperationError as exc:
            self.row = replace(self.row, registry="unknown")
            self._unknown("registry", exc)

    def against_build(self, source: _Source) -> None:
        made = source.build(self.platform)
        if made is None:
            return
        if self.pin is not None:
            same = self.pin.digest in made.identities
            self.row = replace(self.row, build="same" if same else "differs")
            if not same:
                self._differs("build", f"the last build is {made.identity}, pinned is {self.pin}", self._push_line())
        try:
            current = source.digest == made.source_digest
        except OperationError as exc:
            self.row = replace(self.row, source="unknown")
            if self.pin is not None:
                self._unknown("source", exc)
            return
        self.row = replace(self.row, source="built" if current else "changed since")
        if not current and self.pin is not None:
            hint = f"processorctl build --ref {self.spec.ref}, then push and pin it"
            self._differs("source", f"the source has changed since {made.tag} was built", hint)

    def against_running(self, here: _Here, state: LocalState) -> None:
        record = state.container(self.spec.ref)
        if record is not None and record.engine in here.silent and record.platform == str(self.platform):
            self.row = replace(self.row, local="unknown")
            self._unknown("local", here.silent[record.engine])
        for engine, container in here.of(self.spec.ref, self.platform):
            try:
                found = self._difference(engine, container, state)
            except OperationError as exc:
                self.row = replace(self.row, local="unknown")
                self._unknown("local", exc)
                continue
            self.row = replace(self.row, local="differs" if found else "same")
            if found is not None:
                message = f"the running {found['of']} is {found['running']}, {found['selected']} is expected"
                self._differs("local", message, f"localctl start {self._which}")

    def _difference(self, engine: Engine, container: Container, state: LocalState) -> dict[str, str] | None:
        """Against the pin, whatever was forced at start; without one against what would be started."""
        forced = "pin" if self.pin is not None and engine.gives_digests else None
        selection = select(
            self.spec,
            self.platform,
            builds=state.builds(self.spec.ref),
            engine=engine.name,
            gives_digests=engine.gives_digests,
            forced=forced,
        )
        image, names = image_of(engine, container)
        spec = container.labels.get("theory.spec", "")
        return difference(image=image, spec=spec, selection=selection, spec_now=self.spec.spec_digest, known_as=names)

    def _push_line(self) -> str:
        return f"processorctl push --ref {self.spec.ref}, then pin what it says"

    def _differs(self, check: str, message: str, hint: str) -> None:
        self._add(check, message, hint, known=True)

    def _unknown(self, check: str, exc: OperationError) -> None:
        self._add(check, exc.message, exc.hint, known=False)

    def _add(self, check: str, message: str, hint: str, *, known: bool) -> None:
        words = f"{self.spec.ref} for {self.platform}: {message}"
        self.findings.append(Finding(str(self.spec.ref), str(self.platform), check, known, words, hint))
