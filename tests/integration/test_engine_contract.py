"""What every engine promises to the services: `adapters.base.Engine`, word by word."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from apps.errors import ImageNotFound
from apps.processors.adapters.base import LogLine, NameTaken, PortTaken
from apps.processors.reference import Platform
from tests.integration.probe import (
    SOURCE_DIGEST,
    Place,
    Probe,
    docker,
    docker_image,
    docker_place,
    free_port,
    process_place,
)


@pytest.fixture(scope="session")
def default_image() -> Iterator[str]:
    yield from docker_image({"DOCKER_HOST": os.environ.get("DOCKER_HOST", "")})


@pytest.fixture(scope="session")
def classic_image(classic_host: str) -> Iterator[str]:
    yield from docker_image({"DOCKER_HOST": classic_host})


@pytest.fixture(
    params=[
        "process",
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic]),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "process":
        found = process_place(tmp_path / ".theory")
    elif request.param == "docker":
        host = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}
        found = docker_place(host, request.getfixturevalue("default_image"))
    else:
        host = {"DOCKER_HOST": request.getfixturevalue("classic_host")}
        found = docker_place(host, request.getfixturevalue("classic_image"))
    yield found
    found.clear()


# launch


def test_a_launched_container_runs_and_says_who_it_is(place: Place) -> None:
    before = datetime.now(UTC).isoformat(timespec="milliseconds")

    probe = place.launch()

    probe.ask("/facts")
    container = probe.now()
    assert container.state == "running"
    assert container.name == place.request().name
    assert container.labels["theory.ref"] == "test/probe@1"
    assert container.exit_status is None
    assert container.host_port == probe.container.host_port
    assert container.started_at is not None
    assert before[:23] <= container.started_at[:23] <= datetime.now(UTC).isoformat(timespec="milliseconds")[:23]
    assert container.started_at.endswith("Z")


def test_the_platform_is_one_that_the_image_runs_on(place: Place) -> None:
    machine = place.launch().facts()["machine"]

    assert place.engine.platform() == Platform.of_machine(machine)


def test_an_unknown_image_is_not_found_and_leaves_nothing(place: Place) -> None:
    with pytest.raises(ImageNotFound) as caught:
        place.launch(image=place.absent_image)

    assert "processorctl build" in caught.value.hint
    assert place.leftovers() == []


def test_has_image_tells_the_image_that_is_here_from_one_that_is_not(place: Place) -> None:
    assert place.engine.has_image(place.image)
    assert not place.engine.has_image(place.absent_image)


def test_the_engine_says_what_a_container_was_made_from_whatever_its_labels_say(place: Place) -> None:
    lying = {"theory.ref": "test/probe@1", "theory.root": place.root_id, "theory.digest": "sha256:" + "0" * 64}

    launched = place.launch(labels=lying)

    if place.docker:
        made_from = docker("image", "inspect", "--format", "{{.Id}}", place.image, environment=place.docker).strip()
    else:
        made_from = SOURCE_DIGEST
    assert launched.container.image == launched.now().image == made_from
    assert made_from in place.engine.image_names(made_from)
    assert "sha256:" + "0" * 64 not in place.engine.image_names(made_from)


def test_a_taken_port_is_said_and_leaves_nothing(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(PortTaken):
            place.launch(host_port=server.getsockname()[1])

        assert place.leftovers() == []


def test_a_port_that_another_container_holds_is_taken_too(place: Place) -> None:
    first = place.launch(name="processor-test-first")
    first.facts()

    with pytest.raises(PortTaken):
        place.launch(name="processor-test-second", host_port=first.container.host_port)

    assert [each.name for each in place.engine.containers()] == ["processor-test-first"]


def test_a_name_is_taken_while_its_container_is_there_and_that_container_is_unharmed(place: Place) -> None:
    first = place.launch()

    with pytest.raises(NameTaken):
        place.launch()

    assert first.facts()["pid"]
    assert [each.id for each in place.engine.containers()] == [first.container.id]


def test_of_launches_at_once_under_one_name_exactly_one_succeeds(place: Place) -> None:
    def launch() -> Probe | NameTaken:
        try:
            return place.launch(engine=place.make(place.root_id))
        except NameTaken as exc:
            return exc

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: launch(), range(4)))

    (winner,) = [each for each in found if isinstance(each, Probe)]
    scratch = winner.facts()["environment"]["THEORY_SCRATCH"]
    assert winner.do("write", f"{scratch}/x") == "written"
    assert [each.id for each in place.engine.containers()] == [winner.container.id]


def test_an_ended_container_keeps_its_name_until_it_is_removed(place: Place) -> None:
    first = place.launch(environment={"SAY_AND_EXIT": "done"})
    first.ended()

    with pytest.raises(NameTaken):
        place.launch()

    place.engine.remove(first.container)
    assert place.launch().facts()


def test_the_environment_is_what_was_given_and_what_the_engine_sets(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the caller")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.of.the.caller:3128")
    given = {"OPENAI_API_KEY": "sk-1 =\n2", "THEORY_RUN_TOKEN": "t", "EMPTY": "", "PORT": "1", "THEORY_BIND": "::"}

    found = place.launch(environment=given).facts()["environment"]

    assert {name: found[name] for name in ("OPENAI_API_KEY", "THEORY_RUN_TOKEN", "EMPTY")} == {
        "OPENAI_API_KEY": "sk-1 =\n2",
        "THEORY_RUN_TOKEN": "t",
        "EMPTY": "",
    }
    assert found["PORT"] != "1"
    assert found["THEORY_BIND"] in ("127.0.0.1", "0.0.0.0")
    assert found["THEORY_SCRATCH"].startswith("/")
    assert not {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"} & set(found)
    common = set(os.environ) & set(found)
    assert common <= {"PATH", "HOME", "LC_ALL", "TZ", "LANG"} | {name for name in found if name.startswith("PYTHON")}


def test_scratch_is_empty_writable_and_gone_with_the_container(place: Place) -> None:
    first = place.launch()
    file = f"{first.facts()['environment']['THEORY_SCRATCH']}/of-the-first"
    assert first.do("write", file) == "written"
    place.engine.stop(first.container, grace_s=5)
    place.engine.remove(first.container)
    assert place.leftovers() == []

    second = place.launch()

    assert second.facts()["environment"]["THEORY_SCRATCH"] == os.path.dirname(file)
    assert second.do("exists", file) is False


# containers


def test_a_checkout_sees_its_own_containers_alone(place: Place) -> None:
    other = place.another_checkout()
    mine = place.launch()
    theirs = place.launch(engine=other, root_id=place.root_ids[-1])

    assert [each.id for each in place.engine.containers()] == [mine.container.id]
    assert [each.id for each in other.containers()] == [theirs.container.id]


def test_a_second_engine_object_finds_what_the_first_one_started(place: Place) -> None:
    started = place.launch()
    started.facts()

    found = place.make(place.root_id).containers()

    assert [(each.id, each.state) for each in found] == [(started.container.id, "running")]


@pytest.mark.parametrize(
    ("deed", "argument", "status"), [("exit", 3, 3), ("exit", 0, 0), ("fault", 0, -11)], ids=["3", "0", "SIGSEGV"]
)
def test_an_ended_container_says_how_it_ended(place: Place, deed: str, argument: int, status: int) -> None:
    ended = place.launch().end(deed, argument)

    assert (ended.state, ended.exit_status) == ("exited", status)
    assert not ended.out_of_memory


# stop and remove


def test_stop_asks_and_the_container_ends_by_itself(place: Place) -> None:
    probe = place.launch()
    probe.facts()

    began_s = time.monotonic()
    place.engine.stop(probe.container, grace_s=20)

    assert time.monotonic() - began_s < 10
    assert probe.now().exit_status == 0
    assert probe.lines()[-1].line == "terminated"


def test_stop_ends_what_does_not_listen_once_its_grace_is_over(place: Place) -> None:
    probe = place.launch(environment={"STUBBORN": "1"})
    probe.facts()

    began_s = time.monotonic()
    place.engine.stop(probe.container, grace_s=1)

    assert 0.9 < time.monotonic() - began_s < 10
    assert probe.now().exit_status == -9
    assert probe.lines()[-1].line == "not yet"


def test_stop_and_remove_may_come_twice_and_late(place: Place) -> None:
    probe = place.launch()
    probe.facts()

    for _ in range(2):
        place.engine.stop(probe.container, grace_s=5)
    for _ in range(2):
        place.engine.remove(probe.container)
    place.engine.stop(probe.container, grace_s=5)

    assert place.leftovers() == []


def test_a_container_of_before_is_not_mistaken_for_a_later_one_of_its_name(place: Place) -> None:
    first = place.launch(environment={"SAY_AND_EXIT": "done"})
    first.ended()
    place.engine.remove(first.container)
    second = place.launch()

    place.engine.stop(first.container, grace_s=5)
    place.engine.remove(first.container)

    assert second.facts()
    assert second.now().state == "running"


def test_a_port_is_free_again_after_stop(place: Place) -> None:
    port = free_port()
    first = place.launch(host_port=port)
    first.facts()
    place.engine.stop(first.container, grace_s=5)
    place.engine.remove(first.container)

    assert place.launch(host_port=port).facts()


# logs


def said(probe: Probe, *texts: str) -> None:
    for text in texts:
        probe.do("say", text)
        time.sleep(0.02)  # two pipes: their order is that of arrival


def test_logs_keep_the_streams_apart_and_the_order(place: Place) -> None:
    probe = place.launch()
    said(probe, "stdout:one\n", "stderr:two\n", "stdout:\n", "stderr:  four \n")

    lines = probe.lines()

    found = [(each.stream, each.line) for each in lines]
    assert found == [
        ("stdout", "listening"),
        ("stdout", "one"),
        ("stderr", "two"),
        ("stdout", ""),
        ("stderr", "  four "),
    ]
    assert all(datetime.fromisoformat(each.ts) and len(each.ts) == 24 and each.ts[-1] == "Z" for each in lines)
    assert [each.ts for each in lines] == sorted(each.ts for each in lines)


def test_a_long_line_is_one_line_and_what_is_no_utf8_is_replaced(place: Place) -> None:
    probe = place.launch()
    probe.do("long", "60000")
    probe.do("say", b"stderr:a\xffb\n")
    wait_for(probe, 3)

    lines = {each.stream: each.line for each in probe.lines()}

    assert lines["stdout"] == "x" * 60000 + "|"
    assert lines["stderr"] == "a\N{REPLACEMENT CHARACTER}b"


def test_the_last_line_counts_without_its_line_feed_once_the_container_has_ended(place: Place) -> None:
    probe = place.launch()
    probe.do("say", "stdout:cut of")
    probe.do("say", "stdout:f")
    probe.end("exit", 1)

    assert probe.lines()[-1].line == "cut off"


def test_tail_gives_the_last_lines_whole(place: Place) -> None:
    probe = place.launch()
    said(probe, "stdout:one\n", "stderr:two\n")
    wait_for(probe, 3)  # lines of two streams are in order only when one was there before the other came
    probe.do("long", "60000")
    wait_for(probe, 4)

    assert [each.line[:3] for each in probe.lines(tail=2)] == ["two", "xxx"]
    assert len(probe.lines(tail=1)[0].line) == 60001
    assert probe.lines(tail=0) == []
    assert len(probe.lines(tail=100)) == 4


def test_since_gives_the_lines_from_that_time_on(place: Place) -> None:
    probe = place.launch()
    said(probe, "stdout:early\n")
    time.sleep(0.05)
    said(probe, "stdout:late\n")
    wait_for(probe, 3)
    late = probe.lines()[-1]

    assert [each.line for each in probe.lines(since=late.ts)] == ["late"]
    assert [each.line for each in probe.lines(since="2001-01-01T00:00:00Z")] == ["listening", "early", "late"]
    assert probe.lines(since="2101-01-01T00:00:00.123456Z") == []


def test_follow_gives_lines_as_they_come_and_ends_with_the_container(place: Place) -> None:
    probe = place.launch()
    probe.facts()
    found: list[LogLine] = []
    follower = threading.Thread(target=lambda: found.extend(probe.engine.logs(probe.container, follow=True)))
    lines = probe.engine.logs(probe.container, follow=True)
    follower.start()
    assert next(lines).line == "listening"

    said(probe, "stderr:live\n")
    assert next(lines).line == "live"
    probe.end("exit", 0)

    assert list(lines) == []
    follower.join(timeout=10)
    assert [each.line for each in found] == ["listening", "live"]


def test_follow_after_tail_neither_skips_nor_repeats(place: Place) -> None:
    probe = place.launch()
    said(probe, "stdout:one\n", "stdout:two\n")
    wait_for(probe, 3)

    lines = probe.engine.logs(probe.container, follow=True, tail=1)
    assert next(lines).line == "two"
    said(probe, "stdout:three\n")
    probe.end("exit", 0)

    assert [each.line for each in lines] == ["three"]


def test_following_can_be_given_up(place: Place) -> None:
    probe = place.launch()
    probe.facts()
    lines = probe.engine.logs(probe.container, follow=True)
    next(lines)

    lines.close()  # type: ignore[attr-defined]  # as Ctrl-C ends it

    assert probe.now().state == "running"


def test_logs_outlive_a_stop_and_a_crash(place: Place) -> None:
    crashed, stopped = place.launch(name="processor-test-crashed"), place.launch(name="processor-test-stopped")
    crashed.end("exit", 1)
    stopped.facts()
    place.engine.stop(stopped.container, grace_s=5)

    assert [each.line for each in crashed.lines(follow=True)] == ["listening"]
    assert [each.line for each in stopped.lines(tail=1)] == ["terminated"]


def test_logs_of_a_removed_container_are_empty(place: Place) -> None:
    probe = place.launch(environment={"SAY_AND_EXIT": "done"})
    probe.ended()
    place.engine.remove(probe.container)

    assert probe.lines() == []
    assert probe.lines(follow=True, tail=5) == []


def wait_for(probe: Probe, count: int) -> None:
    """Until so many lines have reached the log."""
    deadline = time.monotonic() + 10
    while len(probe.lines()) < count:
        assert time.monotonic() < deadline, f"only {probe.lines()}"
        time.sleep(0.02)
