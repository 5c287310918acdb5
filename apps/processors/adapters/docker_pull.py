"""Pull one pinned image through the Docker Engine, saying how far it is."""

import json
import time
from typing import Any, Final

from apps.processors.adapters.base import Progress
from apps.processors.adapters.docker_client import DockerClient
from apps.processors.adapters.docker_errors import pull_failure
from apps.processors.reference import ImageReference, Platform

_SILENCE_S: Final = 300.0
"""The engine says where it stands several times a second, but little while it unpacks."""
_EVERY_S: Final = 1.0


def pull(client: DockerClient, image: ImageReference, platform: Platform, *, progress: Progress) -> None:
    """Fetch `image`; credentials are those of Docker's own configuration.

    Raises ImagePullFailed, ImageNotFound, Unauthorized, EngineFailed.
    """
    import docker.errors

    progress(f"pulling {image}")
    layers = _Layers(progress)
    with client.asking(f"pull {image}"):
        try:
            for item in _answer(client, image, platform):
                if "error" in item:
                    raise pull_failure(str(item["error"]), image)
                layers.add(item)
        except docker.errors.APIError as exc:
            raise pull_failure(str(exc.explanation or exc), image) from exc


def _answer(client: DockerClient, image: ImageReference, platform: Platform) -> Any:
    import docker.auth

    host, _ = docker.auth.resolve_repository_name(image.repository)
    login = docker.auth.get_config_header(client.api, host)
    response = client.stream(
        "POST",
        "/images/create",
        silence_s=_SILENCE_S,
        params={"fromImage": image.repository, "tag": image.digest, "platform": str(platform)},
        headers={"X-Registry-Auth": login} if login else {},
    )
    with response:
        for line in response.iter_lines():
            if line:
                yield json.loads(line)


class _Layers:
    """Adds up the engine's progress by layer; one line a second at most."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said_s = time.monotonic()
        self._bytes: dict[str, tuple[int, int]] = {}

    def add(self, item: dict[str, Any]) -> None:
        detail = item.get("progressDetail") or {}
        if item.get("status") == "Downloading" and detail.get("total"):
            self._bytes[str(item.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
        now_s = time.monotonic()
        if self._bytes and now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            done, total = (sum(each) for each in zip(*self._bytes.values(), strict=True))
            self._progress(f"pulled {done / 1e6:.1f} of {total / 1e6:.1f} MB")
