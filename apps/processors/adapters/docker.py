"""The Docker Engine as an `Engine`, over the docker SDK. Any engine that speaks its API on a local socket will do."""

import math
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from apps.errors import ConfigurationError, ImageNotFound, OperationError, UsageError
from apps.processors import engines
from apps.processors.adapters import docker_confinement, docker_logs, docker_pull
from apps.processors.adapters.base import Container, Launch, LogLine, Progress
from apps.processors.adapters.docker_client import TIMEOUT_S, DockerClient
from apps.processors.adapters.docker_errors import Conflict, Gone
from apps.processors.reference import ImageReference, Platform

_REMOVAL_S: Final = 60
_NEVER: Final = "0001-"
"""How a time begins that has not come."""
_STATES: Final = {
    **dict.fromkeys(("running", "paused", "restarting", "stopping"), "running"),
    **dict.fromkeys(("exited", "stopped"), "exited"),
}
"""created, removing, dead: never ran, or is half gone; dead to us."""
_SPARE_LOG_ENTRIES: Final = 256
"""The engine counts the parts of a line, 16 KiB each; with so many more a last line of 4 MiB is still whole."""


class DockerEngine:
    """Containers as confined as Docker makes them; `docker_confinement` says how."""

    name, isolation, gives_digests, shares_files, loopback = engines.DOCKER

    def __init__(self, root_id: str, *, environment: Mapping[str, str]) -> None:
        """Connects to nothing yet.

        Args:
            root_id: the checkout, as in the label theory.root.
            environment: the caller's. Of it DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CONFIG, DOCKER_TLS_VERIFY,
                DOCKER_CERT_PATH and HOME count.
        """
        self._root_id = root_id
        self._client = DockerClient(environment)

    def platform(self) -> Platform:
        version = self._client.version
        try:
            return Platform.of_machine(str(version.get("Arch")))
        except UsageError as exc:
            runs = f"{version.get('Os')}/{version.get('Arch')}"
            raise ConfigurationError(f"the Docker Engine runs {runs}", hint="use one for linux/amd64 or arm64") from exc

    def local_image(self, digest: str, *, repository: str, platform: Platform) -> str | None:
        for name in self._names(digest, repository):
            image = self._image(name)
            if image is not None and image.get("Architecture") == platform.architecture:
                return name
        return None

    def has_image(self, image: str) -> bool:
        return self._image(image) is not None

    def image_names(self, image: str) -> frozenset[str]:
        found = self._image(image) or {}
        return frozenset((image, *(name.rpartition("@")[2] for name in found.get("RepoDigests") or ())))

    def pull(self, image: ImageReference, platform: Platform, *, progress: Progress) -> str:
        docker_pull.pull(self._client, image, platform, progress=progress)
        return str(image)

    def launch(self, launch: Launch) -> Container:
        image = self._image(launch.image)
        if image is None:
            raise ImageNotFound(
                f"image {launch.image} is not on this machine", hint=f"processorctl build --ref {launch.ref}"
            )
        self._remove_volume(launch.name)  # it stays when somebody else removes the container
        identifier = self._create(launch, str((image.get("Config") or {}).get("User") or ""))
        try:
            self._start(identifier, launch.name)
            return self._inspect(identifier)
        except BaseException:
            with suppress(OperationError):  # the first failure is the one to tell
                self._remove(identifier)
                self._remove_volume(launch.name)
            raise

    def containers(self) -> list[Container]:
        labels = [f"theory.root={self._root_id}", "theory.ref"]
        with self._client.asking("list containers"):
            found = self._client.api.containers(all=True, filters={"label": labels})
        containers = []
        for each in found:
            with suppress(Gone):
                containers.append(self._inspect(each["Id"]))
        return containers

    def stop(self, container: Container, *, grace_s: float) -> None:
        with suppress(Gone), self._client.asking(f"stop {container.name}"):
            self._client.api.stop(container.id, timeout=math.ceil(grace_s))

    def remove(self, container: Container) -> None:
        self._remove(container.id)
        self._remove_volume(container.name)

    def logs(
        self, container: Container, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[LogLine]:
        since_ns = docker_logs.nanoseconds(since) if since else 0
        if tail is not None:
            written = self._entries(container, tail=tail + _SPARE_LOG_ENTRIES, since_ns=since_ns)
            for entry in deque(written, maxlen=tail):
                yield entry.line
                since_ns = docker_logs.nanoseconds(entry.time) + 1
        if tail is None or follow:
            for entry in self._entries(container, follow=follow, since_ns=since_ns):
                yield entry.line

    def _entries(
        self, container: Container, *, follow: bool = False, tail: int | None = None, since_ns: int = 0
    ) -> Iterator[docker_logs.Entry]:
        asked = {"follow": follow, "tail": "all" if tail is None else tail, "since": docker_logs.since(since_ns)}
        with (
            suppress(Gone),
            self._client.asking(f"read the logs of {container.name}"),
            self._client.stream(
                "GET",
                f"/containers/{container.id}/logs",
                silence_s=None if follow else TIMEOUT_S,
                params={"stdout": True, "stderr": True, "timestamps": True, **asked},
            ) as response,
        ):
            yield from docker_logs.entries(response.iter_content(None))

    def _names(self, digest: str, repository: str) -> Iterator[str]:
        """What the image of a manifest digest can be called here, the likeliest first."""
        yield f"{repository}@{digest}"
        yield digest  # the containerd store: an image's id is its digest
        with self._client.asking("list images"):
            images = self._client.api.images()
        for image in images:  # the classic store, under the name that it was pulled or pushed by
            yield from (name for name in image.get("RepoDigests") or () if name.endswith(f"@{digest}"))

    def _image(self, name: str) -> dict[str, Any] | None:
        with suppress(ImageNotFound, Gone), self._client.asking(f"inspect image {name}"):
            image: dict[str, Any] = self._client.api.inspect_image(name)
            return image
        return None

    def _create(self, launch: Launch, image_user: str) -> str:
        api = self._client.api
        try:
            with self._client.asking(f"create container {launch.name}"):
                return str(api.create_container(**docker_confinement.options(api, launch, image_user))["Id"])
        except OperationError:  # NameTaken is none: that volume is the other container's
            with suppress(OperationError):
                self._remove_volume(launch.name)
            raise

    def _start(self, identifier: str, name: str) -> None:
        with self._client.asking(f"start container {name}"):
            api = self._client.api
            api.put_archive(identifier, docker_confinement.SCRATCH, docker_confinement.scratch_folder())
            api.start(identifier)

    def _inspect(self, identifier: str) -> Container:
        with self._client.asking(f"inspect container {identifier[:12]}"):
            return _container(self._client.api.inspect_container(identifier))

    def _remove(self, identifier: str) -> None:
        try:
            with suppress(Gone), self._client.asking(f"remove container {identifier[:12]}"):
                self._client.api.remove_container(identifier, v=True, force=True)
        except Conflict:  # somebody else is at it: its name is free when that is done
            with suppress(Gone), self._client.asking(f"await the removal of container {identifier[:12]}"):
                self._client.api.wait(identifier, timeout=_REMOVAL_S, condition="removed")

    def _remove_volume(self, name: str) -> None:
        volume = docker_confinement.scratch_volume(name)
        with suppress(Gone, Conflict), self._client.asking(f"remove volume {volume}"):
            self._client.api.remove_volume(volume)


def _container(found: dict[str, Any]) -> Container:
    """What `GET /containers/ID/json` says of a container."""
    state, began = found["State"], str(found["State"].get("StartedAt") or _NEVER)
    word = _STATES.get(str(state["Status"]), "dead")
    ended = word != "running" and not began.startswith(_NEVER)
    status = _exit_status(int(state["ExitCode"])) if ended else None
    return Container(
        id=found["Id"],
        name=found["Name"].removeprefix("/"),
        state=word,
        labels=found["Config"].get("Labels") or {},
        host_port=_host_port(found["HostConfig"].get("PortBindings") or {}),
        started_at=None if began.startswith(_NEVER) else docker_logs.milliseconds(began),
        exit_status=status,
        # The flag stays up when only a child was killed, and the container went on to end by itself.
        out_of_memory=bool(state.get("OOMKilled")) and status == -signal.SIGKILL,
        image=found.get("Image"),
    )


def _exit_status(code: int) -> int:
    """Docker has it as a shell does: 128 and the signal's number."""
    return 128 - code if 128 < code <= 128 + max(signal.valid_signals()) else code


def _host_port(bindings: Mapping[str, Any]) -> int | None:
    ports = [int(each["HostPort"]) for bound in bindings.values() for each in bound or () if each.get("HostPort")]
    return ports[0] if ports else None
