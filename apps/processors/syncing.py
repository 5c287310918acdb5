"""Bring a processor's secrets from the caller's environment to its app on Modal, and to containers that run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from apps.errors import ConfigurationError, MissingSecret, ModalFailed
from apps.processors import environment
from apps.processors.adapters.base import Progress
from apps.processors.adapters.target import App, Target, Unavailable
from apps.processors.deploying import MARKER
from apps.processors.deployments import Place, deployed
from apps.processors.spec import ProcessorSpec

REPLACED_S: Final = 30.0
"""How long we watch old containers go. They may take longer: executions in them end first."""
_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Syncing:
    """What the caller asked of `sync-secrets`."""

    spec: ProcessorSpec
    here: Place
    environ: Mapping[str, str]
    fail_on_missing: bool = False
    dry_run: bool = False
    prune: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """What `sync-secrets` did, or with --dry-run would do. Names alone."""

    here: Place
    created: tuple[str, ...]
    updated: tuple[str, ...]
    left: tuple[str, ...]
    """Declared, in Modal, and not in the environment: as they were."""
    pruned: tuple[str, ...]
    missing: tuple[str, ...]
    rollover: str
    """done, draining, none, or the line to type where Modal's SDK can't."""
    dry_run: bool

    @property
    def synced(self) -> list[str]:
        return sorted(self.created + self.updated)

    def document(self) -> dict[str, Any]:
        """The contract's `modalctl sync-secrets` document."""
        document = self.here.document(
            synced=[] if self.dry_run else self.synced,
            missing=list(self.missing),
            created=list(self.created),
            updated=list(self.updated),
            left=list(self.left),
            pruned=list(self.pruned),
            rollover=self.rollover,
        )
        return {**document, "dry_run": True} if self.dry_run else document

    def text(self) -> str:
        """The same for people."""
        rows = [("create", "created", self.created), ("update", "updated", self.updated), ("leave", "left", self.left)]
        rows += [("remove", "removed", self.pruned), ("missing", "missing", self.missing)]
        said = [f"{to if self.dry_run else done}: {', '.join(names)}" for to, done, names in rows if names]
        if self.rollover.startswith("modal "):
            said.append(f"containers that run keep old values; replace them: {self.rollover}")
        elif self.rollover == "draining":
            said.append("old containers end their executions first; new ones have the new values")
        return "\n".join(said) or "nothing to sync"


def sync(asked: Syncing, *, target: Target, progress: Progress) -> Synced:
    """Set the declared secrets that the environment has; containers that run are replaced, for they keep old values.

    Raises MissingSecret (--fail-on-missing; nothing was written), NotDeployed, ConfigurationError.
    """
    spec, here = asked.spec, asked.here
    secrets = environment.secrets(spec.secrets, asked.environ)
    if secrets.missing and asked.fail_on_missing:
        raise MissingSecret(
            f"{spec.ref} needs {', '.join(secrets.missing)}, not set in the environment; nothing was synced",
            hint="export them, or sync what there is without --fail-on-missing",
            details={"missing": list(secrets.missing)},
        )
    app = deployed(here, target)
    there = _there(here, target)
    gone = there - {*spec.secrets.names, MARKER} if asked.prune else frozenset()
    if not asked.dry_run:
        if secrets.values:
            target.write_secret(here.app, secrets.values)
        if gone:
            _remove(here, gone, target)
    changes = bool(secrets.values or gone) and not asked.dry_run
    return Synced(
        here,
        created=tuple(sorted(set(secrets.values) - there)),
        updated=tuple(sorted(set(secrets.values) & there)),
        left=tuple(sorted((set(spec.secrets.names) - set(secrets.values)) & there)),
        pruned=tuple(sorted(gone)),
        missing=secrets.missing,
        rollover=_roll_over(here, app, target, progress) if changes else "none",
        dry_run=asked.dry_run,
    )


def _there(here: Place, target: Target) -> frozenset[str]:
    """Names that the app's secret has. Raises ConfigurationError for a secret that is not the app's."""
    try:
        names = target.secret_names(here.app)
    except Unavailable as exc:
        raise ModalFailed(
            f"what is in the secret {here.app} can't be told: {exc}", hint="pip install modal==1.6.4"
        ) from exc
    if names is not None and MARKER not in names:
        raise ConfigurationError(
            f"the Modal secret {here.app} in {here.env} was not made by modalctl",
            hint=f"give it another name; modalctl start makes the app's own: modal secret list --env {here.env}",
        )
    return names or frozenset()


def _remove(here: Place, names: frozenset[str], target: Target) -> None:
    try:
        target.remove_from_secret(here.app, names)
    except Unavailable as exc:
        raise ModalFailed(
            f"{', '.join(sorted(names))} can't be removed: {exc}",
            hint=f"modal secret delete --env {here.env} {here.app}, then start and sync again",
        ) from exc


def _roll_over(here: Place, app: App, target: Target, progress: Progress) -> str:
    """Replace running containers, and watch the old ones go."""
    try:
        old = target.containers(here.app)
    except Unavailable:
        old = frozenset()
    try:
        target.roll_over(app)
    except Unavailable:
        return f"modal app rollover --env {here.env} {here.app}"
    if not old:
        return "done"
    progress(f"replacing {len(old)} running container{'s' if len(old) > 1 else ''}")
    deadline = time.monotonic() + REPLACED_S
    while old & target.containers(here.app):
        if time.monotonic() > deadline:
            return "draining"
        time.sleep(_LOOK_S)
    return "done"
