"""A checkout with a small processor, built for both platforms, and the registries that it is pushed to."""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processors import add_processor
from tests.shell import Outcome, Shell, copy_checkout

HANDLER = """
    def run(context):
        context.write("said.txt", {said!r})
"""
CONTAINERD = pytest.param("containerd", marks=pytest.mark.docker)
CLASSIC = pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic])


@dataclass
class Shop:
    """The processor `ref`, whose images nobody else has; where they go is said with each command."""

    shell: Shell
    ref: str
    classic: bool

    @property
    def name(self) -> str:
        """The last part of its repository."""
        return self.ref.partition("/")[2].partition("@")[0]

    @property
    def state(self) -> Path:
        return self.shell.root / "code" / ".theory"

    @property
    def registry_yaml(self) -> Path:
        return self.shell.root / "registry" / self.ref.replace("@", "/") / "registry.yaml"

    def say(self, text: str) -> None:
        """Change one line of the handler."""
        file = self.shell.root / "code/processors" / self.ref.replace("@", "/") / "handler.py"
        file.write_text(HANDLER.replace("    ", "", 1).replace("\n    ", "\n").format(said=text))

    def build(self, *platforms: str) -> dict[str, Any]:
        asked = ("--platforms", ",".join(platforms)) if platforms else ()
        done = self.shell("processorctl", "build", "--ref", self.ref, *asked, "--json", "-q", timeout_s=500)
        assert done.status == 0, done
        return done.document

    def push(self, address: str, *options: str, **environment: str) -> Outcome:
        """`processorctl push --json` to `address`/org."""
        words = ("processorctl", "push", "--ref", self.ref, "--json", *options)
        return self.shell(*words, env=self.to(address) | environment, timeout_s=200)

    def pushed(self, address: str, *options: str, **environment: str) -> dict[str, Any]:
        done = self.push(address, *options, **environment)
        assert done.status == 0, done
        return done.document

    def to(self, address: str) -> dict[str, str]:
        return {"PROCESSOR_REPOSITORY_PREFIX": f"{address}/org"}

    def builds(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.state / "builds.json").read_text())["builds"][self.ref]
        return found

    @contextmanager
    def builds_changed(self, number: int, **changes: str) -> Iterator[None]:
        """Let the record of builds say something else about one platform's."""
        file = self.state / "builds.json"
        before = file.read_text()
        document = json.loads(before)
        document["builds"][self.ref][number] |= changes
        file.write_text(json.dumps(document))
        try:
            yield
        finally:
            file.write_text(before)

    def unpin(self) -> None:
        document = json.loads(self.registry_yaml.read_text())
        document["image"]["platforms"] = {"amd64": None, "arm64": None}
        self.registry_yaml.write_text(json.dumps(document))

    def docker(self, *words: str) -> str:
        done = subprocess.run(["docker", *words], env=self.shell.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def remove_images(self) -> None:
        """Every image that has this processor's name, wherever it was pushed to."""
        listed = self.docker("image", "ls", "--no-trunc", "--format", "{{.Repository}} {{.ID}}").splitlines()
        ids = {each.split()[1] for each in listed if each.split()[0].endswith(f"/{self.name}")}
        if ids:
            self.docker("image", "rm", "--force", *sorted(ids))


@contextmanager
def opened(folder: Path, *, docker_host: str | None) -> Iterator[Shop]:
    """A shop in `folder` on the engine at `docker_host` (None: the usual one), with both platforms built."""
    name = f"shop-{secrets.token_hex(4)}"
    root = copy_checkout(folder / "checkout")
    add_processor(root, f"test/{name}@1", HANDLER.format(said="first"), outputs=("said.txt",))
    variables = {"DOCKER_HOST": docker_host} if docker_host else {}
    if "DOCKER_CONFIG" not in os.environ:
        (folder / "config.json").write_text("{}")
        variables["DOCKER_CONFIG"] = str(folder)
    shop = Shop(Shell(root, home=folder, variables=variables), f"test/{name}@1", classic=bool(docker_host))
    try:
        shop.build()
        yield shop
    finally:
        shop.shell.close()
        shop.remove_images()
