"""The Docker Engine: pulls images as a builder would, and runs containers that are found again after any end."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
import docker.errors

OWNER = "theory.test.modal-service"
"""The label of all containers; its value says whose they are."""
_BROUGHT = "theory.test.brought"
"""The label of a container whose image the peer pulled: it goes with the container."""
PLATFORM = "linux/amd64"
_STOP_S = 5


@dataclass(frozen=True)
class Container:
    id: str
    host_port: int


class Containers:
    """Blocking; the peer calls it from threads of its own."""

    def __init__(self) -> None:
        self._pulled: list[str] = []

    @cached_property
    def _client(self) -> Any:
        """Made on first use: a peer to which nothing is deployed needs no engine."""
        return docker.from_env()

    def sweep(self) -> None:
        """Remove what peers left behind that are no more, if there is an engine."""
        with contextlib.suppress(docker.errors.DockerException):
            self._sweep()

    def _sweep(self) -> None:
        for container in self._client.containers.list(all=True, filters={"label": OWNER}, ignore_removed=True):
            if not _alive(container.labels[OWNER]):
                _remove(container)
                self._remove_image(container.labels.get(_BROUGHT, ""))

    def pull(self, reference: str, login: dict[str, str]) -> Iterator[str]:
        """The engine's progress, line by line. Raises DockerException."""
        repository, at, version = reference.partition("@")
        if not at:
            repository, _, version = reference.rpartition(":") if _tagged(reference) else (reference, "", "latest")
        present = self._has(reference)
        # An empty login is no login: what the developer's docker knows is none of Modal's business.
        for event in self._client.api.pull(
            repository, tag=version, stream=True, decode=True, auth_config=login, platform=PLATFORM
        ):
            if "error" in event:
                raise docker.errors.APIError(event["error"])
            if "status" in event and "progress" not in event:
                yield " ".join(filter(None, (event.get("id"), event["status"])))
        if not present:
            self._pulled.append(reference)

    def run(
        self,
        image: str,
        *,
        port: int,
        environment: dict[str, str],
        labels: dict[str, str],
        said: Callable[[bytes, bytes], None],
        ended: Callable[[int], None],
    ) -> Container:
        """Start the image with its own entry point, `port` published on loopback.

        `said` (stdout, stderr) and `ended` (exit status) are called from a thread.
        """
        container = self._client.containers.create(
            image,
            environment=environment,
            labels={**labels, OWNER: _owner(os.getpid()), _BROUGHT: image if image in self._pulled else ""},
            ports={f"{port}/tcp": ("127.0.0.1", None)},
            platform=PLATFORM,
            extra_hosts={"host.docker.internal": "host-gateway"},
        )
        output = container.attach(stream=True, demux=True)  # before the start: not a byte is missed
        container.start()
        container.reload()
        host_port = int(container.ports[f"{port}/tcp"][0]["HostPort"])

        def follow() -> None:
            for out, err in output:
                said(out or b"", err or b"")
            ended(_status(container))

        threading.Thread(target=follow, name=f"logs-{container.short_id}", daemon=True).start()
        return Container(container.id, host_port)

    def stop(self, container_id: str, *, grace_s: float = _STOP_S) -> None:
        """SIGTERM, SIGKILL after `grace_s`, and gone."""
        with contextlib.suppress(docker.errors.NotFound):
            container = self._client.containers.get(container_id)
            if grace_s:
                container.stop(timeout=int(grace_s))
            _remove(container)

    def close(self) -> None:
        """Remove this peer's containers and the images that it brought."""
        if "_client" not in self.__dict__:
            return
        mine = {"label": f"{OWNER}={_owner(os.getpid())}"}
        for container in self._client.containers.list(all=True, filters=mine, ignore_removed=True):
            _remove(container)
        for reference in self._pulled:
            self._remove_image(reference)
        self._client.close()

    def _remove_image(self, reference: str) -> None:
        """Unless it is gone, or a container goes on using it."""
        deadline = time.monotonic() + _STOP_S
        while reference and time.monotonic() < deadline:
            try:
                self._client.images.remove(reference)
            except docker.errors.ImageNotFound:
                return
            except docker.errors.APIError:  # the engine is a moment behind with a container that was removed
                time.sleep(0.1)
            else:
                return

    def _has(self, reference: str) -> bool:
        try:
            self._client.images.get(reference)
        except docker.errors.ImageNotFound:
            return False
        return True


def _tagged(reference: str) -> bool:
    return ":" in reference.rpartition("/")[2]


def _remove(container: Any) -> None:
    with contextlib.suppress(docker.errors.NotFound, docker.errors.APIError):
        container.remove(force=True, v=True)


def _status(container: Any) -> int:
    try:
        return int(container.wait()["StatusCode"])
    except (docker.errors.DockerException, OSError, KeyError):  # removed meanwhile
        return -1


def _owner(pid: int) -> str:
    """A process and when it started: numbers of processes come again."""
    return f"{pid}-{_started(pid)}"


def _alive(owner: str) -> bool:
    pid = owner.partition("-")[0]
    return pid.isdigit() and _owner(int(pid)) == owner


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "gone"
