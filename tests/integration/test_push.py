"""`processorctl push` against real image registries: what is sent, what is named, and what goes wrong."""

import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.processors import attestations
from tests.integration.middlemen import Answer, Asked, Line, line, middleman
from tests.integration.registries import Registry, docker_config, registry, small_disk
from tests.integration.shop import CLASSIC, CONTAINERD, Shop, opened

pytestmark = pytest.mark.docker

MIB = 2**20
BOTH = ["linux/amd64", "linux/arm64"]
ONE = ("--platforms", "linux/amd64")


@pytest.fixture(scope="module", params=[CONTAINERD, CLASSIC])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    host = request.getfixturevalue("classic_host") if request.param == "classic" else None
    with opened(tmp_path_factory.mktemp(request.param), docker_host=host) as found:
        yield found


only_containerd = pytest.mark.parametrize("shop", [CONTAINERD], indirect=True)
only_classic = pytest.mark.parametrize("shop", [CLASSIC], indirect=True)


@dataclass(frozen=True, slots=True)
class Stocked:
    """A registry that has the shop's images, and what the push said. Tests leave it as it is."""

    shop: Shop
    registry: Registry
    pushed: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def stocked(shop: Shop) -> Iterator[Stocked]:
    with registry() as made:
        done = shop.push(made.address)
        yield Stocked(shop, made, done.document, done.stderr)


def stored(made: Registry, reference: str) -> bytes:
    """A manifest's bytes, past every cache."""
    file = made.storage / "docker/registry/v2/blobs/sha256" / reference[7:9] / reference[7:] / "data"
    return file.read_bytes()


def named(made: Registry, name: str, tag: str) -> str:
    folder = made.storage / "docker/registry/v2/repositories/org" / name / "_manifests/tags" / tag
    return (folder / "current/link").read_text()


def uploads(made: Registry) -> list[str]:
    return [path for method, path, _ in made.requests() if method in ("PATCH", "PUT") and "/blobs/" in path]


def error(done: Any) -> dict[str, str]:
    found: dict[str, str] = done.document["error"]
    return found


# what is sent


def test_each_platform_and_an_index_over_them_are_in_the_registry(stocked: Stocked) -> None:
    pushed, repository = stocked.pushed, f"{stocked.registry.address}/org/{stocked.shop.name}"

    assert pushed["status"] == "success"
    assert (pushed["ref"], pushed["repository"]) == (stocked.shop.ref, repository)
    assert [image["platform"] for image in pushed["images"]] == BOTH
    index = attestations.entries(json.loads(stored(stocked.registry, pushed["index"].partition("@")[2])))
    assert [f"{repository}@{entry.digest}" for entry in index] == [image["oci"] for image in pushed["images"]]


def test_the_tag_of_the_build_names_the_index(stocked: Stocked) -> None:
    tag = stocked.shop.builds()[0]["tag"]

    assert stocked.pushed["tag"] == tag
    assert named(stocked.registry, stocked.shop.name, tag) == stocked.pushed["index"].partition("@")[2]


def test_the_digests_are_those_of_the_builds(stocked: Stocked) -> None:
    digests = {image["platform"]: image["oci"].partition("@")[2] for image in stocked.pushed["images"]}

    assert digests == {build["platform"]: build["digest"] for build in stocked.shop.builds()}


@only_classic
def test_the_classic_store_learns_its_digests_from_the_push(stocked: Stocked) -> None:
    assert all(build["digest"] in stocked.registry.blobs() for build in stocked.shop.builds())
    assert all(build["digest"] != build["image_id"] for build in stocked.shop.builds())


def test_uploads_are_counted_by_the_bytes_of_their_layers(stocked: Stocked) -> None:
    layers = {
        layer["digest"]: layer["size"]
        for image in stocked.pushed["images"]
        for layer in json.loads(stored(stocked.registry, image["oci"].partition("@")[2]))["layers"]
    }

    # What the second platform has in common with the first is there by then.
    assert sum(image["uploaded_bytes"] for image in stocked.pushed["images"]) == sum(layers.values())


def test_what_is_there_already_costs_a_few_requests(stocked: Stocked) -> None:
    time.sleep(0.2)  # the registry's log comes a moment after its answers
    before, sent = len(stocked.registry.requests()), uploads(stocked.registry)

    again = stocked.shop.pushed(stocked.registry.address)

    time.sleep(0.2)
    assert len(stocked.registry.requests()) - before <= 12
    assert uploads(stocked.registry) == sent
    assert [image["uploaded_bytes"] for image in again["images"]] == [0, 0]
    assert (again["index"], again["pin"]) == (stocked.pushed["index"], stocked.pushed["pin"])


def test_platforms_that_are_pushed_apart_are_named_by_the_same_index(stocked: Stocked) -> None:
    with registry() as made:
        stocked.shop.pushed(made.address, "--platforms", "linux/arm64")
        later = stocked.shop.pushed(made.address, "--platforms", "amd64")

        assert [image["platform"] for image in later["images"]] == ["linux/amd64"]
        index = named(made, stocked.shop.name, later["tag"])
        assert later["index"].partition("@")[2] == index == stocked.pushed["index"].partition("@")[2]


# what is said


def test_the_result_has_the_lines_to_pin(stocked: Stocked) -> None:
    assert stocked.pushed["pin"] == [
        f"processorctl pin --ref {stocked.shop.ref} --platform {image['platform'][6:]} --oci {image['oci']}"
        for image in stocked.pushed["images"]
    ]


def test_people_get_a_table_and_the_lines_to_pin(stocked: Stocked) -> None:
    shop = stocked.shop

    done = shop.shell("processorctl", "push", "--ref", shop.ref, env=shop.to(stocked.registry.address))

    assert done.stdout.splitlines()[1].startswith("PLATFORM     DIGEST")
    assert done.stdout.splitlines()[-2:] == [f"  {each}" for each in stocked.pushed["pin"]]
    assert "linux/amd64 is there already" in done.stderr


def test_progress_goes_to_stderr(stocked: Stocked) -> None:
    assert f"pushing linux/amd64 to {stocked.registry.address}/org/{stocked.shop.name}:" in stocked.said


def test_quiet_says_nothing(stocked: Stocked) -> None:
    assert stocked.shop.push(stocked.registry.address, "-q").stderr == ""


@only_classic
def test_the_classic_store_says_that_it_keeps_no_provenance(stocked: Stocked) -> None:
    assert [image["provenance"] for image in stocked.pushed["images"]] == [False, False]
    assert "linux/amd64: no provenance: the classic image store keeps no provenance" in stocked.said


def test_show_tells_what_was_pushed_and_the_registry_says_the_same(stocked: Stocked) -> None:
    shop, pushed = stocked.shop, stocked.shop.pushed(stocked.registry.address)
    words = ("processorctl", "show", "--ref", shop.ref, "--json")

    offline = shop.shell(*words).document["image"]
    asked = shop.shell(*words, "--remote").document["image"]

    assert offline["index"] == asked["index"] == pushed["index"]
    for image in pushed["images"]:
        known, said = offline["platforms"][image["platform"]], asked["platforms"][image["platform"]]
        assert known | {"in_registry": True} == said
        assert (known["oci"], known["size_bytes"]) == (image["oci"], image["size_bytes"])
        assert (known["provenance"] is None) == shop.classic
        assert (known["sbom"], known["sbom"] is None) == (image["sbom"], False)


@only_containerd
def test_show_says_when_the_registry_has_lost_it(stocked: Stocked) -> None:
    shop, made = stocked.shop, stocked.registry
    shop.pushed(made.address)
    hidden = made.storage.rename(made.storage.with_name("hidden"))
    try:
        shown = shop.shell("processorctl", "show", "--ref", shop.ref, "--json", "--remote").document["image"]
    finally:
        shutil.rmtree(made.storage, ignore_errors=True)
        hidden.rename(made.storage)

    assert [image["in_registry"] for image in shown["platforms"].values()] == [False, False]


# what is refused before a byte moves


@only_containerd
def test_a_platform_that_was_not_built_is_named_with_the_line_to_type(shop: Shop) -> None:
    done = shop.shell("processorctl", "push", "--ref", "llm/litellm@1", "--json")

    assert done.status == 66
    assert error(done)["message"] == "llm/litellm@1 was not built for linux/amd64, linux/arm64"
    assert error(done)["hint"] == "processorctl build --ref llm/litellm@1 --platforms linux/amd64,linux/arm64"


@only_containerd
def test_builds_of_different_sources_are_refused(shop: Shop) -> None:
    with registry() as made, shop.builds_changed(1, tag="1-0123456789ab", source_digest="sha256:" + "0" * 64):
        done = shop.push(made.address)

        assert (done.status, error(done)["code"]) == (66, "ERR_IMAGE_NOT_FOUND")
        assert "are of different sources: 1-" in error(done)["message"]
        assert error(done)["hint"] == f"processorctl build --ref {shop.ref} --platforms linux/amd64,linux/arm64"
        assert made.requests() == []


def test_an_image_that_was_removed_is_told_with_the_line_to_type(shop: Shop) -> None:
    with registry() as made, shop.builds_changed(0, image="sha256:" + "0" * 64):
        done = shop.push(made.address)

        assert (done.status, error(done)["code"]) == (66, "ERR_IMAGE_NOT_FOUND")
        assert "is not on this machine any more" in error(done)["message"]
        assert error(done)["hint"].startswith(f"processorctl build --ref {shop.ref}")
        assert made.requests() == []


@only_containerd
def test_the_process_engine_has_nothing_to_push(shop: Shop) -> None:
    done = shop.push("localhost:1", LOCAL_ENGINE="process")

    assert (done.status, error(done)["code"]) == (78, "ERR_CONFIG")
    assert error(done)["hint"] == "LOCAL_ENGINE=docker"


@only_containerd
def test_a_prefix_that_names_no_repository_is_told(shop: Shop) -> None:
    done = shop.shell(
        "processorctl", "push", "--ref", shop.ref, "--json", env={"PROCESSOR_REPOSITORY_PREFIX": "https://x.test/org"}
    )

    assert (done.status, error(done)["code"]) == (78, "ERR_CONFIG")
    assert "PROCESSOR_REPOSITORY_PREFIX" in error(done)["hint"]


@only_containerd
@pytest.mark.parametrize("login", ["password", "token"])
def test_a_wrong_password_asks_for_a_login_before_anything_is_sent(shop: Shop, tmp_path: Path, login: str) -> None:
    with registry(login=login) as made:
        config = docker_config(tmp_path, made.address, password="wrong")

        done = shop.push(made.address, DOCKER_CONFIG=str(config))

        assert (done.status, error(done)["code"]) == (77, "ERR_UNAUTHORIZED")
        assert error(done)["hint"] == f"docker login {made.address}"
        assert uploads(made) == []


@only_containerd
def test_a_read_only_registry_takes_no_push(shop: Shop) -> None:
    with registry(read_only=True) as made:
        done = shop.push(made.address)

        assert (done.status, error(done)["code"]) == (1, "ERR_PUSH")
        assert error(done)["hint"]
        assert uploads(made) == []


@only_containerd
def test_a_registry_that_is_down_is_told(shop: Shop) -> None:
    done = shop.push("127.0.0.1:1")

    assert (done.status, error(done)["code"]) == (69, "ERR_IMAGE_REGISTRY")
    assert error(done)["hint"]


# another build


def test_one_line_of_the_handler_sends_one_small_layer(stocked: Stocked) -> None:
    shop, made = stocked.shop, stocked.registry
    shop.say("something else")
    shop.build()

    second = shop.pushed(made.address)

    small = {
        json.loads(stored(made, image["oci"].partition("@")[2]))["layers"][-1]["size"] for image in second["images"]
    }
    assert second["tag"] != stocked.pushed["tag"]
    assert sum(image["uploaded_bytes"] for image in second["images"]) == sum(small) < MIB
    assert named(made, shop.name, stocked.pushed["tag"]) == stocked.pushed["index"].partition("@")[2]


# what goes wrong on the way


def dies(made: Registry, on: Line, after_bytes: int) -> threading.Thread:
    """The registry dies when so many bytes have come."""

    def watch() -> None:
        until = time.monotonic() + 60
        while on.upward_bytes < after_bytes and time.monotonic() < until:
            time.sleep(0.005)
        made.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@only_containerd
def test_the_same_command_goes_on_after_the_registry_died_in_the_middle(shop: Shop) -> None:
    with registry() as made, line(made.address) as slow:
        slow.rate_bytes_s = 20 * MIB
        death = dies(made, slow, 20 * MIB)
        failed = shop.push(slow.address, *ONE)
        death.join()
        complete = made.blobs()
        made.start()
        before = uploads(made)
        slow.rate_bytes_s = None

        pushed = shop.pushed(slow.address, *ONE)

        assert (failed.status, error(failed)["code"]) == (69, "ERR_IMAGE_REGISTRY")
        assert "the same command again" in error(failed)["hint"]
        assert len(complete) >= 1
        sent_again = {path.partition("digest=")[2] for path in uploads(made)[len(before) :]}
        assert not {digest.replace(":", "%3A") for digest in complete} & sent_again
        assert named(made, shop.name, pushed["tag"]) == pushed["index"].partition("@")[2]


@only_containerd
def test_a_push_that_fails_leaves_the_tag_untouched(shop: Shop) -> None:
    with registry() as made, line(made.address) as cut:
        tag, before = (first := shop.pushed(cut.address, "--platforms", "amd64"))["tag"], first["index"]
        cut.fault("cut", after_bytes=MIB)

        failed = shop.push(cut.address)

        assert (failed.status, error(failed)["code"]) == (69, "ERR_IMAGE_REGISTRY")
        assert named(made, shop.name, tag) == before.partition("@")[2]


@only_containerd
def test_a_line_that_says_nothing_ends_in_bounded_time(shop: Shop) -> None:
    with registry() as made, line(made.address) as silent:
        silent.fault("stall")
        began_s = time.monotonic()

        failed = shop.push(silent.address)

        assert (failed.status, error(failed)["code"]) == (69, "ERR_IMAGE_REGISTRY")
        assert time.monotonic() - began_s < 75
        assert made.tags(f"org/{shop.name}") == set()


@only_containerd
def test_a_full_registry_takes_no_push(shop: Shop, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 * MIB) as disk, registry(storage=disk) as made:
        failed = shop.push(made.address)

        assert (failed.status, error(failed)["code"]) == (1, "ERR_PUSH")
        assert f"has {made.address} room left?" in error(failed)["hint"]
        assert made.tags(f"org/{shop.name}") == set()


@only_containerd
def test_tokens_that_expire_on_the_way_are_renewed(shop: Shop, tmp_path: Path) -> None:
    with registry(login="token") as made, line(made.address) as slow:
        assert made.tokens
        made.tokens.lifetime_s = -58  # the registry grants 60 s more: it is good for 2 s
        slow.rate_bytes_s = 12 * MIB
        config = docker_config(tmp_path, slow.address)

        pushed = shop.pushed(slow.address, *ONE, DOCKER_CONFIG=str(config))

        assert named(made, shop.name, pushed["tag"]) == pushed["index"].partition("@")[2]


@only_containerd
def test_a_registry_that_gives_other_bytes_than_it_was_sent_is_caught(shop: Shop) -> None:
    wanted = next(build["digest"] for build in shop.builds() if build["platform"] == "linux/amd64")

    def alter(asked: Asked, answer: Answer) -> Answer:
        if asked.method == "GET" and wanted in asked.path and answer.status == 200:
            return answer.but(body=answer.body.replace(b"layers", b"lawyer"))
        return answer

    with registry() as made, middleman(made.address, alter=alter) as liar:
        failed = shop.push(liar.address, *ONE)

        assert (failed.status, error(failed)["code"]) == (69, "ERR_IMAGE_REGISTRY")
        assert shop.builds()[0]["tag"] not in made.tags(f"org/{shop.name}")


@only_containerd
def test_a_registry_that_names_another_index_is_caught(shop: Shop) -> None:
    other = json.dumps({"schemaVersion": 2, "mediaType": attestations.INDEX, "manifests": []}).encode()
    digest = f"sha256:{hashlib.sha256(other).hexdigest()}"
    tag = shop.builds()[0]["tag"]

    def alter(asked: Asked, answer: Answer) -> Answer:
        if asked.method == "GET" and asked.path.endswith(f"/{tag}") and answer.status == 200:
            headers = {"docker-content-digest": digest, "content-length": str(len(other)), "etag": None}
            return answer.but(body=other, headers=headers)
        return answer

    with registry() as made, middleman(made.address, alter=alter) as liar:
        failed = shop.push(liar.address, *ONE)

        assert (failed.status, error(failed)["code"]) == (1, "ERR_PUSH"), failed
        assert digest in error(failed)["message"]


@only_containerd
def test_ctrl_c_leaves_the_tag_untouched_and_the_next_push_goes_on(shop: Shop) -> None:
    with registry() as made, line(made.address) as slow:
        slow.rate_bytes_s = 10 * MIB
        process = shop.shell.spawn("processorctl", "push", "--ref", shop.ref, "--json", *ONE, env=shop.to(slow.address))
        while slow.upward_bytes < 10 * MIB:
            time.sleep(0.01)

        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=10)

        assert process.returncode == 130
        assert json.loads(stdout)["error"]["code"] == "ERR_CANCELLED"
        assert shop.builds()[0]["tag"] not in made.tags(f"org/{shop.name}")
        slow.rate_bytes_s = None
        assert shop.pushed(slow.address, *ONE)["status"] == "success"
