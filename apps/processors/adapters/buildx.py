"""ImageBuilder over `docker buildx`, on the engine of the docker context (or DOCKER_HOST) in effect."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from apps.errors import ConfigurationError, EngineFailed, TimedOut
from apps.processors.adapters import build_secrets, command, docker_endpoint
from apps.processors.adapters.base import BaseImage, BuildRequest, BuiltImage, Progress, Rebuilt
from apps.processors.adapters.buildx_errors import IMAGE, INSTALL, context_name, no_engine, translate, unresolved
from apps.processors.image_difference import digest
from apps.processors.reference import Platform

ANSWER_S: Final = 60.0
"""What the engine, or an image registry, gets to answer one question."""
SAVE_S: Final = 1800.0
"""What the engine gets to write an image to a file."""


class BuildxBuilder:
    """An `ImageBuilder` for OCI images; each is tagged `<repository>:<tag>-<arch>`.

    Args:
        environment: of the docker command: PATH, HOME, DOCKER_*, proxies.
        contexts: NAME → VALUE of --build-context.
        secrets: words of --secret, as typed.
        caller: the folder that files and folders of these are relative to.
    """

    engine = "docker"

    def __init__(
        self,
        environment: Mapping[str, str],
        contexts: Mapping[str, str],
        secrets: Sequence[str],
        caller: Path,
    ) -> None:
        self._environment, self._caller = environment, caller
        self._contexts = {context_name(name): value for name, value in contexts.items()}
        self._secrets = tuple(secrets)

    def platforms(self, asked: tuple[Platform, ...]) -> tuple[Platform, ...]:
        """All of them: the Dockerfile sees to it that nothing foreign has to be executed."""
        return asked

    def base(self, name: str) -> BaseImage | None:
        """The image that `FROM name` would mean now; None for scratch.

        A named build context goes first; then what the registry says, then, when it does not say, this machine.
        Raises ImageRegistryFailed, BuildFailed (no such image), ConfigurationError, EngineFailed.
        """
        self._check()
        if name == "scratch":
            return None
        mapped = self._contexts.get(context_name(name))
        if mapped is not None and not mapped.startswith(IMAGE):
            raise ConfigurationError(
                f"PROCESSOR_BUILD_CONTEXTS maps the base image {name} to {mapped!r}, whose digest can't be known",
                hint=f"PROCESSOR_BUILD_CONTEXTS={name}={IMAGE}<repository>[:tag]",
            )
        reference = mapped.removeprefix(IMAGE) if mapped else name
        digest, pinned = self._resolve(reference)
        return BaseImage(name, digest, f"{IMAGE}{pinned}" if mapped or pinned != name else None)

    def build(self, request: BuildRequest, *, progress: Progress) -> list[BuiltImage]:
        """Build for each platform. Raises BuildFailed (the last lines), ImageRegistryFailed, EngineFailed."""
        self._check()
        platforms = request.platforms
        with tempfile.TemporaryDirectory() as folder:
            if len(platforms) > 1 and self._store.containerd:
                # All at once, into BuildKit's cache: a quarter less time on two cores. The classic store can't.
                self._buildx(request, platforms, ["--output=type=cacheonly"], Path(folder), progress)
            return [self._image(request, platform, Path(folder), progress) for platform in platforms]

    @property
    def attests(self) -> bool:
        """Whether this engine's BuildKit writes provenance: with the classic image store it does not."""
        return self._store.containerd

    def export(self, request: BuildRequest, platform: Platform, file: Path, *, progress: Progress) -> None:
        """Write what `build` built once more, out of BuildKit's cache: an OCI archive with all of its provenance.

        Raises as `build` does; only where `attests`.
        """
        output = [f"--output=type=oci,oci-mediatypes=true,dest={file}", "--provenance=mode=max,version=v0.2"]
        self._buildx(request, (platform,), output, file.parent, progress)

    def rebuild(self, request: BuildRequest, platform: Platform, archive: Path, *, progress: Progress) -> Rebuilt:
        """A `Rebuilder`: see there."""
        self._check()
        if self._store.containerd:
            options = ["--no-cache", f"--output=type=oci,oci-mediatypes=true,dest={archive}"]
            with tempfile.TemporaryDirectory() as folder:
                self._buildx(request, (platform,), options, Path(folder), progress)
            made = digest(archive)
            return Rebuilt(made, made)
        return self._rebuild_classic(request, platform, archive, progress)

    def _rebuild_classic(self, request: BuildRequest, platform: Platform, archive: Path, progress: Progress) -> Rebuilt:
        """By way of the store, the only way there; an image that was not in it before is removed again."""
        before = self._docker("image", "ls", "--all", "--quiet", "--no-trunc").stdout.split()
        with tempfile.TemporaryDirectory() as folder:
            metadata = Path(folder) / "metadata.json"
            options = ["--no-cache", "--output=type=docker,oci-mediatypes=true", f"--metadata-file={metadata}"]
            self._buildx(request, (platform,), options, Path(folder), progress)
            image = str(json.loads(metadata.read_text("utf-8"))["containerimage.digest"])
        try:
            saved = self._docker("image", "save", f"--output={archive}", image, timeout_s=SAVE_S)
            if saved.status:
                raise EngineFailed(
                    f"the engine can't write the image {image}: {saved.stderr.strip()}", hint="try again"
                )
        finally:
            if image not in before:
                self._docker("image", "rm", image)
        return Rebuilt(None, image)

    @cached_property
    def hidden(self) -> list[str]:
        """Values of the build's secrets: no message and no document may show them. Raises ConfigurationError."""
        return build_secrets.values(self._secrets, self._environment, self._caller)

    def _check(self) -> None:
        """Everything that can be wrong before anything is looked up or built; asked once."""
        docker_endpoint.find(self._environment)  # what is built elsewhere can be neither started here nor pushed
        _ = self._store, self.hidden

    def _image(self, request: BuildRequest, platform: Platform, folder: Path, progress: Progress) -> BuiltImage:
        tag = f"{request.repository}:{request.tag}-{platform.architecture}"
        metadata = folder / f"{platform.architecture}.json"
        # OCI media types, so that the manifest's digest is the same here and in every registry; the classic store
        # takes the option and writes what it can.
        options = [f"--tag={tag}", f"--metadata-file={metadata}", "--output=type=docker,oci-mediatypes=true"]
        self._buildx(request, (platform,), options, folder, progress)
        # By the image's id: by now the tag may name the image of another build.
        digest = str(json.loads(metadata.read_text("utf-8"))["containerimage.digest"])
        image = self._inspect(digest)
        if image is None:
            raise EngineFailed(f"the engine has no image {digest} after building it", hint="build again")
        return BuiltImage(
            platform=platform,
            # The classic store's id is the digest of its config, which no registry will ever show.
            digest=digest if self._store.containerd else None,
            image=digest,
            image_id=digest,
            size_bytes=int(image["Size"]),
        )

    def _buildx(
        self,
        request: BuildRequest,
        platforms: tuple[Platform, ...],
        options: Sequence[str],
        folder: Path,
        progress: Progress,
    ) -> None:
        words = ",".join(map(str, platforms))
        progress(f"building {request.ref} for {words}")
        # Attestations would make an index of one platform's image; what comes later in `options` counts.
        argv = ["docker", "buildx", "build", f"--platform={words}", "--provenance=false", "--sbom=false", *options]
        argv += self._arguments(request, folder)
        try:
            for line in command.spawn(argv, env=self._environment, cwd=self._caller, redact=self.hidden):
                if line.strip():
                    progress(line)
        except command.CommandFailed as exc:
            raise translate(request, platforms, exc.lines) from exc

    def _arguments(self, request: BuildRequest, folder: Path) -> list[str]:
        """What is the same for every platform."""
        context, dockerfile = _renamed(request, folder)
        contexts = dict(self._contexts)
        if request.base and request.base.context:
            contexts[context_name(request.base.name)] = request.base.context
        return [
            f"--builder={self._store.builder}",
            "--progress=plain",
            f"--build-arg=SOURCE_DATE_EPOCH={request.created_epoch_s}",
            *(f"--label={name}={value}" for name, value in _labels(request).items()),
            *(f"--build-context={name}={value}" for name, value in sorted(contexts.items())),
            *(f"--secret={word}" for word in self._secrets),
            f"--file={dockerfile}",
            str(context),
        ]

    # the base image

    def _resolve(self, reference: str) -> tuple[str, str]:
        """(digest, name that means this digest to BuildKit) of `reference`."""
        if "@" in reference:
            return reference.partition("@")[2], reference
        builder = f"--builder={self._store.builder}"
        found = self._docker("buildx", "imagetools", "inspect", builder, reference, "--format", "{{json .Manifest}}")
        if found.status == 0:
            digest = str(json.loads(found.stdout)["digest"])
            return digest, f"{_repository(reference)}@{digest}"
        local = self._inspect(reference)
        if local is None:
            raise unresolved(reference, found.stderr)
        # By its name alone: BuildKit asks the registry for a digest, and takes this machine's image for a name that
        # no registry knows.
        pulled = [] if self._store.containerd else [each.partition("@")[2] for each in local.get("RepoDigests") or ()]
        return min(pulled, default=str(local["Id"])), reference

    # the engine

    @cached_property
    def _store(self) -> "_Store":
        found = self._docker("info", "--format", "{{json .}}")
        if found.status:
            raise no_engine(found.stderr)
        store = _Store.read(json.loads(found.stdout))
        if not store.buildx:
            raise EngineFailed("docker has no buildx here", hint=INSTALL)
        return store

    def _inspect(self, name: str) -> Mapping[str, Any] | None:
        """What the engine knows of a local image; None when it has none of that name."""
        found = self._docker("image", "inspect", "--format", "{{json .}}", name)
        return None if found.status else dict(json.loads(found.stdout))

    def _docker(self, *words: str, timeout_s: float | None = None) -> command.Completed:
        timeout_s = timeout_s or ANSWER_S
        try:
            return command.run(["docker", *words], timeout_s=timeout_s, env=self._environment, cwd=self._caller)
        except command.CommandMissing as exc:
            raise EngineFailed("docker is not installed", hint=INSTALL) from exc
        except TimedOut as exc:
            raise EngineFailed(f"docker {words[0]} did not answer within {timeout_s:g} s", hint="docker info") from exc


@dataclass(frozen=True, slots=True)
class _Store:
    """What `docker info` says that matters to a build."""

    containerd: bool
    """The containerd image store, where an image's id is its manifest digest; else the classic one."""
    buildx: bool
    builder: str
    """The one with the docker driver, which leaves images in the engine: it has the name of the docker context."""

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> "_Store":
        status = info.get("DriverStatus") or ()
        client = info.get("ClientInfo") or {}
        return cls(
            containerd=["driver-type", "io.containerd.snapshotter.v1"] in [list(pair) for pair in status],
            buildx=any(plugin.get("Name") == "buildx" for plugin in client.get("Plugins") or ()),
            builder=client.get("Context") or "default",
        )


def _renamed(request: BuildRequest, folder: Path) -> tuple[Path, Path]:
    """Context and Dockerfile, by links in `folder` that are named after what they hold.

    BuildKit keeps what it was sent under the last part of the folder's name, and asks only for files whose size or
    time differ: of two checkouts' `code/` it would take the first one's bytes for the second.
    Source: https://github.com/moby/buildkit/issues/4817, https://github.com/docker/buildx/issues/3093
    """
    name = request.source_digest.removeprefix("sha256:")
    context, beside = folder / f"{name}-context", folder / f"{name}-dockerfile"
    for link, place in ((context, request.context), (beside, request.dockerfile.parent)):
        if not link.is_symlink():
            link.symlink_to(place, target_is_directory=True)
    return context, beside / request.dockerfile.name


def _labels(request: BuildRequest) -> dict[str, str]:
    """What the image says of itself: nothing that differs between clones, places or times of a build.

    Source: https://github.com/opencontainers/image-spec/blob/main/annotations.md
    """
    labels = {"title": request.ref.slug, "version": str(request.ref.version)}
    if request.base:
        labels |= {"base.name": request.base.name, "base.digest": request.base.digest}
    if request.revision:
        created = datetime.fromtimestamp(request.created_epoch_s, UTC)
        labels |= {"revision": request.revision, "created": created.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {"theory.ref": str(request.ref)} | {f"org.opencontainers.image.{name}": labels[name] for name in labels}


def _repository(reference: str) -> str:
    """`reference` without its tag: a : after the last / starts one, any other a port."""
    folder, slash, name = reference.rpartition("/")
    return f"{folder}{slash}{name.partition(':')[0]}"
