"""What is drift and what is none, on both image stores: by `run`, by `status`, by `verify`, as the contract says which.

`run` believes what the container says of itself; `status` and `verify` ask the engine.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.processors.reference import Platform
from tests.integration.registries import Registry, registry
from tests.integration.shop import CLASSIC, CONTAINERD, Shop, opened
from tests.integration.tiny_images import put_image
from tests.shell import Outcome

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class Place:
    """A shop beside a registry; its processor is built for this machine's platform, and was pushed once."""

    shop: Shop
    images_at: Registry
    platform: Platform
    image: str
    """What was pushed: repository and digest."""
    built: str
    """builds.json before the push."""
    foreign: list[str] = field(default_factory=list)

    def __call__(self, *words: str, **how: Any) -> Outcome:
        which = () if words[0] == "processorctl" and words[1] == "list" else ("--ref", self.shop.ref)
        return self.shop.shell(*words, *which, "--json", **how)

    def start(self, *options: str) -> tuple[dict[str, Any], str]:
        done = self("localctl", "start", *options, timeout_s=120)
        assert done.status == 0, done
        return done.document, done.stderr

    def run(self) -> Outcome:
        return self("localctl", "run")

    def verify(self) -> Outcome:
        return self("processorctl", "verify")

    def row(self) -> dict[str, Any]:
        (found,) = self("localctl", "status").document["containers"]
        return dict(found)

    def pin(self, oci: str) -> None:
        done = self("processorctl", "pin", "--platform", str(self.platform), "--oci", oci)
        assert done.status == 0, done

    def build(self, said: str) -> None:
        self.shop.say(said)
        self.shop.build(str(self.platform))

    def restart_from(self, image: str) -> None:
        """Put a container of another image into the place of ours, under its name and with all its labels."""
        ours = self.row()
        labels = json.loads(self.shop.docker("inspect", "--format", "{{json .Config.Labels}}", ours["id"]))
        self.shop.docker("rm", "--force", "--volumes", ours["id"])
        words = [f"--label={name}={value}" for name, value in labels.items()]
        port = f"--publish=127.0.0.1:{ours['port']}:8000"
        self.shop.docker("run", "--detach", "--name", ours["name"], "--init", *words, port, image, "sleep", "600")

    def foreign_image(self) -> str:
        """The tag of an image that is not ours: ours, with a line more."""
        tag = f"{self.images_at.address}/org/{self.shop.name}:foreign"
        made_from = self.shop.builds()[0]["image"]
        container = self.shop.docker("create", "--label", "is=foreign", made_from)
        self.shop.docker("commit", "--change", "LABEL foreign=yes", container, tag)
        self.shop.docker("rm", container)
        self.foreign.append(self.id_of(tag))
        return tag

    def id_of(self, image: str) -> str:
        return self.shop.docker("image", "inspect", "--format", "{{.Id}}", image)


@pytest.fixture(scope="module", params=[CONTAINERD, CLASSIC])
def stall(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """The place, and builds.json as the push left it."""
    host = request.getfixturevalue("classic_host") if request.param == "classic" else None
    with opened(tmp_path_factory.mktemp(request.param), docker_host=host) as shop, registry() as made:
        platform = Platform.of_machine(shop.docker("version", "--format", "{{.Server.Arch}}"))
        (shop.state / "builds.json").unlink()
        shop.build(str(platform))
        built = (shop.state / "builds.json").read_text()
        (image,) = shop.pushed(made.address, "--platforms", str(platform))["images"]
        yield Place(shop, made, platform, image["oci"], built), (shop.state / "builds.json").read_text()


@pytest.fixture
def place(stall: tuple[Place, str]) -> Iterator[Place]:
    found, pushed = stall
    (found.shop.state / "builds.json").write_text(pushed)
    found.shop.say("first")
    found.shop.unpin()
    yield found
    found("localctl", "stop")
    while found.foreign:
        found.shop.docker("image", "rm", "--force", found.foreign.pop())


def differences(done: Outcome) -> list[str]:
    """The checks that found one."""
    assert (done.status, done.document["error"]["code"]) == (3, "ERR_DRIFT"), done
    return [each["check"] for each in done.document["error"]["details"]["findings"] if each["kind"] == "difference"]


# no drift


def test_build_start_push_pin_start_is_no_drift(place: Place) -> None:
    (place.shop.state / "builds.json").write_text(place.built)
    first, _ = place.start()
    image = place.shop.pushed(place.images_at.address, "--platforms", str(place.platform))["images"][0]["oci"]
    assert (place.run().status, place.row()["drift"]) == (0, None), "a push changes nothing"
    place.pin(image)
    assert place.run().status == 0, "nor does the pin of what runs"

    again, said = place.start()

    assert (again["reused"], again["container"]) == (True, first["container"])
    assert again["image"] == {
        "digest": image.partition("@")[2],
        "source": "pin",
        "platform": str(place.platform),
    }
    assert "warning" not in said
    assert (place.run().status, place.row()["drift"], place.row()["source"]) == (0, None, "pin")
    verified = place.verify()
    assert verified.status == 0, verified
    (row,) = (each for each in verified.document["checked"] if each["pin"])
    assert (row["registry"], row["build"], row["source"], row["local"]) == ("present", "same", "built", "same")


def test_a_build_of_the_same_source_is_no_drift_either(place: Place) -> None:
    place.pin(place.image)
    place.start()

    place.shop.build(str(place.platform))

    assert (place.run().status, place.row()["drift"], place.verify().status) == (0, None, 0)


def test_a_pinned_image_that_is_not_here_is_pulled_and_runs(place: Place) -> None:
    image = place.image
    place.pin(image)
    place.shop.remove_images()

    started, said = place.start()

    assert said.count(f"pulling {image}\n") == 1
    assert started["image"]["source"] == "pin"
    assert started["image"]["digest"] == image.partition("@")[2]
    assert (place.run().status, place.row()["drift"], place.verify().status) == (0, None, 0)


# the pin, the spec


def test_another_pin_is_refused_by_run_with_both_digests_and_what_to_type(place: Place) -> None:
    image = place.image
    place.pin(image)
    place.start()
    other = str(put_image(place.images_at, place.platform.architecture))
    place.pin(other)

    refused = place.run()

    running, selected = (each.partition("@")[2] for each in (image, other))
    error = refused.document["error"]
    assert (refused.status, error["code"]) == (3, "ERR_DRIFT")
    assert running in error["message"]
    assert selected in error["message"]
    assert error["hint"] == f"localctl start --ref {place.shop.ref}"
    assert error["details"] == place.row()["drift"] == {"of": "image", "running": running, "selected": selected}
    assert differences(place.verify()) == ["build", "local"]


def test_another_spec_is_refused_by_run_and_found_by_verify(place: Place) -> None:
    place.pin(place.image)
    place.start()
    yaml: Path = place.shop.registry_yaml
    document = json.loads(yaml.read_text())
    document["runtime"]["timeout_s"] += 1
    yaml.write_text(json.dumps(document))

    refused = place.run().document["error"]

    assert (refused["code"], refused["details"]["of"]) == ("ERR_DRIFT", "spec")
    assert differences(place.verify()) == ["local"]
    document["runtime"]["timeout_s"] -= 1
    yaml.write_text(json.dumps(document))


# what a container can't say of itself


def test_a_container_restarted_from_another_image_is_found_by_status_and_verify(place: Place) -> None:
    place.pin(place.image)
    place.start()
    foreign = place.id_of(place.foreign_image())

    place.restart_from(foreign)

    selected = place.image.partition("@")[2]
    assert place.row()["image_digest"] in place.shop.builds()[0].values(), "the label still says what it said"
    assert place.row()["drift"] == {"of": "image", "running": foreign, "selected": selected}
    verified = place.verify()
    assert differences(verified) == ["local"]
    assert foreign in verified.document["error"]["message"]
    assert place.start()[0]["reused"] is False
    assert place.row()["drift"] is None


def test_a_tag_that_was_moved_changes_nothing_until_a_container_is_made_from_it(place: Place) -> None:
    place.pin(place.image)
    place.start()
    made = place.shop.builds()[0]
    foreign = place.foreign_image()
    tags = [f"{place.images_at.address}/org/{place.shop.name}:{made['tag']}-{place.platform.architecture}"]
    tags += [tags[0].replace(place.images_at.address, "localhost:5000").replace("/org/", "/test/")]
    for tag in tags:
        place.shop.docker("tag", foreign, tag)
    assert (place.row()["drift"], place.verify().status, place.start()[0]["reused"]) == (None, 0, True)

    place.restart_from(tags[0])

    assert place.row()["drift"]["running"] == place.id_of(foreign)
    assert differences(place.verify()) == ["local"]


# a forced choice


def test_the_pin_can_be_forced_over_a_newer_build_and_the_build_over_a_newer_pin(place: Place) -> None:
    pinned = place.image
    place.pin(pinned)
    place.build("second")
    assert place.start()[0]["image"]["source"] == "build"

    forced, said = place.start("--source", "pin")

    assert (forced["image"]["source"], forced["image"]["digest"]) == ("pin", pinned.partition("@")[2])
    assert "--source pin at start, which counts until the next one" in said
    ran = place.run()
    assert (ran.status, place.row()["drift"]) == (0, None)
    assert "--source pin at start" in ran.stderr
    assert place.start()[0]["image"]["source"] == "build", "the next start decides by itself"

    other = str(put_image(place.images_at, place.platform.architecture))
    place.pin(other)
    built, _ = place.start("--source", "build")
    assert (built["image"]["source"], built["reused"]) == ("build", True)
    assert place.run().status == 0
    assert "build" in differences(place.verify()), "verify holds what runs against the pin all the same"


def test_allowed_drift_lets_a_container_of_an_older_pin_go_on(place: Place) -> None:
    place.pin(place.image)
    started, _ = place.start()
    place.pin(str(put_image(place.images_at, place.platform.architecture)))
    assert place.run().status == 3

    kept, _ = place.start("--allow-drift")

    assert (kept["reused"], kept["container"]) == (True, started["container"])
    ran = place.run()
    assert (ran.status, place.row()["drift"]) == (0, None)
    assert "--allow-drift at start" in ran.stderr
    assert "local" in differences(place.verify())
