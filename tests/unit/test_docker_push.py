"""What the progress of a push adds up to."""

from typing import Any

import pytest

from apps.errors import PushFailed
from apps.processors.adapters import docker_push
from apps.processors.adapters.docker_push import Layers

REPOSITORY = "ghcr.io/org/image"
DIGEST = "sha256:" + "a" * 64


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(docker_push, "time", clock)
    return clock


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def layers(clock: Clock, said: list[str]) -> Layers:
    return Layers(said.append)


def item(layer: str, status: str, *, current: int | None = None, total: int | None = None) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"status": status, "progressDetail": detail, "id": layer}


def test_progress_tells_bytes_rate_and_time_left(layers: Layers, clock: Clock, said: list[str]) -> None:
    clock.now_s += 2
    layers.add(item("one", "Pushing", current=4_000_000, total=8_000_000))

    assert said == ["pushed 4.0 of 8.0 MB, 2.0 MB/s, 2 s left"]


def test_progress_is_told_once_a_second(layers: Layers, clock: Clock, said: list[str]) -> None:
    for step in range(1, 31):
        clock.now_s += 0.1
        layers.add(item("one", "Pushing", current=step, total=8_000_000))

    assert len(said) == 2


def test_a_layer_that_was_pushed_counts_whole(layers: Layers, clock: Clock, said: list[str]) -> None:
    layers.add(item("one", "Pushing", current=1, total=3_000_000))
    layers.add(item("one", "Pushed"))
    clock.now_s += 1
    layers.add(item("two", "Pushing", current=1, total=3_000_000))

    assert said == ["pushed 3.0 of 6.0 MB, 3.0 MB/s, 1 s left"]


def test_padding_is_not_counted(layers: Layers, clock: Clock, said: list[str]) -> None:
    clock.now_s += 1
    layers.add(item("one", "Pushing", current=2048, total=3))

    assert said[0].startswith("pushed 0.0 of 0.0 MB")


def test_the_same_words_again_are_no_movement(layers: Layers, clock: Clock) -> None:
    layers.add(item("one", "Pushing", current=5, total=9))
    clock.now_s += 30
    layers.add(item("one", "Pushing", current=5, total=9))

    assert layers.still_s == 30


def test_a_byte_more_is_movement(layers: Layers, clock: Clock) -> None:
    layers.add(item("one", "Pushing", current=5, total=9))
    clock.now_s += 30
    layers.add(item("one", "Pushing", current=6, total=9))

    assert layers.still_s == 0


def test_what_was_sent_is_what_was_neither_there_nor_mounted(layers: Layers) -> None:
    layers.add({"status": f"The push refers to repository [{REPOSITORY}]"})
    layers.add(item("one", "Layer already exists"))
    layers.add(item("two", "Mounted from org/other"))
    layers.add(item("three", "Pushed"))
    layers.add({"status": f"1-abc-amd64: digest: {DIGEST} size: 866"})

    sent = layers.sent(REPOSITORY)

    assert sent.digest == DIGEST
    assert sent.layers == {"three"}


def test_an_answer_that_breaks_off_is_a_failed_push(layers: Layers) -> None:
    layers.add(item("one", "Pushed"))

    with pytest.raises(PushFailed, match="does not say as what it pushed"):
        layers.sent(REPOSITORY)
