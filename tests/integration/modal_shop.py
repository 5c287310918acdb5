"""A checkout with one small processor, its two images in a registry, and modalctl led to a peer of Modal."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.commands.workshop import HANDLER, INPUTS, OUTPUTS
from tests.integration.modal_services import ModalService
from tests.integration.probe import docker
from tests.integration.registries import registry
from tests.processors import add_processor
from tests.shell import Outcome, Shell, copy_checkout

DEV = {"GIT_BRANCH": "feat/test", "GIT_USER": "veyorokon"}
KEY = "value-of-the-test-key"
"""Of TEST_KEY, which the processor requires."""


@dataclass(frozen=True)
class ModalShop:
    """What was made once. `at` gives a terminal for one peer."""

    shell: Shell
    ref: str
    images: tuple[str, str]
    """`repository@digest` of two versions of the processor, for amd64."""
    name: str
    storage: Path
    """Of the registry: another one over it has the same images."""

    def at(self, service: ModalService, folder: Path) -> "ModalShop":
        """The same in a checkout of its own in `folder`, with `service` for Modal."""
        shell = Shell(
            copy_checkout_of(self.shell.root, folder / "checkout"),
            home=folder,
            variables={**self.shell.variables, **service.environment},
        )
        return replace(self, shell=shell)

    @property
    def state(self) -> Path:
        return self.shell.root / "code" / ".theory"

    @property
    def registry_yaml(self) -> Path:
        return self.shell.root / "registry" / self.ref.replace("@", "/") / "registry.yaml"

    @property
    def app(self) -> str:
        """In dev."""
        return f"feat-test-veyorokon-test-{self.name}-v1"

    def ctl(self, *words: str, env: Mapping[str, str] | None = None, timeout_s: float = 120) -> Outcome:
        """`modalctl WORDS --ref … --env dev --json`."""
        subcommand, *more = words
        place = () if "--env" in words else ("--env", "dev")
        return self.shell(
            "modalctl", subcommand, "--ref", self.ref, *place, *more, "--json", env=env, timeout_s=timeout_s
        )

    def start(self, image: str, *options: str, env: Mapping[str, str] | None = None) -> Outcome:
        return self.ctl("start", "--oci", image, *options, env={**DEV, **(env or {})})

    def started(self, image: str, *options: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        done = self.start(image, *options, env=env)
        assert done.status == 0, done
        return done.document

    def run(self, *options: str, env: Mapping[str, str] | None = None, **params: Any) -> Outcome:
        given = ("--inputs-json", json.dumps({"schema": "v1", "params": params})) if params else ()
        return self.ctl("run", *given, *options, env=env)

    def said(self, *options: str, **params: Any) -> str:
        """What a run wrote."""
        done = self.run(*options, **params)
        assert done.status == 0, done
        return self.output(done.document)

    def output(self, envelope: Mapping[str, Any]) -> str:
        (path,) = (output["path"] for output in envelope["outputs"])
        return (self.state / "artifacts" / path.lstrip("/")).read_text()

    def pin(self, image: str | None) -> None:
        document = json.loads(self.registry_yaml.read_text())
        document["image"]["platforms"]["amd64"] = image
        self.registry_yaml.write_text(json.dumps(document))

    def change(self, **sections: Any) -> None:
        """Replace sections of registry.yaml."""
        self.registry_yaml.write_text(json.dumps({**json.loads(self.registry_yaml.read_text()), **sections}))

    def tokens(self) -> dict[str, Any]:
        tokens: dict[str, Any] = json.loads((self.state / "modal_tokens.json").read_text())["tokens"]
        return tokens


def digest(image: str) -> str:
    return image.partition("@")[2]


def copy_checkout_of(root: Path, target: Path) -> Path:
    copy_checkout(target)
    add = root / "registry" / "test"
    for file in add.rglob("*.yaml"):
        copy = target / "registry" / "test" / file.relative_to(add)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    return target


def status_of(url: str, headers: Mapping[str, str]) -> int:
    """What a GET answers."""
    try:
        with urlopen(Request(url, headers=dict(headers)), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as exc:
        with exc:
            return exc.code


@contextmanager
def opened_modal_shop(folder: Path) -> Iterator[ModalShop]:
    """Built and pushed; needs a Docker Engine."""
    name = f"modal-{secrets.token_hex(4)}"
    ref = f"test/{name}@1"
    with registry() as made:
        shell = Shell(
            copy_checkout(folder / "checkout"),
            home=folder,
            variables={"PROCESSOR_REPOSITORY_PREFIX": f"{made.address}/org"},
        )
        try:
            first, second = (_pushed(shell, ref, said) for said in ("one", "two"))
            yield ModalShop(shell, ref, (first, second), name, made.storage)
        finally:
            _remove_images(name)


def _pushed(shell: Shell, ref: str, said: str) -> str:
    add_processor(shell.root, ref, f"{HANDLER}\n\nVERSION = {said!r}\n", inputs=INPUTS, runtime={"scratch_gb": 0.05})
    file = shell.root / "registry" / ref.replace("@", "/") / "registry.yaml"
    secrets = {"required": ["TEST_KEY"], "optional": ["OTHER_KEY"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "secrets": secrets, "outputs": OUTPUTS}))
    for step in ("build", "push"):
        done = shell("processorctl", step, "--ref", ref, "--platforms", "linux/amd64", "--json", "-q", timeout_s=500)
        assert done.status == 0, done
    image: str = done.document["images"][0]["oci"]
    return image


def _remove_images(name: str) -> None:
    listed = docker("image", "ls", "--no-trunc", "--format", "{{.Repository}} {{.ID}}", environment={}).splitlines()
    ids = {each.split()[1] for each in listed if each.split()[0].endswith(f"/{name}")}
    if ids:
        docker("image", "rm", "--force", *sorted(ids), environment={})
