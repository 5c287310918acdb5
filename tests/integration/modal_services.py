"""The peer of Modal's SDK (tests/modal_service) as a place: started, asked what it holds, given faults, ended."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.integration.probe import docker
from tests.integration.registries import Registry
from tests.modal_service.wire import TOKEN_ID, TOKEN_SECRET
from tests.shell import PROJECT

ECHO = Path(__file__).parent / "images" / "echo"
_START_S = 30.0
_END_S = 60.0
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class ModalService:
    """One workspace of its own: nothing in it but its environments."""

    url: str
    process: "subprocess.Popen[str]"
    control: str

    @property
    def environment(self) -> dict[str, str]:
        """What leads the SDK, and commands that use it, here and nowhere else."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
            "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",  # else the developer's own profile leaks in
            "MODAL_DISABLE_API_PROXY": "1",
        }

    def faults(self, **changes: object) -> None:
        """Turn faults on and off, by the names of tests/modal_service/faults.py."""
        self._post("/faults", changes)

    def scale_to_zero(self) -> None:
        """Stop all containers, as after a while without requests; returns when they are gone."""
        self._post("/scale-to-zero", {})

    def calls(self) -> list[str]:
        """The name of each RPC so far."""
        calls: list[str] = self._state()["calls"]
        return calls

    def apps(self) -> list[dict[str, Any]]:
        """Each app ever: id, name, environment, deployed, version, urls, and its containers' task_id, container_id,
        digest, state (STARTING, SERVING, DRAINING, GONE), connections and failure."""
        apps: list[dict[str, Any]] = self._state()["apps"]
        return apps

    def containers(self, state: str = "SERVING") -> list[dict[str, Any]]:
        """Of all apps, oldest first."""
        return [each for app in self.apps() for each in app["containers"] if each["state"] == state]

    def wait_for(self, digests: Sequence[str]) -> None:
        """Until exactly containers of these images serve, and none is about to start or to end."""
        deadline = time.monotonic() + _PATIENCE_S
        wanted = [("SERVING", digest) for digest in digests]
        while True:
            found = [
                (each["state"], each["digest"])
                for app in self.apps()
                for each in app["containers"]
                if each["state"] != "GONE"
            ]
            if sorted(found) == sorted(wanted):
                return
            assert time.monotonic() < deadline, f"{found}, not {wanted}"
            time.sleep(0.05)

    def wait_for_cut(self) -> None:
        """Until a fault `cut_at` or `cut_after` has struck and nobody listens any more."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except ConnectionRefusedError:
                return
            assert time.monotonic() < deadline, "nothing was cut"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would, and with it its memory."""
        self.process.kill()
        self.process.wait()

    def _state(self) -> dict[str, Any]:
        with urlopen(f"{self.control}/state", timeout=10) as answer:
            state: dict[str, Any] = json.load(answer)
        return state

    def _post(self, path: str, document: dict[str, object]) -> None:
        with urlopen(Request(self.control + path, json.dumps(document).encode()), timeout=60):
            pass


@contextmanager
def running_modal_service(*, environments: Sequence[str] = ("dev", "staging", "main")) -> Iterator[ModalService]:
    """A peer until the block ends, with everything that was deployed to it. To deploy takes a Docker Engine."""
    argv = [sys.executable, "-m", "tests.modal_service", "--environments", ",".join(environments)]
    process = subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        place = json.loads(process.stdout.readline())
        yield ModalService(place["url"], process, place["control"])
    finally:
        with process:
            process.stdin.close()  # the sign to end
            try:
                process.wait(_END_S)
            finally:
                process.kill()


def push_echo(made: Registry, *, environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Two images of the echo server in `made`, as `repository@digest`: VERSION is "1" in one and "2" in the other.

    `environment` is docker's, for a registry that wants a login.
    """
    first, second = (_push(made, version, environment or {}) for version in ("1", "2"))
    return first, second


def _push(made: Registry, version: str, environment: Mapping[str, str]) -> str:
    repository = made.repository(f"test/echo-{secrets.token_hex(4)}")
    contexts = [f"--build-context={each}" for each in os.environ.get("PROCESSOR_BUILD_CONTEXTS", "").split()]
    build = ["buildx", "build", "--load", "--provenance=false", "--quiet", f"--build-arg=VERSION={version}", *contexts]
    docker(*build, "--tag", f"{repository}:{version}", str(ECHO), environment=environment)
    try:
        docker("push", "--quiet", f"{repository}:{version}", environment=environment)
        listed = docker(
            "image", "inspect", "--format", "{{json .RepoDigests}}", f"{repository}:{version}", environment=environment
        )
    finally:
        docker("image", "rm", "--force", f"{repository}:{version}", environment=environment)
    return next(each for each in json.loads(listed) if each.startswith(f"{repository}@"))
