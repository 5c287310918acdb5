"""How long somebody tries to come back to an execution, and what makes it give up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from apps.errors import Busy, Cancelled, ConnectionFailed, ExecutionLost, Unauthorized
from apps.processors import reattaching
from apps.processors.door import Door, Unreachable
from apps.processors.reattaching import LONGEST_PAUSE_S, WITHIN_S, reattach

DOOR = Door("ws://127.0.0.1:1/run", {})
REFUSED = Unreachable("connection refused")


Step = Exception | tuple[str, Exception | None]


class Script:
    """Doors that open or not, connections that hold or not, in the order given; and the time that goes by."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.connections = 0
        self.pauses: list[float] = []
        self.now = 0.0
        self.asked = 0

    @contextmanager
    def opened(self, _: Door) -> Iterator[Any]:
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        yield step

    def rejoin(self, connection: Any) -> None:
        what, end = connection
        if what == "followed":
            self.connections += 1
        if end is not None:
            raise end

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def lost(self) -> ExecutionLost:
        return ExecutionLost("lost")

    def is_gone(self) -> bool:
        self.asked += 1
        return False


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], None]:
    def play(script: Script) -> None:
        monkeypatch.setattr(reattaching, "opened", script.opened)
        monkeypatch.setattr(reattaching, "time", SimpleNamespace(monotonic=lambda: script.now))
        reattach(script, DOOR, is_gone=script.is_gone)

    return play


def test_the_first_try_is_at_once_and_asks_nobody(play: Any) -> None:
    script = Script(("followed", None))

    play(script)

    assert (script.pauses, script.asked) == ([], 0)


def test_pauses_grow_up_to_the_longest(play: Any) -> None:
    script = Script(*[REFUSED] * 8, ("followed", None))

    play(script)

    assert script.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert script.asked == 8


@pytest.mark.parametrize("failure", [REFUSED, ConnectionFailed("HTTP 502", details={"status": 502}), Busy("HTTP 429")])
def test_a_door_that_stays_shut_is_given_up_in_time(play: Any, failure: Exception) -> None:
    script = Script(failure)

    with pytest.raises(Unreachable):
        play(script)

    assert WITHIN_S <= script.now <= WITHIN_S + LONGEST_PAUSE_S


def test_a_processor_that_has_ended_is_given_up_at_once(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(REFUSED)
    monkeypatch.setattr(script, "is_gone", lambda: True)

    with pytest.raises(Unreachable):
        play(script)

    assert script.pauses == []


def test_a_door_that_leads_elsewhere_is_given_up_at_once(play: Any) -> None:
    script = Script(ConnectionFailed("HTTP 404", details={"status": 404}))

    with pytest.raises(Unreachable):
        play(script)

    assert script.pauses == []


def test_each_loss_has_its_own_time(play: Any) -> None:
    outage: list[Step] = [*[REFUSED] * 10, ("followed", Unreachable("cut"))]
    script = Script(*outage * 4, ("followed", None))

    play(script)

    assert script.now > 2 * WITHIN_S


def test_a_connection_that_is_cut_before_it_follows_gives_no_more_time(play: Any) -> None:
    script = Script(("heard hello", Unreachable("cut")))

    with pytest.raises(Unreachable):
        play(script)

    assert script.now <= WITHIN_S + LONGEST_PAUSE_S


def test_who_breaks_the_protocol_is_not_asked_again(play: Any) -> None:
    script = Script(("followed", ConnectionFailed("event 7 where 5 was due")))

    with pytest.raises(ConnectionFailed):
        play(script)

    assert script.pauses == []


def test_a_run_token_that_opens_no_more_is_another_container(play: Any) -> None:
    with pytest.raises(ExecutionLost):
        play(Script(Unauthorized("refused")))


def test_a_cancel_ends_the_waiting(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(REFUSED)

    def wait(_: float) -> None:
        raise Cancelled("cancelled")

    monkeypatch.setattr(script, "wait", wait)

    with pytest.raises(Cancelled):
        play(script)
