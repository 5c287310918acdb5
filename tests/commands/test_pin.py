"""processorctl pin, as typed: one line of registry.yaml, asked for at the image registry, taken back from git."""

import difflib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.registries import Registry, registry
from tests.integration.tiny_images import put_image, put_index
from tests.shell import Outcome, Shell

REF = "llm/litellm@1"
IMAGE = "ghcr.io/org/llm-litellm@sha256:" + "1" * 64
OTHER = "ghcr.io/org/llm-litellm@sha256:" + "2" * 64
AUTHOR = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def pin(cli: Shell, oci: str, *options: str, platform: str = "amd64") -> Outcome:
    return cli("processorctl", "pin", "--ref", REF, "--platform", platform, "--oci", oci, *options)


def place(cli: Shell) -> Path:
    return cli.root / "registry/llm/litellm/1/registry.yaml"


def pins(cli: Shell) -> dict[str, str | None]:
    (listed,) = (each for each in cli("processorctl", "list", "--json").document["processors"] if each["ref"] == REF)
    return dict(listed["pins"])


def refusal(done: Outcome) -> tuple[int, str]:
    return done.status, done.document["error"]["code"]


# pin


def test_the_references_line_works_as_typed(cli: Shell) -> None:
    before = place(cli).read_text().splitlines()
    oci = "ghcr.io/org/image@sha256:" + "ab" * 32

    done = pin(cli, oci, "--json")

    assert done.status == 0
    assert done.document == {
        "status": "success",
        "ref": REF,
        "platform": "linux/amd64",
        "oci": oci,
        "previous": None,
        "changed": True,
    }
    assert done.stderr == (
        f"warning: ghcr.io/org/image is not the repository of {REF}, which is ghcr.io/org/llm-litellm\n"
    )
    changed = [line for line in difflib.ndiff(before, place(cli).read_text().splitlines()) if line[0] in "+-"]
    assert changed == ["-     amd64:", f"+     amd64: {oci}"]
    assert pins(cli) == {"linux/amd64": oci, "linux/arm64": None}


def test_for_people_it_says_what_is_pinned_now_and_what_was_before(cli: Shell) -> None:
    first, again, other = pin(cli, IMAGE), pin(cli, IMAGE), pin(cli, OTHER)

    assert [each.status for each in (first, again, other)] == [0, 0, 0]
    assert first.stdout == f"{REF} is pinned to {IMAGE} for linux/amd64\n"
    assert again.stdout == f"{REF} is pinned to {IMAGE} for linux/amd64 already\n"
    assert other.stdout == f"{REF} is pinned to {OTHER} for linux/amd64, before to sha256:{'1' * 64}\n"
    assert first.stderr == ""


def test_the_same_pin_again_changes_nothing(cli: Shell) -> None:
    pin(cli, IMAGE)
    before = place(cli).stat().st_ino

    document = pin(cli, IMAGE, "--json").document

    assert (document["changed"], document["previous"]) == (False, IMAGE)
    assert place(cli).stat().st_ino == before


def test_platforms_at_once_lose_none(cli: Shell) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda each: pin(cli, IMAGE, platform=each), ["amd64", "arm64"] * 2))

    assert [each.status for each in done] == [0] * 4
    assert pins(cli) == {"linux/amd64": IMAGE, "linux/arm64": IMAGE}


@pytest.mark.parametrize(
    "oci",
    [
        "ghcr.io/org/image:latest",
        "ghcr.io/org/image",
        "ghcr.io/org/image:1@sha256:" + "1" * 64,
        "sha256:" + "1" * 64,
        "ghcr.io/org/image@sha256:" + "1" * 63,
        "ghcr.io/org/image@sha256:" + "A" * 64,
        "ghcr.io/org/image@sha512:" + "1" * 128,
        "org/image@sha256:" + "1" * 64 + "\n",
        "",
    ],
)
def test_what_is_not_a_digest_is_refused(cli: Shell, oci: str) -> None:
    before = place(cli).read_bytes()

    assert refusal(pin(cli, oci, "--json")) == (65, "ERR_REF")
    assert place(cli).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("--ref", "no/such@1", "--platform", "amd64", "--oci", IMAGE), 66, "ERR_REF_NOT_FOUND"),
        (("--ref", "litellm", "--platform", "amd64", "--oci", IMAGE), 65, "ERR_REF"),
        (("--ref", REF, "--platform", "s390x", "--oci", IMAGE), 2, "ERR_USAGE"),
        (("--ref", REF, "--platform", "windows/amd64", "--oci", IMAGE), 2, "ERR_USAGE"),
        (("--ref", REF, "--oci", IMAGE), 2, "ERR_USAGE"),
        (("--ref", REF, "--platform", "amd64"), 2, "ERR_USAGE"),
        (("--ref", REF, "--platform", "amd64", "--oci", IMAGE, "--rollback"), 2, "ERR_USAGE"),
    ],
)
def test_what_else_is_refused(cli: Shell, words: tuple[str, ...], status: int, code: str) -> None:
    assert refusal(cli("processorctl", "pin", *words, "--json")) == (status, code)


def test_a_file_that_has_no_line_for_it_is_refused_as_it_is(cli: Shell) -> None:
    text = place(cli).read_text().replace("    amd64:\n    arm64:\n", "    ? arm64\n    :\n")
    place(cli).write_text(text)

    error = pin(cli, IMAGE, "--json").document["error"]

    assert error["code"] == "ERR_REGISTRY"
    (finding,) = error["details"]["findings"]
    assert (finding["line"], finding["path"], finding["expected"]) == (
        7,
        "$.image.platforms.arm64",
        "one line a platform",
    )
    assert place(cli).read_text() == text


# rollback


def git(cli: Shell, *words: str) -> str:
    argv = ["git", "-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false", *words]
    environment = {**os.environ, **AUTHOR}
    return subprocess.run(
        argv, cwd=cli.root, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(cli: Shell) -> str:
    git(cli, "add", "registry")
    git(cli, "commit", "--quiet", "--message", "x")
    return git(cli, "rev-parse", "HEAD")


def rollback(cli: Shell, *options: str) -> Outcome:
    return cli("processorctl", "pin", "--rollback", "--ref", REF, "--platform", "amd64", *options)


def test_rollback_puts_the_pin_before_back_and_says_its_commit(cli: Shell) -> None:
    git(cli, "init", "--quiet")
    pin(cli, IMAGE)
    revision = commit(cli)
    pin(cli, OTHER)
    commit(cli)

    done = rollback(cli, "--json")

    assert done.document == {
        "status": "success",
        "ref": REF,
        "platform": "linux/amd64",
        "oci": IMAGE,
        "previous": OTHER,
        "changed": True,
        "revision": revision,
    }
    assert git(cli, "diff", revision, "--", str(place(cli))) == ""


def test_rollback_without_an_earlier_pin_is_refused_with_the_reason(cli: Shell) -> None:
    outside = rollback(cli, "--json", "--verify")
    git(cli, "init", "--quiet")
    without = rollback(cli, "--json")
    pin(cli, IMAGE)
    commit(cli)
    never = rollback(cli, "--json")

    assert [refusal(each) for each in (outside, without, never)] == [
        (78, "ERR_CONFIG"),
        (78, "ERR_CONFIG"),
        (66, "ERR_IMAGE_NOT_FOUND"),
    ]
    assert "not a git repository" in outside.document["error"]["message"]
    assert pins(cli)["linux/amd64"] == IMAGE


# --verify


@pytest.fixture
def images_at() -> Iterator[Registry]:
    with registry() as made:
        yield made


def test_verify_pins_an_image_that_is_there_and_of_the_platform(cli: Shell, images_at: Registry) -> None:
    image = str(put_image(images_at, "arm64"))

    done = pin(cli, image, "--verify", "--json", platform="arm64")

    assert (done.status, done.document["oci"]) == (0, image)


def test_verify_refuses_a_digest_that_is_not_there(cli: Shell, images_at: Registry) -> None:
    done = pin(cli, f"{images_at.repository()}@sha256:{'0' * 64}", "--verify", "--json")

    assert refusal(done) == (66, "ERR_IMAGE_NOT_FOUND")
    assert pins(cli)["linux/amd64"] is None


def test_verify_refuses_an_index_and_names_its_images(cli: Shell, images_at: Registry) -> None:
    amd64, arm64 = (put_image(images_at, each) for each in ("amd64", "arm64"))

    done = pin(cli, str(put_index(images_at, arm64=arm64, amd64=amd64)), "--verify", "--json")

    assert refusal(done) == (65, "ERR_REF")
    error = done.document["error"]
    assert error["hint"] == f"pin one of its images: linux/amd64 {amd64}, linux/arm64 {arm64}"
    assert error["details"]["images"] == [
        {"platform": "linux/amd64", "oci": str(amd64)},
        {"platform": "linux/arm64", "oci": str(arm64)},
    ]
    assert pins(cli)["linux/amd64"] is None


def test_verify_refuses_an_image_of_another_platform_and_says_which(cli: Shell, images_at: Registry) -> None:
    arm64, s390x = (put_image(images_at, each) for each in ("arm64", "s390x"))

    other, foreign = (pin(cli, str(each), "--verify", "--json") for each in (arm64, s390x))

    assert [refusal(each) for each in (other, foreign)] == [(65, "ERR_REF")] * 2
    assert other.document["error"]["message"] == f"{arm64} is for linux/arm64, not linux/amd64"
    assert other.document["error"]["hint"] == f"processorctl pin --ref {REF} --platform arm64 --oci {arm64}"
    assert "no image of a platform that we build for" in foreign.document["error"]["message"]
    assert pins(cli)["linux/amd64"] is None


def test_verify_says_when_the_registry_does_not_answer(cli: Shell, images_at: Registry) -> None:
    image = str(put_image(images_at))
    images_at.kill()

    assert refusal(pin(cli, image, "--verify", "--json")) == (69, "ERR_IMAGE_REGISTRY")
    assert pin(cli, image, "--json").status == 0, "without --verify nobody is asked"
