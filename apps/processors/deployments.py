"""The deployments of this checkout's processors: which app one is, its state, its history, its end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apps.errors import ConfigurationError, ModalFailed, NotDeployed
from apps.processors import modal_names
from apps.processors.adapters.base import LogLine
from apps.processors.adapters.target import App, Deployed, Endpoint, Target, Unavailable
from apps.processors.modal_state import ModalState
from apps.processors.reference import ProcessorRef


@dataclass(frozen=True, slots=True)
class Place:
    """A ref in an environment: the app that it is, or would be."""

    ref: ProcessorRef
    env: str
    app: str

    def line(self, subcommand: str, *more: str) -> str:
        """What to type for it."""
        return " ".join(("modalctl", subcommand, "--ref", str(self.ref), "--env", self.env, *more))

    def document(self, **more: Any) -> dict[str, Any]:
        return {"status": "success", "ref": str(self.ref), "env": self.env, "app": self.app, **more}


def place(ref: ProcessorRef, env: str, *, branch: str | None, user: str | None, state: ModalState | None) -> Place:
    """Where the ref is. In dev both variables say it; or, given `state`, what `start` recorded there.

    Raises ConfigurationError naming the variables that are not set, or of which no name could be made.
    """
    variables = (("GIT_BRANCH", branch), ("GIT_USER", user))
    missing = [name for name, value in variables if not value]
    if env == "dev" and missing:
        record = state.app(ref, env) if state is not None else None
        if record is None:
            raise _not_set(missing)
        return Place(ref, env, record.app)
    # Without a word of its own, an app would be another branch's or another user's.
    mute = [f"{name} {value!r}" for name, value in variables if value and not modal_names.has_word(value)]
    if env == "dev" and mute:
        raise ConfigurationError(
            f"{' and '.join(mute)}: an app's name holds a-z and 0-9, of which there are none",
            hint="set it to something with such letters for modalctl, the same every time",
        )
    return Place(ref, env, modal_names.app_name(env, ref, branch=branch, user=user))


def _not_set(missing: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
        f"in dev an app is called after branch and user",
        hint="set GIT_BRANCH and GIT_USER, e.g. GIT_BRANCH=$(git branch --show-current) GIT_USER=$(id -un)",
        details={"missing": missing},
    )


def deployed(here: Place, target: Target) -> App:
    """The app. Raises NotDeployed."""
    app = target.find(here.app)
    if app is None or app.state != "deployed":
        how = "is stopped" if app is not None else "is not deployed"
        raise NotDeployed(
            f"{here.ref} {how} in {here.env}: there is no app {here.app}", hint=here.line("start", "--oci OCI")
        )
    return app


def endpoint(here: Place, target: Target) -> Endpoint:
    """Where it is reached. Raises NotDeployed."""
    found = target.endpoint(here.app)
    if found is None:
        deployed(here, target)
        raise NotDeployed(
            f"the app {here.app} is deployed, and not by modalctl: it has no server of ours",
            hint=here.line("start", "--oci OCI"),
        )
    return found


def status(here: Place, target: Target) -> dict[str, Any]:
    """The contract's `modalctl status` document."""
    app = target.find(here.app)
    found = target.endpoint(here.app) if app is not None and app.state == "deployed" else None
    digest = live_digest(here, app, target) if app is not None and found is not None else None
    return here.document(
        state=app.state if app is not None else "absent",
        url=found.url if found else None,
        digest=digest,
        deployed_at=app.deployed_at if app is not None else None,
        version=app.version if app is not None else None,
    )


def live_digest(here: Place, app: App, target: Target) -> str | None:
    """The digest that is recorded for what is deployed now: at its version, else at the app."""
    try:
        versions = history(app, target)
    except Unavailable:
        versions = ()
    if versions and versions[0].digest:
        return versions[0].digest
    return modal_names.recorded_digest(target.tags(here.app))


@dataclass(frozen=True, slots=True)
class Version:
    """One deployment, and the digest that it was of."""

    deployed: Deployed
    digest: str | None
    """None: it was deployed by something else."""

    def document(self, *, is_live: bool) -> dict[str, Any]:
        row = self.deployed
        return {
            "version": row.version,
            "digest": self.digest,
            "revision": row.revision,
            "deployed_at": row.deployed_at,
            "deployed_by": row.deployed_by,
            "rollback_of": row.rollback_of,
            "live": is_live,
        }


def history(app: App, target: Target) -> tuple[Version, ...]:
    """Newest first. Raises Unavailable."""
    rows = target.history(app)
    by_version = {row.version: row for row in rows}
    return tuple(Version(row, modal_names.digest_of(_origin(row, by_version).label)) for row in rows)


def _origin(row: Deployed, by_version: Mapping[int, Deployed]) -> Deployed:
    """What a rollback brought back, whatever it is labelled itself; of a rollback to a rollback, the first."""
    while row.rollback_of is not None and row.rollback_of < row.version and row.rollback_of in by_version:
        row = by_version[row.rollback_of]
    return row


def history_document(here: Place, target: Target) -> dict[str, Any]:
    app = deployed(here, target)
    try:
        versions = history(app, target)
    except Unavailable as exc:
        raise ModalFailed(
            f"Modal does not tell the history of {here.app}: {exc}", hint="pip install modal==1.6.4"
        ) from exc
    rows = [version.document(is_live=number == 0) for number, version in enumerate(versions)]
    return here.document(deployments=rows)


def stop(here: Place, target: Target) -> dict[str, Any]:
    """Stop it for good; one that is not deployed is no error."""
    app = target.find(here.app)
    is_deployed = app is not None and app.state == "deployed"
    if app is not None and is_deployed:
        target.stop(app)
    return here.document(stopped=is_deployed)


def logs(here: Place, target: Target, *, follow: bool, tail: int | None, since: str | None) -> Iterator[LogLine]:
    """What its containers wrote. Raises NotDeployed."""
    deployed(here, target)
    return target.logs(here.app, follow=follow, tail=tail, since=since)
