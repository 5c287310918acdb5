"""Push an image through the Docker Engine, saying how far it is. An `ImagePusher`."""

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from apps.errors import PushFailed
from apps.processors.adapters import docker_login
from apps.processors.adapters.base import Progress, Sent
from apps.processors.adapters.docker_client import DockerClient
from apps.processors.adapters.docker_errors import causes, push_failure
from apps.processors.adapters.oci_place import Place

SILENCE_S: Final = 60.0
_EVERY_S: Final = 1.0
_DIGEST: Final = re.compile(r"\S+: digest: (sha256:[0-9a-f]{64}) size: \d+")


class DockerPusher:
    """Sends images of the Docker Engine; credentials are those of Docker's own configuration and its helpers."""

    def __init__(self, environment: Mapping[str, str], *, silence_s: float = SILENCE_S) -> None:
        """Connects to nothing yet.

        Args:
            environment: the caller's; what of it counts is told in `DockerEngine`. A credential helper gets all.
            silence_s: how long a push may stand still before it counts as failed.
        """
        self._environment, self._silence_s = environment, silence_s
        self._client = DockerClient(environment)

    def push(self, image: str, repository: str, tag: str, *, progress: Progress) -> Sent:
        import docker.errors

        with self._client.asking(f"push {image}"):
            self._client.api.tag(image, repository, tag)
            layers = Layers(progress)
            try:
                with self._moving(repository):
                    for item in self._answer(repository, tag):
                        layers.add(item)
                        if error := item.get("error") or (item.get("errorDetail") or {}).get("message"):
                            raise push_failure(str(error), repository)
                        if layers.still_s > self._silence_s:
                            raise self._stalled(repository)
            except docker.errors.APIError as exc:
                raise push_failure(str(exc.explanation or exc), repository) from exc
        return layers.sent(repository)

    def _answer(self, repository: str, tag: str) -> Iterator[dict[str, Any]]:
        response = self._client.stream(
            "POST",
            f"/images/{repository}/push",
            silence_s=self._silence_s,
            params={"tag": tag},
            headers={"X-Registry-Auth": self._login(repository)},
        )
        with response:  # closed early, it makes the engine give up the push
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)

    def _login(self, repository: str) -> str:
        """The header with the login; engines before 23 want it even of those who have none."""
        place = Place.parse(repository)
        login = docker_login.find(self._environment, place)
        document = {}
        if login:
            document = {"username": login.user, "password": login.password, "identitytoken": login.identity_token}
            document |= {"serveraddress": place.login_key}
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()

    @contextmanager
    def _moving(self, repository: str) -> Iterator[None]:
        """An engine that says nothing at all stands still too."""
        import requests.exceptions
        import urllib3.exceptions

        silent = (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
        try:
            yield
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as exc:
            if any(isinstance(cause, silent) for cause in (exc, *causes(exc))):
                raise self._stalled(repository) from exc
            raise

    def _stalled(self, repository: str) -> PushFailed:
        host = repository.partition("/")[0]
        return PushFailed(
            f"the push to {repository} stood still for {self._silence_s:g} s",
            hint=f"is {host} well? the same command again sends only what is missing",
        )


class Layers:
    """Adds up the engine's progress by layer; one line a second at most."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began_s = self._said_s = self._moved_s = time.monotonic()
        self._items: dict[str, dict[str, Any]] = {}
        self._bytes: dict[str, tuple[int, int]] = {}
        self._digest: str | None = None

    @property
    def still_s(self) -> float:
        """For how long the engine has told nothing new: it may say the same several times a second."""
        return time.monotonic() - self._moved_s

    def add(self, item: dict[str, Any]) -> None:
        layer = str(item.get("id", ""))
        if item != self._items.get(layer):
            self._items[layer], self._moved_s = item, time.monotonic()
        if match := _DIGEST.fullmatch(str(item.get("status", ""))):
            self._digest = match[1]
        self._count(layer, str(item.get("status", "")), item.get("progressDetail") or {})
        now_s = time.monotonic()
        if self._bytes and now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            self._progress(self._line(now_s - self._began_s))

    def sent(self, repository: str) -> Sent:
        """What was done, at the end. Raises PushFailed."""
        if self._digest is None:
            raise PushFailed(f"the engine does not say as what it pushed to {repository}", hint="push again")
        pushed = (layer for layer, item in self._items.items() if layer and item.get("status") == "Pushed")
        return Sent(self._digest, frozenset(pushed))

    def _count(self, layer: str, status: str, detail: Mapping[str, Any]) -> None:
        if status == "Pushing" and detail.get("total"):
            total = int(detail["total"])
            self._bytes[layer] = (min(int(detail.get("current", 0)), total), total)
        elif status == "Pushed" and layer in self._bytes:
            self._bytes[layer] = (self._bytes[layer][1],) * 2

    def _line(self, elapsed_s: float) -> str:
        done, total = (sum(each) for each in zip(*self._bytes.values(), strict=True))
        line = f"pushed {done / 1e6:.1f} of {total / 1e6:.1f} MB"
        if not done:
            return line
        rate = done / elapsed_s
        return f"{line}, {rate / 1e6:.1f} MB/s, {(total - done) / rate:.0f} s left"
