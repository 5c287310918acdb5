"""The probe (images/probe/probe.py) on an engine: what the engines' contract tests start, ask and end."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from apps.processors.adapters.base import Container, Engine, Launch, Limits, LogLine
from apps.processors.adapters.docker import DockerEngine
from apps.processors.adapters.host import HostEngine
from apps.processors.reference import ProcessorRef

SOURCE = Path(__file__).parent / "images" / "probe"
REF = ProcessorRef.parse("test/probe@1")
SOURCE_DIGEST = "sha256:0123456789ab".ljust(71, "0")
MIB = 1024**2
PATIENCE_S = 30.0


@dataclass
class Probe:
    """A probe that was launched."""

    container: Container
    engine: Engine

    def ask(self, path: str) -> Any:
        """The probe's answer, as soon as it listens."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._ask(path)
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline or self.now().state != "running":
                    raise
                time.sleep(0.02)

    def do(self, deed: str, argument: str | bytes = "") -> Any:
        return self.ask(f"/do/{deed}?{quote(argument)}")

    def end(self, deed: str, argument: object) -> Container:
        """Have it do what it does not survive; the container once it has ended."""
        self.ask("/facts")
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._ask(f"/do/{deed}?{argument}")
        return self.ended()

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.ask("/facts")
        return facts

    def now(self) -> Container:
        return next(each for each in self.engine.containers() if each.id == self.container.id)

    def ended(self) -> Container:
        deadline = time.monotonic() + PATIENCE_S
        while (container := self.now()).state == "running":
            assert time.monotonic() < deadline, "it goes on running"
            time.sleep(0.02)
        return container

    def lines(self, **asked: Any) -> list[LogLine]:
        return list(self.engine.logs(self.container, **asked))

    def _ask(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.container.host_port or 0, timeout=5)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@dataclass
class Place:
    """An engine with the probe's image on it, as one checkout has it."""

    make: Callable[[str], Engine]
    """The engine of the checkout with this root id."""
    image: str
    absent_image: str
    docker: Mapping[str, str] = field(default_factory=dict)
    """The environment that leads the docker command to the engine."""
    root_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = self.another_checkout()
        self.root_id = self.root_ids[0]

    def another_checkout(self) -> Engine:
        self.root_ids.append(secrets.token_hex(4))
        return self.make(self.root_ids[-1])

    def launch(self, **changes: Any) -> Probe:
        engine: Engine = changes.pop("engine", self.engine)
        return Probe(engine.launch(self.request(**changes)), engine)

    def request(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        root_id: str = "",
        name: str = "",
        limits: Limits | None = None,
        **changes: Any,
    ) -> Launch:
        root_id = root_id or self.root_id
        usual = {
            "name": name or f"processor-test-probe-v1-{root_id}",
            "ref": REF,
            "image": self.image,
            "platform": self.engine.platform(),
            "container_port": 8000,
            "host_port": free_port(),
            "environment": environment or {},
            "labels": {"theory.ref": str(REF), "theory.root": root_id},
            "limits": limits or Limits(cpu=1, memory_bytes=256 * MIB, scratch_bytes=64 * MIB, gpu=None),
        }
        return Launch(**{**usual, **changes})

    def leftovers(self) -> list[str]:
        """Names of what there is of this checkout's, and of its volumes."""
        return [each.name for each in self.engine.containers()] + self.volumes()

    def volumes(self) -> list[str]:
        if not self.docker:
            return []
        argv = ["docker", "volume", "ls", "--quiet", "--filter", f"label=theory.root={self.root_id}"]
        return docker(*argv[1:], environment=self.docker).split()

    def clear(self) -> None:
        for root_id in self.root_ids:
            engine = self.make(root_id)
            for container in engine.containers():
                engine.stop(container, grace_s=0)
                engine.remove(container)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def docker(*words: str, environment: Mapping[str, str], stdin: bytes = b"") -> str:
    """What the docker command says on stdout. Raises CalledProcessError."""
    done = subprocess.run(
        ["docker", *words], input=stdin, capture_output=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.decode()


def docker_image(environment: Mapping[str, str]) -> Iterator[str]:
    """Build the probe's image; it is removed with the generator's end."""
    tag = f"theory-test-probe:{secrets.token_hex(4)}"
    contexts = [f"--build-context={each}" for each in os.environ.get("PROCESSOR_BUILD_CONTEXTS", "").split()]
    docker(
        *("buildx", "build", "--load", "--provenance=false", "--quiet", *contexts, "--tag", tag, str(SOURCE)),
        environment=environment,
    )
    yield tag
    docker("image", "rm", "--force", tag, environment=environment)


def docker_place(environment: Mapping[str, str], image: str) -> Place:
    return Place(
        make=lambda root_id: DockerEngine(root_id, environment=environment),
        image=image,
        absent_image="theory-test-probe:absent",
        docker=environment,
    )


def process_place(folder: Path) -> Place:
    """A checkout's local state with the probe in the place of the runtime."""
    image = folder / "images" / "test-probe-v1" / "0123456789ab"
    runtime = image / "runtime" / "processor_runtime"
    venv = folder / "venvs" / "probe"
    for each in (runtime, image / "app", venv / "bin"):
        each.mkdir(parents=True)
    (runtime / "__init__.py").touch()
    shutil.copy(SOURCE / "probe.py", runtime / "__main__.py")
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / ".complete").touch()
    (image / "image.json").write_text(json.dumps({"schema": 1, "venv": "venvs/probe", "source_digest": SOURCE_DIGEST}))
    return Place(
        make=lambda root_id: HostEngine(folder, root_id),
        image=str(image.relative_to(folder)),
        absent_image="images/test-probe-v1/ba9876543210",
    )
