"""Provenance and bills of real builds, and what other tools make of them in a registry."""

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from apps.processors import dockerfile, images, registry
from apps.processors.adapters.base import BuildRequest, BuiltImage
from apps.processors.adapters.buildx import BuildxBuilder
from apps.processors.adapters.buildx_provenance import BuildxProvenance
from apps.processors.adapters.docker_push import DockerPusher
from apps.processors.adapters.oci_registry import OciRegistry
from apps.processors.adapters.sbom import DockerInventory
from apps.processors.attestations import INDEX, MANIFEST, IndexEntry, Missing, attestation_manifest, index
from apps.processors.reference import AMD64, ARM64, Platform, ProcessorRef
from apps.settings import Settings
from tests.integration.registries import registry as image_registry
from tests.shell import copy_checkout

PROJECT = Path(__file__).resolve().parents[2]
REF = ProcessorRef("test", "proven", 1)
DOCKERFILE = """\
FROM --platform=$BUILDPLATFORM python:3.13-slim AS made
COPY handler.py /out/app/
RUN --mount=type=secret,id=token mkdir -p /out/deps/thing-1.0.dist-info /out/deps/gone-1.0.dist-info \\
    && printf 'Name: thing\\nVersion: 1.0\\nLicense-Expression: MIT\\n' > /out/deps/thing-1.0.dist-info/METADATA \\
    && printf 'Name: gone\\nVersion: 1.0\\n' > /out/deps/gone-1.0.dist-info/METADATA \\
    && find /out -exec touch -h -d @0 {} +
FROM python:3.13-slim
COPY --from=made /out/ /
# somebody wrote it down here: %s
"""


class Workshop:
    """A Docker Engine, and what builds, attests and looks into one small processor with it."""

    def __init__(self, folder: Path, host: str | None) -> None:
        self.environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
        self.secret = f"hunter2-{secrets.token_hex(8)}"
        self.repository = f"localhost:5000/test-proof/{secrets.token_hex(4)}"
        self.folder, self.root = folder, folder / "root"
        self.root.mkdir()
        (self.root / "Dockerfile").write_text(DOCKERFILE % self.secret)
        (self.root / "handler.py").write_text(f"print({secrets.token_hex(8)!r})\n")
        (folder / "token").write_text(self.secret)
        contexts = Settings.read(self.environment).build_contexts
        self.builder = BuildxBuilder(self.environment, contexts, ["id=token,src=token"], folder)
        self.source = BuildxProvenance(self.builder)
        self.inventory = DockerInventory(self.environment)

    def request(self, platform: Platform, root: Path | None = None) -> BuildRequest:
        root = root or self.root
        return BuildRequest(
            ref=REF,
            root=root,
            context=root,
            dockerfile=root / "Dockerfile",
            repository=self.repository,
            tag=f"1-{root.name}",  # one tag would take the image from under another test
            source_digest=f"sha256:{secrets.token_hex(32)}",
            platforms=(platform,),
            base=self.builder.base(dockerfile.base_name(root / "Dockerfile")),
            revision=None,
            created_epoch_s=0,
        )

    @cache  # noqa: B019  a workshop lives as long as the module
    def built(self, platform: Platform = AMD64) -> BuiltImage:
        return self.build(self.request(platform))

    def build(self, request: BuildRequest) -> BuiltImage:
        (built,) = self.builder.build(request, progress=lambda _: None)
        return built

    def copy(self, place: Path) -> Path:
        shutil.copytree(self.root, place)
        return place

    @cache  # noqa: B019
    def provenance(self, built: BuiltImage, root: Path | None = None) -> bytes:
        found = self.source.provenance(
            self.request(built.platform, root), built.platform, built.digest or "", progress=lambda _: None
        )
        assert isinstance(found, bytes), found
        return found

    def sbom(self, built: BuiltImage) -> bytes:
        found = self.inventory.sbom(
            built.image, ref=REF, repository=self.repository, platform=built.platform, digest=built.image_id
        )
        assert isinstance(found, bytes), found
        return found

    def docker(self, *words: str) -> str:
        done = subprocess.run(["docker", *words], env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def close(self) -> None:
        if found := self.docker("image", "ls", "--quiet", self.repository).split():
            self.docker("image", "rm", "--force", *set(found))


CONTAINERD = pytest.param("containerd", marks=pytest.mark.docker)
CLASSIC = pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic])


@pytest.fixture(params=[CONTAINERD, CLASSIC], scope="module")
def workshop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """On each of Docker's image stores in turn; its root is for reading."""
    folder = tmp_path_factory.mktemp("workshop")
    made = Workshop(folder, request.getfixturevalue("classic_host") if request.param == "classic" else None)
    yield made
    made.close()


only_containerd = pytest.mark.parametrize("workshop", [CONTAINERD], indirect=True, scope="module")
only_classic = pytest.mark.parametrize("workshop", [CLASSIC], indirect=True, scope="module")


def told(statement: bytes) -> str:
    """All of it, the Dockerfile in base64 too."""
    document = json.loads(statement)
    (metadata,) = (value for key, value in document["predicate"]["metadata"].items() if key.endswith("#metadata"))
    files = (base64.b64decode(info["data"]).decode() for info in metadata["source"]["infos"])
    return "\n".join([statement.decode(), *files])


def components(bill: bytes) -> dict[str, dict[str, Any]]:
    return {each["bom-ref"]: each for each in json.loads(bill)["components"]}


@only_containerd
@pytest.mark.parametrize("platform", [AMD64, ARM64], ids=str)
def test_provenance_is_of_the_very_image_that_was_built(workshop: Workshop, platform: Platform) -> None:
    built = workshop.built(platform)

    statement = json.loads(workshop.provenance(built))

    assert statement["subject"][0]["digest"] == {"sha256": (built.digest or "")[7:]}
    assert len(statement["predicate"]["buildConfig"]["llbDefinition"]) > 3  # mode=max has the steps


@only_containerd
def test_provenance_names_the_base_image_as_written_with_its_digest(workshop: Workshop) -> None:
    base = workshop.request(AMD64).base
    assert base is not None

    (material,) = json.loads(workshop.provenance(workshop.built()))["predicate"]["materials"]

    assert material["uri"] == "pkg:docker/python@3.13-slim?platform=linux%2Famd64"
    assert f"sha256:{material['digest']['sha256']}" == base.digest


@only_containerd
def test_provenance_holds_no_secret_no_mirror_and_no_folder(workshop: Workshop) -> None:
    found = told(workshop.provenance(workshop.built()))

    assert "id=token" in found  # the secret's name stays
    assert "somebody wrote it down here: ***" in found
    assert workshop.secret not in found
    for value in Settings.read(workshop.environment).build_contexts.values():
        assert value.removeprefix("docker-image://").partition("/")[0] not in found
    assert str(workshop.folder) not in found


@only_containerd
def test_equal_sources_at_another_place_have_equal_provenance(workshop: Workshop, tmp_path: Path) -> None:
    built = workshop.built()
    elsewhere = workshop.copy(tmp_path / "some" / "where" / "else")

    assert workshop.provenance(built, elsewhere) == workshop.provenance(built)


@only_containerd
def test_a_changed_source_gives_no_provenance(workshop: Workshop, tmp_path: Path) -> None:
    digest, root = workshop.built().digest or "", workshop.copy(tmp_path / "changed")
    (root / "handler.py").write_text("print('changed since')\n")

    found = workshop.source.provenance(workshop.request(AMD64, root), AMD64, digest, progress=lambda _: None)

    assert isinstance(found, Missing)
    assert re.fullmatch("the same build now gives sha256:[0-9a-f]{64}", found.reason)


@only_classic
def test_the_classic_store_keeps_no_provenance(workshop: Workshop) -> None:
    found = workshop.source.provenance(workshop.request(AMD64), AMD64, f"sha256:{'0' * 64}", progress=print)

    assert found == Missing("the classic image store keeps no provenance")


@only_containerd
def test_other_tools_read_what_is_stored(workshop: Workshop, tmp_path: Path) -> None:
    built = workshop.built()
    made = attestation_manifest(workshop.provenance(built))
    with image_registry() as there:
        remote, repository = OciRegistry(there.environment), there.repository("org/proven")
        DockerPusher(workshop.environment).push(built.image, repository, "1-0-amd64", progress=lambda _: None)
        workshop.docker("image", "rm", f"{repository}:1-0-amd64")
        for blob in made.blobs:
            remote.put_blob(repository, blob)
        remote.put_manifest(repository, made.descriptor.digest, made.manifest, media_type=MANIFEST)
        subject = remote.manifest(repository, built.digest or "")
        assert subject is not None
        entry = IndexEntry(AMD64, subject.digest, subject.size_bytes, subject.media_type, made.descriptor)
        remote.put_manifest(repository, "1-0", index([entry]), media_type=INDEX)

        inspect = ("buildx", "imagetools", "inspect", f"{repository}:1-0", "--format")
        provenance = json.loads(workshop.docker(*inspect, "{{json .Provenance}}"))
        copied = tmp_path / "copied"
        skopeo = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{repository}:1-0", f"dir:{copied}"]
        subprocess.run(skopeo, check=True)

        # `start` and everybody else gets the image, not what attests to it
        assert json.loads((copied / "manifest.json").read_bytes()) == subject.document
        assert provenance["SLSA"] == json.loads(made.statement)["predicate"]


def test_a_bill_says_what_is_in_the_image(workshop: Workshop) -> None:
    base = workshop.request(AMD64).base
    assert base is not None

    bill = workshop.sbom(workshop.built())

    found = components(bill)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None
    assert found["pkg:pypi/thing@1.0"]["licenses"] == [{"license": {"acknowledgement": "declared", "id": "MIT"}}]
    assert found[f"base:{base.digest}"]["version"] == "3.13-slim"
    assert "system:debian-13" in found


def test_a_bill_leaves_out_what_a_later_layer_removed(workshop: Workshop, tmp_path: Path) -> None:
    root = workshop.copy(tmp_path / "with-a-layer")
    with (root / "Dockerfile").open("a") as file:
        file.write("RUN rm -r /deps/gone-1.0.dist-info\n")

    found = components(workshop.sbom(workshop.build(workshop.request(AMD64, root))))

    assert "pkg:pypi/thing@1.0" in found
    assert "pkg:pypi/gone@1.0" not in found


def test_a_bill_is_made_for_a_platform_that_does_not_run_here(workshop: Workshop) -> None:
    bill = workshop.sbom(workshop.built(ARM64))

    assert json.loads(bill)["metadata"]["component"]["purl"].endswith("?arch=arm64")
    assert "pkg:pypi/gone@1.0" in components(bill)


def test_a_bill_of_the_same_image_is_the_same_bytes(workshop: Workshop) -> None:
    built = workshop.built()

    assert workshop.sbom(built) == workshop.sbom(built)


@pytest.mark.docker
def test_the_litellm_processors_proofs_say_what_it_was_made_of(tmp_path: Path) -> None:
    root = copy_checkout(tmp_path / "checkout")
    settings = replace(Settings.read(os.environ), root=root)
    spec = registry.load(root, ProcessorRef("llm", "litellm", 1))
    builder = BuildxBuilder(os.environ, settings.build_contexts, settings.build_secrets, PROJECT)
    request = images.request(spec, (AMD64,), settings=settings, builder=builder, progress=lambda _: None)
    (built,) = builder.build(request, progress=lambda _: None)
    lock = (root / spec.build.dockerfile).with_name("requirements.lock").read_text()

    statement = BuildxProvenance(builder).provenance(request, AMD64, built.image, progress=lambda _: None)
    bill = DockerInventory(os.environ).sbom(
        built.image, ref=spec.ref, repository=spec.repository, platform=AMD64, digest=built.image
    )

    assert isinstance(statement, bytes)
    assert isinstance(bill, bytes)
    assert '"id":"pip_conf"' in statement.decode()
    assert not re.search(r"localhost:5000|127\.0\.0\.1|/run/theory", told(statement))
    # What is for every platform; the Dockerfile removes one.
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", lock, flags=re.MULTILINE))
    names = {re.sub("[-_.]+", "-", name).lower(): version for name, version in locked.items() if name != "hf-xet"}
    assert len(names) > 40
    assert {f"pkg:pypi/{name}@{version}" for name, version in names.items()} <= components(bill).keys()
    assert not [each for each in components(bill) if "hf-xet" in each]
