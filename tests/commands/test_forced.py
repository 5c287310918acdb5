"""A choice that `localctl start` was told counts for `run` and `status` until the next start; both warn of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.commands.workshop import Workshop

DRIFT = "--allow-drift at start: what runs is not compared with the registry until the next one"


@pytest.fixture
def forced(workshop: Workshop) -> Iterator[str]:
    """A built processor of the test's own; stopped at its end."""
    ref = workshop.build(workshop.write("forced"))
    yield ref
    workshop.stop(ref)


def start(workshop: Workshop, ref: str, *options: str) -> tuple[dict[str, Any], str]:
    done = workshop.shell("localctl", "start", "--ref", ref, "--json", *options)
    assert done.status == 0, done
    return done.document, done.stderr


def drift_of(workshop: Workshop, ref: str) -> tuple[dict[str, str] | None, str]:
    done = workshop.shell("localctl", "status", "--ref", ref, "--json")
    (row,) = done.document["containers"]
    return row["drift"], done.stderr


def change_spec(workshop: Workshop) -> None:
    workshop.write("forced", runtime={"timeout_s": 61})


def test_drift_that_is_allowed_lets_the_container_go_on(workshop: Workshop, forced: str) -> None:
    first, _ = start(workshop, forced)
    change_spec(workshop)
    assert workshop.run(forced, "--json").status == 3

    again, said = start(workshop, forced, "--allow-drift")

    assert (again["reused"], again["container"]) == (True, first["container"])
    assert DRIFT in said
    ran = workshop.run(forced, "--json")
    assert (ran.status, ran.document["status"]) == (0, "success")
    assert f"warning: {forced}: {DRIFT}" in ran.stderr
    drift, said = drift_of(workshop, forced)
    assert drift is None
    assert DRIFT in said


def test_the_next_start_forgets_that_drift_was_allowed(workshop: Workshop, forced: str) -> None:
    start(workshop, forced)
    change_spec(workshop)
    kept, _ = start(workshop, forced, "--allow-drift")

    fresh, said = start(workshop, forced)

    assert (fresh["reused"], fresh["replaced"]) == (False, kept["image"]["digest"])
    assert "--allow-drift" not in said
    ran = workshop.run(forced)
    assert (ran.status, ran.stderr) == (0, "")


def test_drift_allowed_beforehand_is_allowed_when_it_comes(workshop: Workshop, forced: str) -> None:
    started, _ = start(workshop, forced, "--allow-drift")
    assert started["reused"] is False

    change_spec(workshop)

    assert workshop.run(forced).status == 0
    assert drift_of(workshop, forced)[0] is None


def test_allowed_drift_does_not_keep_other_secrets(workshop: Workshop, forced: str) -> None:
    start(workshop, forced)

    done = workshop.shell("localctl", "start", "--ref", forced, "--allow-drift", "--json", env={"TEST_KEY": "another"})

    assert done.document["reused"] is False


def test_a_forced_build_is_recorded_and_said_and_reuses_the_same_container(workshop: Workshop, forced: str) -> None:
    start(workshop, forced)

    again, said = start(workshop, forced, "--source", "build")

    note = f"{forced}: --source build at start, which counts until the next one"
    assert again["reused"] is True
    assert workshop.read("containers.json")["containers"][forced]["forced"] == "build"
    ran, status = workshop.run(forced), drift_of(workshop, forced)[1]
    assert all(f"warning: {note}\n" in each for each in (said, ran.stderr, status))


def test_drift_from_a_forced_source_names_it_in_the_line_to_type(workshop: Workshop, forced: str) -> None:
    start(workshop, forced, "--source", "build")
    change_spec(workshop)

    error = workshop.run(forced, "--json").document["error"]

    assert error["code"] == "ERR_DRIFT"
    assert error["hint"] == f"localctl start --ref {forced} --source build"


def test_the_process_engine_has_no_pin_to_force(workshop: Workshop, forced: str) -> None:
    done = workshop.shell("localctl", "start", "--ref", forced, "--source", "pin", "--json")

    assert (done.status, done.document["error"]["code"]) == (78, "ERR_CONFIG")
    assert forced not in workshop.read("containers.json").get("containers", {})


def test_another_source_is_a_usage_error(workshop: Workshop) -> None:
    done = workshop.shell("localctl", "start", "--ref", "llm/litellm@1", "--source", "tag", "--json")

    assert (done.status, json.loads(done.stdout)["error"]["code"]) == (2, "ERR_USAGE")


def test_a_process_made_from_another_snapshot_than_it_says_is_drift(workshop: Workshop, forced: str) -> None:
    """The engine's word counts, not the label that the process was started with."""
    start(workshop, forced)
    name = workshop.read("containers.json")["containers"][forced]["name"]
    place = workshop.state / "processes" / name / "process.json"
    document = json.loads(place.read_text())
    snapshot = workshop.state / "images" / "test-forced-v1" / "another"
    snapshot.mkdir()
    (snapshot / "image.json").write_text(json.dumps({"source_digest": "sha256:" + "9" * 64}))

    place.write_text(json.dumps({**document, "image": "images/test-forced-v1/another"}))
    drift, _ = drift_of(workshop, forced)
    place.write_text(json.dumps(document))

    assert drift == {
        "of": "image",
        "running": "sha256:" + "9" * 64,
        "selected": document["labels"]["theory.digest"],
    }
