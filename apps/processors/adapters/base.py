"""What services ask of the places around them: Protocols and the values that cross them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from apps.processors.reference import ImageReference, Platform, ProcessorRef

Progress = Callable[[str], None]
"""Takes one line for people: where a long step stands. Goes to stderr."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use."""

    cpu: float
    memory_bytes: int
    scratch_bytes: int
    gpu: str | None


@dataclass(frozen=True, slots=True)
class Launch:
    """One container to start."""

    name: str
    ref: ProcessorRef
    image: str
    """What `ImageBuilder` or `Engine.local_image` called it: opaque to services."""
    platform: Platform
    container_port: int
    host_port: int
    environment: Mapping[str, str]
    """All variables of the processor, secrets included; PORT, THEORY_BIND and THEORY_SCRATCH are the engine's."""
    labels: Mapping[str, str]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Container:
    """A container of ours, as its engine knows it now."""

    id: str
    name: str
    state: str
    """running, exited or dead."""
    labels: Mapping[str, str]
    host_port: int | None
    started_at: str | None
    """RFC 3339, UTC, milliseconds."""
    exit_status: int | None = None
    """Minus the signal's number where a signal ended it; None while it runs."""
    out_of_memory: bool = False
    image: str | None = None
    """Digest or id of what the engine made it from, by its own word, whatever the labels say; None: it can't tell."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a container wrote."""

    ts: str
    """RFC 3339, UTC, milliseconds."""
    stream: str
    """stdout or stderr."""
    line: str


class PortTaken(Exception):
    """`Engine.launch`: something else listens on the host port. Nothing was started."""


class NameTaken(Exception):
    """`Engine.launch`: a container of that name exists already. Nothing was started."""


class Engine(Protocol):
    """What runs processors on this machine. The same contract tests hold every engine.

    Every method raises EngineFailed when the engine does not answer (no permission included) and
    ConfigurationError when the configured engine can't be used at all.
    """

    name: str
    """docker or process."""
    isolation: str
    """What a container of this engine is kept apart by, in a word: container or host-process."""
    gives_digests: bool
    """Whether images have OCI digests here; where not, pins are ignored."""
    shares_files: bool
    """Whether a path of this machine is the same file inside: the caller's CA settings mean something there."""

    def platform(self) -> Platform:
        """The platform that images run on without emulation."""
        ...

    def local_image(self, digest: str, *, repository: str, platform: Platform) -> str | None:
        """The name to launch the image of manifest digest `digest` by, when it is on this machine. Never pulls."""
        ...

    def has_image(self, image: str) -> bool:
        """Whether `image` (as a builder named it) is still on this machine."""
        ...

    def image_names(self, image: str) -> frozenset[str]:
        """Every digest and id that the engine knows `image` (a `Container.image`) by, that one too."""
        ...

    def pull(self, image: ImageReference, platform: Platform, *, progress: Progress) -> str:
        """Fetch a pinned image; returns the name to launch it by.

        Raises ImagePullFailed, ImageNotFound (the registry has no such digest), Unauthorized.
        """
        ...

    def launch(self, launch: Launch) -> Container:
        """Start a container detached. Never builds, never pulls. A failure leaves nothing behind.

        Raises PortTaken, NameTaken, ImageNotFound.
        """
        ...

    def containers(self) -> list[Container]:
        """All containers of this checkout, running or not, found by label."""
        ...

    def stop(self, container: Container, *, grace_s: float) -> None:
        """Ask to end (SIGTERM), then end it after `grace_s`. A container that is gone is no error."""
        ...

    def remove(self, container: Container) -> None:
        """Remove a stopped container and its scratch space. A container that is gone is no error."""
        ...

    def logs(
        self, container: Container, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[LogLine]:
        """Lines in the order written, the last `tail` ones, from `since` (RFC 3339, UTC) on.

        With `follow`, goes on until the container ends.
        """
        ...


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One image to build, for some platforms. Everything that decides its bytes is in here."""

    ref: ProcessorRef
    root: Path
    context: Path
    dockerfile: Path
    repository: str
    """Prefix replaced already."""
    tag: str
    """`<version>-<12 hex of source_digest>`."""
    source_digest: str
    platforms: tuple[Platform, ...]
    base: "BaseImage | None"
    revision: str | None
    """Of the last commit that touched what the build reads."""
    created_epoch_s: int
    """When that commit was made, seconds since 1970; 0 without one."""


@dataclass(frozen=True, slots=True)
class BaseImage:
    """The image of the Dockerfile's last FROM, as really used."""

    name: str
    """As written, e.g. python:3.13-slim."""
    digest: str
    context: str | None
    """`docker-image://…@sha256:…`, when a named build context replaces it."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """One platform of a build."""

    platform: Platform
    digest: str | None
    """Manifest digest as a registry will show it; None where the image store does not know it before a push."""
    image: str
    """What `Engine.launch` takes, e.g. the local image id."""
    image_id: str
    size_bytes: int


class ImageBuilder(Protocol):
    """What makes images."""

    engine: str
    """The engine that runs what this builds."""

    def platforms(self, asked: tuple[Platform, ...]) -> tuple[Platform, ...]:
        """Those of `asked` that can be built here; the rest are skipped."""
        ...

    def base(self, name: str) -> BaseImage | None:
        """The base image `name` as it would be used now. Raises ImageRegistryFailed."""
        ...

    def build(self, request: BuildRequest, *, progress: Progress) -> list[BuiltImage]:
        """Build for `request.platforms`. Raises BuildFailed with the last lines, EngineFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An image that was built for comparison alone."""

    digest: str | None
    """As in BuiltImage: None where the image store does not know it before a push."""
    image_id: str


class Rebuilder(Protocol):
    """What builds without looking at anything that was built before."""

    def rebuild(self, request: BuildRequest, platform: Platform, archive: Path, *, progress: Progress) -> Rebuilt:
        """Build for one platform and write the image to the file `archive`, for `image_difference.compare`.

        No image or tag that was there is another one afterwards. Raises as ImageBuilder.build does.
        """
        ...


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest or an index, as a registry has it. Its bytes were hashed: `digest` is true."""

    repository: str
    digest: str
    media_type: str
    document: Mapping[str, Any]
    size_bytes: int
    """Of the document itself."""

    @property
    def is_index(self) -> bool:
        return "manifests" in self.document


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something that belongs to an image and is stored beside it: one blob under an OCI artifact manifest."""

    artifact_type: str
    """E.g. application/vnd.cyclonedx+json."""
    data: bytes
    annotations: Mapping[str, str]


class ImageRegistry(Protocol):
    """An OCI registry. Every call is bounded in time.

    Every method raises Unauthorized (it asks for a login, or the login does not allow it) and ImageRegistryFailed
    (it does not answer, breaks off, answers nonsense, or sends bytes that are not of the digest asked for).
    Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
    """

    def check_push(self, repository: str) -> None:
        """Find out whether we may write there, before any byte of an image moves. Raises PushFailed (read-only)."""
        ...

    def manifest(self, repository: str, reference: str) -> RemoteManifest | None:
        """What a tag or digest names there; None when nothing."""
        ...

    def platform(self, manifest: RemoteManifest) -> Platform | None:
        """The platform of an image's manifest, by its config; None for an index and for one we do not build for."""
        ...

    def blob(self, repository: str, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob whole, its digest checked."""
        ...

    def put_blob(self, repository: str, data: bytes) -> str:
        """Store a small blob (once) and return its digest. Raises PushFailed."""
        ...

    def put_manifest(self, repository: str, reference: str, document: bytes, *, media_type: str) -> str:
        """Store a manifest or an index under a tag or its digest, return its digest. Raises PushFailed."""
        ...

    def attach(self, subject: RemoteManifest, artifact: Artifact) -> str:
        """Store `artifact` as a referrer of `subject`, under the fallback tag too where the registry has no
        referrers API; returns the digest of its manifest. The same artifact again is stored once. Raises PushFailed.
        """
        ...

    def attached(self, repository: str, digest: str, *, artifact_type: str) -> list[str]:
        """Digests of the manifests of that type that refer to `digest`."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What a push did."""

    digest: str
    """Of the image's manifest, as the engine says."""
    layers: frozenset[str]
    """The first 12 hex digits of each layer that had to be sent whole: of its digest in the registry (containerd
    store) or of the digest of what is in it (classic store)."""


class ImagePusher(Protocol):
    """The engine, sending an image that it has."""

    def push(self, image: str, repository: str, tag: str, *, progress: Progress) -> Sent:
        """Tag the local `image` (as its builder named it) and send it; layers that are there are not sent again.

        `progress` hears of bytes, rate and time left, at most once a second. No progress for 60 s is a failure.
        Raises PushFailed, Unauthorized, ImageRegistryFailed, ImageNotFound, EngineFailed.
        """
        ...
