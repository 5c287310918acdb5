"""Deploy a digest to Modal: planned, put in place, waited for; and undone when it does not answer."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apps.errors import ConfigurationError, Drift, ModalFailed, OperationError, RuntimeFailed
from apps.processors import answering, modal_names, proxying
from apps.processors.adapters.base import Progress
from apps.processors.adapters.target import Plan, Target
from apps.processors.deployments import Place
from apps.processors.envelope import now
from apps.processors.modal_state import AppRecord, ModalState
from apps.processors.reference import AMD64, ImageReference
from apps.processors.restoring import Before, restore
from apps.processors.spec import ProcessorSpec

MARKER: Final = "THEORY_SECRETS_OF"
"""The variable that says a secret is an app's own: `start` makes it with this one alone."""
SCRATCH: Final = "/tmp/theory-scratch"  # noqa: S108  of the container, which has one user

LOG_LINES: Final = 20
"""Of a deployment that does not answer, in its error."""

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Starting:
    """What the caller asked of `start`."""

    spec: ProcessorSpec
    here: Place
    image: ImageReference
    proxy_token: tuple[str | None, str | None]
    run_token: str | None
    root: Path
    """The checkout."""
    revision: str | None
    timeout_s: float = 120.0
    allow_drift: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """What `start` did, or with --dry-run would do."""

    here: Place
    image: ImageReference
    url: str | None = None
    version: int | None = None
    previous: str | None = None
    """The digest that served before."""
    ready_ms: int | None = None
    plan: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """The contract's `modalctl start` document."""
        document = self.here.document(
            oci=str(self.image), url=self.url, version=self.version, previous=self.previous, ready_ms=self.ready_ms
        )
        return {**document, "dry_run": True, "plan": self.plan} if self.plan is not None else document


def check_pin(asked: Starting, warn: Warn) -> bool:
    """Whether the image is another than the pin, which --allow-drift lets pass. Raises Drift."""
    spec, image = asked.spec, asked.image
    pin = spec.pins.get(AMD64)
    if pin is None:
        warn(f"{spec.ref} has no pin for {AMD64}: nothing says that {image.digest} is the right image")
        return False
    if pin.digest == image.digest:
        return False
    if not asked.allow_drift:
        raise Drift(
            f"{image.digest} is not the pin of {spec.ref} for {AMD64}, which is {pin.digest}",
            hint=f"{asked.here.line('start', '--oci', str(pin))}; or pin the other first, or --allow-drift",
            details={"of": "image", "running": image.digest, "selected": pin.digest},
        )
    warn(f"{spec.ref}: --allow-drift at start: {image.digest} is deployed, {pin.digest} is pinned")
    return True


def planned(asked: Starting) -> Plan:
    """All that is deployed, by registry.yaml."""
    spec, runtime = asked.spec, asked.spec.runtime
    variables = {
        "PORT": str(runtime.port),
        "THEORY_BIND": "0.0.0.0",  # noqa: S104  Modal's proxy comes from outside the container
        "THEORY_SCRATCH": SCRATCH,
        "THEORY_SPEC": spec.spec_json,
        "THEORY_IMAGE_DIGEST": asked.image.digest,
        "THEORY_SOURCE": "pin",
    }
    if asked.run_token:
        variables["THEORY_RUN_TOKEN"] = asked.run_token
    return Plan(
        app=asked.here.app,
        image=asked.image,
        port=runtime.port,
        environment=variables,
        secret=asked.here.app,
        pull_secret=spec.pull_secret,
        cpu=runtime.cpu,
        memory_mib=math.ceil(runtime.memory_gb * 1024),
        scratch_gb=runtime.scratch_gb,
        gpu=runtime.gpu,
        concurrency=runtime.concurrency,
        grace_s=min(math.ceil(runtime.timeout_s) + 30, 3600),
        startup_s=max(math.ceil(asked.timeout_s), 1),
        tags=modal_names.tags_of(spec, asked.image, asked.revision),
        label=modal_names.label_of(asked.image.digest),
        folder=asked.root,
    )


def dry_run(asked: Starting, warn: Warn) -> Started:
    """What `start` would deploy. Asks nobody."""
    check_pin(asked, warn)
    plan = planned(asked)
    shown = {
        "cpu": plan.cpu,
        "memory_mib": plan.memory_mib,
        "gpu": plan.gpu,
        "port": plan.port,
        "concurrency": plan.concurrency,
        "grace_s": plan.grace_s,
        "pull_secret": plan.pull_secret,
        "secret": plan.secret,
        "variables": sorted(plan.environment),
        "tags": dict(plan.tags),
    }
    return Started(asked.here, asked.image, plan=shown)


def start(asked: Starting, *, target: Target, state: ModalState, progress: Progress, warn: Warn) -> Started:
    """Deploy the image, and return when the deployment answers as its digest.

    When it does not, what was deployed before is brought back and waited for. Raises Drift, ConfigurationError,
    Unauthorized, ImagePullFailed, ModalFailed, TimedOut, RuntimeFailed (it does not answer; details.log).
    """
    began, moment = time.monotonic(), now()
    here = asked.here
    forced = check_pin(asked, warn)
    target.check()
    before = Before.of(here, target)
    _need_pull_secret(asked, target)
    credentials = proxying.settled(asked.proxy_token, state, target, label=here.app, url=before.url)
    if not target.has_secret(here.app):
        target.write_secret(here.app, {MARKER: here.app})
    record = AppRecord(here.app, before.url or "", asked.image.digest, asked.spec.spec_digest, forced)
    if state.app(here.ref, here.env) is None:
        state.record_app(here.ref, here.env, record)  # so that logs and stop find what a failure left
    door = answering.Door(here.app, "", credentials.headers(None))
    try:
        target.deploy(planned(asked), timeout_s=asked.timeout_s, progress=progress)
        url = _url(here, target)
        door = answering.Door(here.app, url, door.headers)
        progress(f"deployed at {url}; waiting until it answers as {asked.image.digest}")
        answering.await_digest(
            door,
            target,
            asked.image.digest,
            timeout_s=max(began + asked.timeout_s - time.monotonic(), 5.0),
            is_new_token=credentials.is_new,
            progress=progress,
        )
    except OperationError as error:
        raise _undone(error, asked, before, door, target, progress, moment) from error
    state.record_app(here.ref, here.env, AppRecord(here.app, url, record.image_digest, record.spec_digest, forced))
    app = target.find(here.app)
    return Started(
        here,
        asked.image,
        url=url,
        version=app.version if app else None,
        previous=before.digest,
        ready_ms=round((time.monotonic() - began) * 1000),
    )


def _need_pull_secret(asked: Starting, target: Target) -> None:
    name = asked.spec.pull_secret
    if name and not target.has_secret(name):
        raise ConfigurationError(
            f"the Modal secret {name}, which image.pull_secret of {asked.spec.ref} names, is not in {asked.here.env}",
            hint=f"modal secret create --env {asked.here.env} {name} REGISTRY_USERNAME=… REGISTRY_PASSWORD=…",
        )


def _url(here: Place, target: Target) -> str:
    found = target.endpoint(here.app)
    if found is None:
        raise ModalFailed(f"Modal deployed {here.app}, and knows no URL of it", hint=here.line("status"))
    return found.url


def _undone(
    error: OperationError,
    asked: Starting,
    before: Before,
    door: answering.Door,
    target: Target,
    progress: Progress,
    since: str,
) -> OperationError:
    """`error`, told together with what serves now: the deployment before, brought back."""
    here = asked.here
    log = _last_lines(here, target, since)
    outcome = restore(before, asked.image.digest, door, target, timeout_s=asked.timeout_s, progress=progress)
    details = {**error.details, "digest": asked.image.digest, "serving": outcome.serving}
    details["log"] = details.get("log") or log
    is_silent = error.code == "ERR_TIMEOUT" and door.url
    kind = RuntimeFailed if is_silent else type(error)
    hint = (
        error.hint if not is_silent else f"read details.log; give it longer: {here.line('start')} … --timeout SECONDS"
    )
    words = f"{error.message}; {outcome.words}"
    if log and is_silent:
        words += f"; its last lines: {' | '.join(log[-3:])}"
    return kind(words, hint=hint, details=details)


def _last_lines(here: Place, target: Target, since: str) -> list[str]:
    """What was written since then: before it, others wrote."""
    try:
        return [line.line for line in target.logs(here.app, follow=False, tail=LOG_LINES, since=since)]
    except OperationError:
        return []  # it was not deployed
