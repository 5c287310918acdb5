import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from apps.processors import images, wiring
from apps.processors.adapters.base import BuiltImage
from apps.processors.images import BuildResult
from apps.processors.reference import AMD64, ARM64, ProcessorRef
from apps.processors.registry import load
from apps.processors.state import BuildRecord, LocalState
from tests.shell import Shell

REF = ProcessorRef("llm", "litellm", 1)
PIN = "ghcr.io/org/llm-litellm@sha256:" + "1" * 64


def pin(root: Path) -> None:
    path = root / "registry/llm/litellm/1/registry.yaml"
    path.write_text(path.read_text().replace("    amd64:\n", f"    amd64: {PIN}\n"))


def record(root: Path) -> BuildRecord:
    built = BuildRecord(
        engine="docker",
        platform="linux/amd64",
        tag="1-0123456789ab",
        source_digest="sha256:" + "2" * 64,
        digest="sha256:" + "3" * 64,
        image="sha256:" + "4" * 64,
        image_id="sha256:" + "4" * 64,
        size_bytes=120_000_000,
        pin=None,
        built_at="2026-01-01T00:00:00.000Z",
    )
    LocalState(root / "code" / ".theory").record_builds(REF, [built])
    return built


# list


def test_list_has_each_processor_with_pins_and_builds(cli: Shell) -> None:
    pin(cli.root)
    built = record(cli.root)

    other, processor = cli("processorctl", "list", "--json").document["processors"]

    assert (other["ref"], other["builds"]) == ("image/thumbnail@1", [])
    assert (processor["ref"], processor["slug"]) == ("llm/litellm@1", "llm-litellm-v1")
    assert processor["pins"] == {"linux/amd64": PIN, "linux/arm64": None}
    assert [(build["tag"], build["digest"]) for build in processor["builds"]] == [(built.tag, built.digest)]


def test_list_without_builds_makes_no_state(cli: Shell) -> None:
    assert [each["builds"] for each in cli("processorctl", "list", "--json").document["processors"]] == [[], []]
    assert not (cli.root / "code" / ".theory").exists()


def test_list_is_a_table_for_people(cli: Shell) -> None:
    pin(cli.root)
    record(cli.root)

    assert cli("processorctl", "list").stdout.splitlines() == [
        "REF                PINNED       BUILT        BUILT AT",
        "image/thumbnail@1  -            -            -",
        "llm/litellm@1      linux/amd64  linux/amd64  2026-01-01T00:00:00.000Z",
    ]


# show


def test_show_has_spec_digest_and_image(cli: Shell) -> None:
    pin(cli.root)

    document = cli("processorctl", "show", "--ref", "llm/litellm@1", "--json").document

    spec = load(cli.root, REF)
    assert list(document) == ["status", "ref", "spec", "spec_digest", "image"]
    assert (document["spec"], document["spec_digest"]) == (spec.document, spec.spec_digest)
    assert document["image"]["pins"]["linux/amd64"] == PIN


def test_show_is_an_outline_for_people(cli: Shell) -> None:
    lines = cli("processorctl", "show", "--ref", "llm/litellm@1").stdout.splitlines()

    assert lines[:4] == ["ref: llm/litellm@1", "spec:", "  ref: llm/litellm@1", "  runtime:"]


@pytest.mark.parametrize(
    ("ref", "code", "status"), [("llm/absent@1", "ERR_REF_NOT_FOUND", 66), ("llm/litellm", "ERR_REF", 65)]
)
def test_show_of_another_ref_fails(cli: Shell, ref: str, code: str, status: int) -> None:
    outcome = cli("processorctl", "show", "--ref", ref, "--json")

    assert (outcome.document["error"]["code"], outcome.status) == (code, status)


# validate


def test_validate_counts_what_it_checked(cli: Shell) -> None:
    assert cli("processorctl", "validate", "--json").document == {"status": "success", "checked": 2}


def test_validate_tells_every_finding(cli: Shell) -> None:
    path = cli.root / "registry/llm/litellm/1/registry.yaml"
    path.write_text(path.read_text().replace("port: 8000", "port: 0").replace("cpu: 1", "cpu: none"))

    outcome = cli("processorctl", "validate", "--json")

    error = outcome.document["error"]
    assert (error["code"], outcome.status) == ("ERR_REGISTRY", 65)
    assert [finding["path"] for finding in error["details"]["findings"]] == ["$.runtime.port", "$.runtime.cpu"]
    assert [line.split(" ")[1] for line in outcome.stderr.splitlines()] == ["$.runtime.port:", "$.runtime.cpu:"]


def test_a_broken_registry_is_told_by_every_subcommand_that_reads_it(cli: Shell) -> None:
    (cli.root / "registry/llm/litellm/1/registry.yaml").write_text("a: 1\na: 2\n")

    for words in (("list",), ("show", "--ref", "llm/litellm@1"), ("build", "--ref", "llm/litellm@1")):
        error = cli("processorctl", *words, "--json").document["error"]
        assert error["code"] == "ERR_REGISTRY"
        assert error["message"].startswith("registry/llm/litellm/1/registry.yaml:2:1: $.a: expected each key once")


# build


class Build:
    """Stands for `images.build`: what it was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()

    def __call__(self, spec: Any, platforms: Any, *, settings: Any, builder: Any, state: Any, progress: Any) -> Any:
        self.asked = (spec.ref, platforms, settings.root)
        progress("step 1 of 1")
        image = BuiltImage(AMD64, "sha256:" + "3" * 64, "sha256:4", "sha256:4", 120_000_000)
        return BuildResult(REF, "docker", "1-0123456789ab", "sha256:2", (image,), (ARM64,), 1234)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> Build:
    service = Build()
    monkeypatch.setenv("THEORY_ROOT", str(checkout))
    monkeypatch.setattr(images, "build", service)
    monkeypatch.setattr(wiring, "builder", lambda settings: None)
    return service


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    call_command("processorctl", "build", *words)
    return capsys.readouterr()


def test_build_is_for_both_platforms_unless_told(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "--ref", "llm/litellm@1")
    assert build.asked[:2] == (REF, (AMD64, ARM64))

    call(capsys, "--ref", "llm/litellm@1", "--platforms", "arm64")
    assert build.asked[:2] == (REF, (ARM64,))


def test_build_tells_what_was_built_and_what_was_skipped(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = call(capsys, "--ref", "llm/litellm@1")

    assert out.splitlines() == [
        "llm/litellm@1 1-0123456789ab for docker, 1.2 s",
        "PLATFORM     IMAGE                                                                    SIZE",
        f"linux/amd64  sha256:{'3' * 64}  120.0 MB",
        "skipped: linux/arm64",
    ]
    assert err == "step 1 of 1\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--ref", "llm/litellm@1", "--platforms", "riscv64"), "ERR_USAGE"),
        (("--ref", "llm/litellm@1", "--platforms", ""), "ERR_USAGE"),
        (("--platforms", "amd64"), "ERR_USAGE"),
        (("--ref", "LLM"), "ERR_REF"),
        (("--ref", "llm/absent@1"), "ERR_REF_NOT_FOUND"),
    ],
)
def test_build_refuses_wrong_words_before_it_asks_any_engine(cli: Shell, words: tuple[str, ...], code: str) -> None:
    outcome = cli("processorctl", "build", *words, "--json", env={"DOCKER_HOST": "unix:///nonexistent.sock"})

    assert outcome.document["error"]["code"] == code


@pytest.mark.parametrize("words", [("list",), ("show", "--ref", "llm/litellm@1")])
def test_a_folder_of_the_registry_that_can_not_be_read_is_named(cli: Shell, words: tuple[str, ...]) -> None:
    folder = cli.root / "registry/llm"
    folder.chmod(0)
    as_anyone = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

    done = subprocess.run(
        [*as_anyone, *cli.argv("processorctl", *words, "--json")],
        capture_output=True,
        text=True,
        env=cli.environment(),
        timeout=60,
    )

    folder.chmod(0o755)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (65, "ERR_REGISTRY")
    assert "registry/llm" in error["message"]
    assert "(Permission denied)" in error["message"]
