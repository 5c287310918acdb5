"""What was deployed before, and how it is brought back when what came after it does not answer."""

from dataclasses import dataclass
from typing import NamedTuple

from apps.errors import OperationError
from apps.processors import answering
from apps.processors.adapters.base import Progress
from apps.processors.adapters.target import App, Target, Unavailable
from apps.processors.deployments import Place, history, live_digest


@dataclass(frozen=True, slots=True)
class Before:
    """What was deployed under the name when we began."""

    here: Place
    app: App | None
    """None: nothing was."""
    url: str | None = None
    digest: str | None = None
    """None: it was deployed by something else."""
    tags: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, here: Place, target: Target) -> "Before":
        app = target.find(here.app)
        if app is None or app.state != "deployed":
            return cls(here, None)
        found = target.endpoint(here.app)
        tags = tuple(target.tags(here.app).items())
        return cls(here, app, found.url if found else None, live_digest(here, app, target), tags)


class Outcome(NamedTuple):
    """What serves after all."""

    serving: str | None
    """The digest that answers; None where nothing does, or it can't be told."""
    words: str


def restore(
    before: Before, failed: str, door: answering.Door, target: Target, *, timeout_s: float, progress: Progress
) -> Outcome:
    """Have what was there before the digest `failed` serve again, and wait until it answers.

    What somebody else deployed meanwhile is left alone. Tells a failure, and raises none.
    """
    try:
        now = target.find(before.here.app)
        if (other := _deployed_meanwhile(before, failed, now, target)) is not None:
            return Outcome(other, f"meanwhile {other} was deployed by somebody else, and is left as it is")
        if before.app is None:
            return _cleared(now, target)
        if now is not None and now.version == before.app.version and now.id == before.app.id:
            return Outcome(before.digest, f"{before.digest or 'what was deployed before'} goes on serving")
        return _brought_back(before, now or before.app, door, target, timeout_s, progress)
    except OperationError as exc:
        previous = before.digest or "what was deployed before"
        return Outcome(None, f"whether {previous} serves again is not known: {exc}. Look: {before.here.line('status')}")


def _deployed_meanwhile(before: Before, failed: str, now: App | None, target: Target) -> str | None:
    """The digest of the live version where that is neither the one before nor ours; None: it is, or can't be told."""
    if now is None or now.state != "deployed" or (before.app and before.app.version == now.version):
        return None
    try:
        versions = history(now, target)
    except Unavailable:
        return None
    live = versions[0].digest if versions else None
    return live if live != failed else None


def _cleared(now: App | None, target: Target) -> Outcome:
    if now is not None and now.state == "deployed":
        target.stop(now)
        return Outcome(None, "nothing was deployed before it, so it was stopped")
    return Outcome(None, "nothing is deployed, as before")


def _brought_back(
    before: Before, now: App, door: answering.Door, target: Target, timeout_s: float, progress: Progress
) -> Outcome:
    assert before.app is not None and before.app.version is not None  # noqa: S101, PT018
    previous = before.digest or f"version {before.app.version}"
    progress(f"rolling back to {previous}")
    target.roll_back(now, before.app.version)
    target.record(before.here.app, dict(before.tags))
    if before.digest is None:
        return Outcome(None, f"rolled back to {previous}")
    back = answering.Door(before.here.app, before.url or door.url, door.headers)
    answering.await_digest(back, target, before.digest, timeout_s=timeout_s, is_new_token=False, progress=progress)
    return Outcome(before.digest, f"rolled back to {before.digest}, which answers")
