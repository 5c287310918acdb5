"""Going back where the SDK can do less, or Modal can't be asked: what is said, and that nothing is guessed."""

from typing import Any

import pytest

from apps.errors import ImageNotFound, InvalidReference, ModalFailed, OperationError
from apps.processors import answering, deployments, modal_names, restoring, reverting
from apps.processors.adapters.target import App, Deployed, Target, Unavailable
from apps.processors.deployments import Place
from apps.processors.reference import ProcessorRef

HERE = Place(ProcessorRef.parse("llm/litellm@1"), "dev", "app")
DOOR = answering.Door("app", "https://app.example", {})
OLD, NEW = ("sha256:" + digit * 64 for digit in "ab")


def app(version: int, id: str = "ap-1") -> App:
    return App(id, "deployed", version, None)


def row(version: int, digest: str | None = None, rollback_of: int | None = None) -> Deployed:
    label = modal_names.label_of(digest) if digest else ""
    return Deployed(version, label, None, None, None, rollback_of)


class Apps:
    """The part of a Target that going back uses."""

    def __init__(self, now: App | OperationError | None, *rows: Deployed, can_roll_back: bool = True) -> None:
        self.now, self.rows, self.can_roll_back = now, rows, can_roll_back
        self.stopped: list[App] = []
        self.rolled_back: list[int] = []

    def find(self, app: str) -> App | None:
        if isinstance(self.now, OperationError):
            raise self.now
        return self.now

    def history(self, app: App) -> tuple[Deployed, ...]:
        return self.rows

    def roll_back(self, app: App, version: int) -> None:
        if not self.can_roll_back:
            raise Unavailable("this version of Modal's SDK has no AppRollback")
        self.rolled_back.append(version)

    def stop(self, app: App) -> None:
        self.stopped.append(app)


def restore(before: restoring.Before, target: Apps) -> restoring.Outcome:
    place: Any = target
    checked: Target = place
    return restoring.restore(before, NEW, DOOR, checked, timeout_s=1, progress=lambda _: None)


def test_what_was_not_replaced_goes_on() -> None:
    outcome = restore(restoring.Before(HERE, app(3), digest=OLD), Apps(app(3)))

    assert outcome == (OLD, f"{OLD} goes on serving")


def test_without_a_rollback_nothing_is_claimed() -> None:
    outcome = restore(restoring.Before(HERE, app(3), digest=OLD), Apps(app(4), can_roll_back=False))

    assert outcome.serving is None
    assert outcome.words == (
        f"whether {OLD} serves again is not known: this version of Modal's SDK has no AppRollback. "
        "Look: modalctl status --ref llm/litellm@1 --env dev"
    )


def test_while_modal_can_not_be_asked_nothing_is_claimed() -> None:
    outcome = restore(restoring.Before(HERE, app(3), digest=OLD), Apps(ModalFailed("Modal can't be reached")))

    assert outcome.serving is None
    assert f"whether {OLD} serves again is not known: Modal can't be reached" in outcome.words


def test_a_first_deployment_is_stopped() -> None:
    target = Apps(app(1))

    outcome = restore(restoring.Before(HERE, None), target)

    assert (outcome.serving, target.stopped) == (None, [app(1)])


@pytest.mark.parametrize("before", [None, app(3)])
def test_what_somebody_else_deployed_meanwhile_is_left_as_it_is(before: App | None) -> None:
    other = "sha256:" + "c" * 64
    target = Apps(app(5), row(5, other), row(4, NEW), row(3, OLD))

    outcome = restore(restoring.Before(HERE, before, digest=OLD), target)

    assert outcome == (other, f"meanwhile {other} was deployed by somebody else, and is left as it is")
    assert (target.stopped, target.rolled_back) == ([], [])


def chosen(to: str | None, *rows: Deployed, live: str | None = NEW) -> deployments.Version:
    place: Any = Apps(app(9), *rows)
    return reverting._chosen(HERE, app(9), to, live, place)


def test_a_rollback_takes_the_newest_earlier_digest_that_is_another_one() -> None:
    rows = (row(5, NEW), row(4, NEW), row(3), row(2, OLD), row(1, OLD))

    assert chosen(None, *rows).deployed.version == 2


def test_a_live_version_without_a_label_is_what_the_app_says() -> None:
    # as a rollover leaves it
    rows = (row(3), row(2, NEW), row(1, OLD))

    assert chosen(None, *rows, live=NEW).deployed.version == 1


def test_a_version_that_came_back_counts_as_what_it_was() -> None:
    rows = (row(4, rollback_of=3), row(3, rollback_of=1), row(2, NEW), row(1, OLD))

    found = chosen(None, *rows, live=OLD)

    assert (found.deployed.version, found.digest) == (2, NEW)
    assert chosen(OLD, *rows).deployed.version == 3


@pytest.mark.parametrize("to", ["3", "sha256:" + "c" * 64])
def test_what_is_not_in_the_history_is_not_found(to: str) -> None:
    with pytest.raises(ImageNotFound):
        chosen(to, row(2, NEW), row(1, OLD))


@pytest.mark.parametrize(("text", "expected"), [("3", "3"), ("v3", "3"), (OLD, OLD), (f"ghcr.io/org/image@{OLD}", OLD)])
def test_to_takes_a_version_or_a_digest(text: str, expected: str) -> None:
    assert reverting.wanted(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "latest", "sha256:abc", "ghcr.io/org/image:tag"])
def test_to_takes_nothing_else(text: str) -> None:
    with pytest.raises(InvalidReference):
        reverting.wanted(text)
