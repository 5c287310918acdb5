"""From build to the pinned digest, on both image stores, and what other tools make of what was pushed."""

import hashlib
import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apps.processors import attestations
from apps.processors.reference import PLATFORMS
from tests.integration.registries import (
    PASSWORD,
    USER,
    Registry,
    docker_config,
    own_address,
    registry,
    trusted_by_engines,
)
from tests.integration.shop import CLASSIC, CONTAINERD, Shop, opened
from tests.places import need_program

pytestmark = pytest.mark.docker

CREDENTIALS = f"{USER}:{PASSWORD}"


@pytest.fixture(scope="module", params=[CONTAINERD, CLASSIC])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    host = request.getfixturevalue("classic_host") if request.param == "classic" else None
    with opened(tmp_path_factory.mktemp(request.param), docker_host=host) as found:
        yield found


@pytest.fixture(scope="module")
def pushed(shop: Shop) -> Iterator[dict[str, Any]]:
    """What a push said whose registry is there."""
    with registry() as made:
        yield shop.pushed(made.address)


only_containerd = pytest.mark.parametrize("shop", [CONTAINERD], indirect=True)


def succeeds(shop: Shop, *words: str, **environment: str) -> dict[str, Any]:
    done = shop.shell(*words, "--json", env=environment, timeout_s=400)
    assert done.status == 0, done
    return done.document


def pin(shop: Shop, pushed: dict[str, Any], **environment: str) -> dict[str, str]:
    """Type the lines that push gave; returns what is pinned for each platform."""
    for line in pushed["pin"]:
        succeeds(shop, *shlex.split(line), **environment)
    pins: dict[str, str] = succeeds(shop, "processorctl", "show", "--ref", shop.ref)["image"]["pins"]
    return pins


def skopeo(*words: str) -> str:
    done = subprocess.run([need_program("skopeo"), *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@contextmanager
def guarded(folder: Path, login: str) -> Iterator[tuple[Registry, dict[str, str]]]:
    """A registry with TLS that asks for a login, and the environment of those who have one."""
    with registry(host=own_address(), tls=True, login=login) as made, trusted_by_engines(made):
        folder.mkdir()
        yield made, made.environment | {"DOCKER_CONFIG": str(docker_config(folder, made.address))}


# other tools


def test_skopeo_finds_our_digests(pushed: dict[str, Any]) -> None:
    repository, index = pushed["index"].split("@")

    def raw(reference: str) -> str:
        return sha256(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{reference}"))

    assert raw(f"{repository}:{pushed['tag']}") == index
    for image in pushed["images"]:
        assert f"{repository}@{raw(image['oci'])}" == image["oci"]
        architecture = ("--override-os=linux", f"--override-arch={image['platform'][6:]}")
        found = json.loads(skopeo(*architecture, "inspect", "--tls-verify=false", f"docker://{pushed['index']}"))
        assert f"linux/{found['Architecture']}" == image["platform"]


def test_skopeo_copies_all_of_it_to_another_registry_unchanged(pushed: dict[str, Any]) -> None:
    with registry() as other:
        target = f"docker://{other.address}/copy:all"
        unguarded = ("--src-tls-verify=false", "--dest-tls-verify=false")

        skopeo("copy", "--all", "--preserve-digests", *unguarded, f"docker://{pushed['index']}", target)

        index = pushed["index"].partition("@")[2]
        assert sha256(skopeo("inspect", "--tls-verify=false", "--raw", target)) == index
        assert {image["oci"].partition("@")[2] for image in pushed["images"]} | {index} <= other.blobs()


def test_an_index_that_another_tool_made_is_pinned_by_platform(shop: Shop, pushed: dict[str, Any]) -> None:
    theirs, images = f"{pushed['repository']}:theirs", [image["oci"] for image in pushed["images"]]
    shop.docker("buildx", "imagetools", "create", "--tag", theirs, *images)
    raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{theirs}")
    by_platform = {entry.platform: entry.digest for entry in attestations.entries(json.loads(raw))}
    words = ("processorctl", "pin", "--ref", shop.ref, "--verify")

    for platform in PLATFORMS:
        oci = f"{pushed['repository']}@{by_platform[platform]}"
        pinned = succeeds(shop, *words, "--platform", platform.architecture, "--oci", oci)
        assert (pinned["oci"], pinned["platform"]) == (oci, str(platform))
    whole = f"{pushed['repository']}@{sha256(raw)}"
    refused = shop.shell(*words, "--platform", "amd64", "--oci", whole, "--json")

    assert whole != pushed["index"]
    assert (refused.status, refused.document["error"]["code"]) == (65, "ERR_REF")
    shop.unpin()


# the order of operations


@pytest.mark.parametrize(
    ("shop", "login"),
    [pytest.param("containerd", "token"), pytest.param("classic", "password", marks=pytest.mark.classic)],
    indirect=["shop"],
)
def test_the_order_of_operations_ends_with_a_run_of_the_pinned_digest(shop: Shop, tmp_path: Path, login: str) -> None:
    with guarded(tmp_path / "docker", login) as (made, known):
        pushed = shop.pushed(made.address, **known)
        pins = pin(shop, pushed)
        assert pins == {image["platform"]: image["oci"] for image in pushed["images"]}
        shop.remove_images()

        for platform in ("linux/arm64", "linux/amd64"):
            if shop.classic and platform == "linux/arm64":
                continue  # by emulation once is enough
            words = ("--ref", shop.ref, "--platform", platform)
            started = succeeds(shop, "localctl", "start", *words, "--timeout", "300", **known)
            ran = succeeds(shop, "localctl", "run", *words)

            digest = pins[platform].partition("@")[2]
            assert started["image"] == {"digest": digest, "source": "pin", "platform": platform}
            assert ran["meta"]["image_digest"] == digest
            (row,) = succeeds(shop, "localctl", "status")["containers"]
            assert (row["image_digest"], row["drift"]) == (digest, None)

        shop.shell("localctl", "stop", "--ref", shop.ref)
        shop.unpin()
    shop.build()


def test_what_was_started_before_it_was_pushed_and_pinned_has_not_drifted(shop: Shop) -> None:
    shop.say("before it was pushed")
    shop.build()
    with registry() as made:
        before = succeeds(shop, "localctl", "start", "--ref", shop.ref)
        pushed = shop.pushed(made.address)
        pins = pin(shop, pushed)

        (row,) = succeeds(shop, "localctl", "status")["containers"]
        ran = succeeds(shop, "localctl", "run", "--ref", shop.ref)
        after = succeeds(shop, "localctl", "start", "--ref", shop.ref)

        assert row["drift"] is None
        assert ran["status"] == "success"
        assert (after["reused"], after["container"]) == (True, before["container"])
        on_disk = {f"{made.address}/org/{shop.name}@{digest}" for digest in made.blobs()}
        assert set(pins.values()) <= on_disk
        verified = shop.shell("processorctl", "verify", "--ref", shop.ref, "--json")
        assert verified.status == 0, verified

    shop.shell("localctl", "stop", "--ref", shop.ref)
    shop.unpin()
    shop.build()


@only_containerd
def test_skopeo_copies_the_pinned_digests_and_they_run_from_the_copy(shop: Shop, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    with guarded(tmp_path / "other", "password") as (made, known):
        pushed = shop.pushed(made.address, **known)
        pins = pin(shop, pushed)
        for platform, oci in pins.items():
            words = ("--preserve-digests", f"--src-creds={CREDENTIALS}")
            skopeo("copy", *words, f"docker://{oci}", f"oci:{copies}:{platform[6:]}")
    shop.remove_images()

    index = json.loads((copies / "index.json").read_text())
    assert [each["digest"] for each in index["manifests"]] == [oci.partition("@")[2] for oci in pins.values()]
    skopeo(
        "copy",
        "--preserve-digests",
        f"oci:{copies}:amd64",
        f"oci-archive:{tmp_path}/copy.tar:localhost/{shop.name}:copy",
    )
    shop.docker("load", "--input", f"{tmp_path}/copy.tar")
    started = succeeds(shop, "localctl", "start", "--ref", shop.ref)  # its registry is gone
    ran = succeeds(shop, "localctl", "run", "--ref", shop.ref)

    assert started["image"]["source"] == "pin"
    assert ran["meta"]["image_digest"] == pins["linux/amd64"].partition("@")[2]
    shop.shell("localctl", "stop", "--ref", shop.ref)
    shop.unpin()
    shop.build()
