"""Roll a deployment back: an earlier digest, deployed again, waited for and verified."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apps.errors import ImageNotFound, InvalidReference, ModalFailed, OperationError, RuntimeFailed
from apps.processors import answering, deployments, evidence, modal_names
from apps.processors.adapters.base import Progress
from apps.processors.adapters.target import App, Target, Unavailable
from apps.processors.deploying import Warn
from apps.processors.deployments import Place, Version
from apps.processors.evidence import Verified
from apps.processors.modal_state import AppRecord, ModalState
from apps.processors.proxying import Credentials
from apps.processors.reference import AMD64
from apps.processors.restoring import Before, restore
from apps.processors.spec import ProcessorSpec


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What `rollback` did."""

    verified: Verified
    url: str
    version: int | None
    """The new one, which is what `of` was."""
    of: int
    previous: str | None

    def document(self) -> dict[str, Any]:
        found = self.verified.document()
        return {
            **self.verified.here.document(
                digest=self.verified.expected,
                version=self.version,
                rollback_of=self.of,
                previous=self.previous,
                url=self.url,
            ),
            "evidence": found["evidence"],
        }


def roll_back(
    spec: ProcessorSpec,
    here: Place,
    to: str | None,
    *,
    target: Target,
    state: ModalState,
    credentials_of: Callable[[], Credentials],
    timeout_s: float,
    progress: Progress,
    warn: Warn,
) -> RolledBack:
    """Deploy again what version or digest `to` was; None: the newest earlier one of another digest.

    When it does not answer, what served before is brought back. Raises NotDeployed, ImageNotFound, RuntimeFailed,
    ModalFailed, and what `verify` raises.
    """
    began = time.monotonic()
    app = deployments.deployed(here, target)
    before = Before.of(here, target)
    chosen = _chosen(here, app, to, before.digest, target)
    digest = chosen.digest or ""
    progress(f"rolling {here.app} back to version {chosen.deployed.version}, {digest}")
    door = answering.Door(here.app, before.url or "", credentials_of().headers(None))
    try:
        _redeploy(app, chosen, target)
        target.record(here.app, {"theory-ref": spec.ref.slug, **modal_names.digest_tags(digest)})
        left = max(began + timeout_s - time.monotonic(), 5.0)
        answering.await_digest(door, target, digest, timeout_s=left, is_new_token=False, progress=progress)
    except OperationError as error:
        outcome = restore(before, digest, door, target, timeout_s=timeout_s, progress=progress)
        kind = RuntimeFailed if error.code == "ERR_TIMEOUT" else type(error)
        details = {**error.details, "digest": digest, "serving": outcome.serving}
        raise kind(f"{error.message}; {outcome.words}", hint=here.line("logs"), details=details) from error
    _remember(spec, here, digest, before, state, warn)
    verified = evidence.verify(here, digest, target=target, headers_of=lambda: door.headers, timeout_s=timeout_s)
    now = target.find(here.app)
    return RolledBack(verified, door.url, now.version if now else None, chosen.deployed.version, before.digest)


def _chosen(here: Place, app: App, to: str | None, live: str | None, target: Target) -> Version:
    """`live` is the digest that serves, whatever its version is labelled."""
    try:
        earlier = deployments.history(app, target)[1:]
    except Unavailable as exc:
        raise ModalFailed(
            f"Modal does not tell the history of {here.app}: {exc}", hint=here.line("start", "--oci OCI")
        ) from exc
    found = [each for each in earlier if _fits(each, to, live)]
    if not found:
        what = f"deployment {to}" if to else "earlier deployment of another digest"
        raise ImageNotFound(f"the history of {here.app} has no {what}", hint=here.line("history"))
    return found[0]


def _fits(version: Version, to: str | None, live: str | None) -> bool:
    if version.digest is None:
        return False
    if to is None:
        return version.digest != live
    return to in (str(version.deployed.version), version.digest)


def wanted(text: str) -> str:
    """What `--to` names: a version (`3` or `v3`) or a digest, also at the end of an OCI reference.

    Raises InvalidReference.
    """
    if version := re.fullmatch(r"v?([1-9][0-9]{0,8})", text):
        return version[1]
    digest = text.rpartition("@")[2]
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise InvalidReference(f"{text!r} is neither a version nor a digest", hint="--to takes 3 or sha256:<64 hex>")
    return digest


def _redeploy(app: App, chosen: Version, target: Target) -> None:
    try:
        target.roll_back(app, chosen.deployed.version)
    except Unavailable as exc:
        raise ModalFailed(
            f"Modal's SDK can't roll back: {exc}", hint=f"deploy it again: modalctl start … --oci …@{chosen.digest}"
        ) from exc


def _remember(spec: ProcessorSpec, here: Place, digest: str, before: Before, state: ModalState, warn: Warn) -> None:
    """A digest other than the pin is a choice, which counts for `run` until the next start."""
    pin = spec.pins.get(AMD64)
    forced = pin is None or pin.digest != digest
    if pin is not None and forced:
        warn(f"{spec.ref}: {digest} is deployed again, {pin.digest} is pinned; pin the other, or start anew")
    # Which spec it was deployed with is not recorded anywhere: "" is compared with nothing.
    state.record_app(here.ref, here.env, AppRecord(here.app, before.url or "", digest, "", forced))
