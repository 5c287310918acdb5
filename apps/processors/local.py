"""Start a processor on this machine: one ready container of the selected image, reused while nothing differs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.errors import ConfigurationError, ImageNotFound, MissingSecret
from apps.processors import environment, launching
from apps.processors.adapters.base import Container, Engine, Launch, Progress
from apps.processors.containers import Warn, found_on, keep_logs, log_file, of_ref, retire
from apps.processors.probing import drain, probe
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.selection import Selection, forced_note, select
from apps.processors.spec import ProcessorSpec
from apps.processors.state import ContainerRecord, LocalState


@dataclass(frozen=True, slots=True)
class Started:
    """What `start` did."""

    ref: ProcessorRef
    engine: str
    isolation: str
    container: Container
    selection: Selection
    port: int
    secrets: tuple[str, ...]
    reused: bool
    replaced: str | None
    ready_ms: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def document(self) -> dict[str, Any]:
        """The contract's `localctl start` document."""
        selection = self.selection
        return {
            "status": "success",
            "ref": str(self.ref),
            "engine": self.engine,
            "isolation": self.isolation,
            "container": {"id": self.container.id, "name": self.container.name},
            "image": {
                "digest": selection.digest,
                "source": selection.source,
                "platform": str(selection.platform),
            },
            "port": self.port,
            "url": self.url,
            "secrets": list(self.secrets),
            "reused": self.reused,
            "replaced": self.replaced,
            "ready_ms": self.ready_ms,
        }


@dataclass(frozen=True, slots=True)
class Starting:
    """What the caller asked of `start`."""

    spec: ProcessorSpec
    environ: Mapping[str, str]
    platform: Platform | None = None
    timeout_s: float = 120.0
    allow_missing_secrets: bool = False
    source: str | None = None
    """pin or build: take that one, whatever the registry would select."""
    allow_drift: bool = False
    """Let what runs go on, and ask the registry no more until the next start."""

    @property
    def forced(self) -> str | None:
        """The choice as it is recorded."""
        return "drift" if self.allow_drift else self.source

    @property
    def keeps_what_runs(self) -> bool:
        return self.allow_drift and self.source is None


def start(
    asked: Starting,
    *,
    engine: Engine,
    others: Sequence[Engine],
    state: LocalState,
    root_id: str,
    progress: Progress,
    warn: Warn,
) -> Started:
    """Have one ready container of the ref's selected image; reuse the one that runs when nothing differs.

    With `asked.allow_drift` alone, image and spec of the one that runs may differ. A forced choice is recorded.
    `others` are the engines that must not run the ref too. Raises MissingSecret, EngineFailed, ImageNotFound,
    ImagePullFailed, ConfigurationError, RuntimeFailed (it ended, or was not ready within `timeout_s`).
    """
    began = time.monotonic()
    spec = asked.spec
    secrets = environment.secrets(spec.secrets, asked.environ)
    if secrets.missing and not asked.allow_missing_secrets:
        raise MissingSecret(
            f"{spec.ref} needs {', '.join(secrets.missing)}, not set in the environment",
            hint="export them, or start with --allow-missing-secrets for mock runs",
            details={"missing": list(secrets.missing)},
        )
    if asked.forced:
        warn(forced_note(spec.ref, asked.forced))
    platform = asked.platform or engine.platform()
    with state.changing(spec.ref):
        record = state.container(spec.ref)
        _refuse_second_engine(spec.ref, others, warn, must=record.engine if record else None)
        found = of_ref(engine, spec.ref)
        fingerprint = state.secrets_hmac(secrets.values)
        running = _running(found, record, platform, fingerprint)
        token = state.token(spec.ref)
        kept = running if running is not None and asked.keeps_what_runs and _is_ready(running, token) else None
        selection = _of_labels(kept, platform) if kept else _select(asked, platform, engine, state, warn)
        wanted = _Wanted(spec, selection, secrets.values, fingerprint, asked.forced)
        if running is not None and (kept or (_fits(running, selection, spec) and _is_ready(running, token))):
            _record_choice(wanted, state)
            return _started(wanted, engine, running, reused=True, replaced=None, began=began)
        image = _image(wanted, engine, progress)
        for old in found:
            if old.state == "running" and old.host_port is not None:
                drain(old.host_port, progress=progress)
            retire(old, spec.ref, engine, state, progress)
        container = _launch(wanted, image, asked, engine=engine, state=state, root_id=root_id, warn=warn)
        replaced = next((old.labels.get("theory.digest") for old in found if old.state == "running"), None)
        return _started(wanted, engine, container, reused=False, replaced=replaced, began=began)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What should run: every difference to it means a new container."""

    spec: ProcessorSpec
    selection: Selection
    secrets: Mapping[str, str]
    secrets_hmac: str
    forced: str | None

    def labels(self, root_id: str) -> dict[str, str]:
        return {
            "theory.ref": str(self.spec.ref),
            "theory.root": root_id,
            "theory.digest": self.selection.digest,
            "theory.spec": self.spec.spec_digest,
            "theory.source": self.selection.source,
            "theory.platform": str(self.selection.platform),
        }

    def environment(self, engine: Engine, environ: Mapping[str, str], token: str) -> dict[str, str]:
        return {
            **environment.passthrough(environ, paths=engine.shares_files),
            **self.secrets,
            "THEORY_SPEC": self.spec.spec_json,
            "THEORY_IMAGE_DIGEST": self.selection.digest,
            "THEORY_SOURCE": self.selection.source,
            "THEORY_RUN_TOKEN": token,
        }


def _started(
    wanted: _Wanted, engine: Engine, container: Container, *, reused: bool, replaced: str | None, began: float
) -> Started:
    assert container.host_port is not None  # noqa: S101  a container of ours publishes its port
    return Started(
        ref=wanted.spec.ref,
        engine=engine.name,
        isolation=engine.isolation,
        container=container,
        selection=wanted.selection,
        port=container.host_port,
        secrets=tuple(sorted(wanted.secrets)),
        reused=reused,
        replaced=replaced,
        ready_ms=round((time.monotonic() - began) * 1000),
    )


def _refuse_second_engine(ref: ProcessorRef, others: Sequence[Engine], warn: Warn, *, must: str | None) -> None:
    for other, container in found_on(others, ref, warn, must=must):
        if container.state == "running":
            raise ConfigurationError(
                f"{ref} runs on the {other.name} engine", hint=f"stop it first: localctl stop --ref {ref}"
            )


def _running(
    found: Sequence[Container], record: ContainerRecord | None, platform: Platform, fingerprint: str
) -> Container | None:
    """The running container that the last `start` made, of this platform and with these secrets."""
    if record is None or record.secrets_hmac != fingerprint:
        return None
    for each in found:
        if (each.state, each.id, each.labels.get("theory.platform")) == ("running", record.id, str(platform)):
            return each
    return None


def _select(asked: Starting, platform: Platform, engine: Engine, state: LocalState, warn: Warn) -> Selection:
    selection = select(
        asked.spec,
        platform,
        builds=state.builds(asked.spec.ref),
        engine=engine.name,
        gives_digests=engine.gives_digests,
        forced=asked.source,
    )
    for note in selection.notes:
        warn(note)
    return selection


def _fits(running: Container, selection: Selection, spec: ProcessorSpec) -> bool:
    image, spec_digest = (running.labels.get(name) for name in ("theory.digest", "theory.spec"))
    return image in selection.names and spec_digest == spec.spec_digest


def _is_ready(running: Container, token: str | None) -> bool:
    """Whether it serves, and would serve a `run`: the token may be lost, or another's."""
    port = running.host_port
    return port is not None and probe(port) in ("ready", "busy") and launching.lets_in(port, token)


def _of_labels(running: Container, platform: Platform) -> Selection:
    source, digest = (running.labels.get(name, "") for name in ("theory.source", "theory.digest"))
    return Selection(source, digest, None, None, platform, ())


def _record_choice(wanted: _Wanted, state: LocalState) -> None:
    """Of a container that goes on: why it does, which may be another reason than the one it was started for."""
    record = state.container(wanted.spec.ref)
    if record is not None:
        choice = replace(record, source=wanted.selection.source, forced=wanted.forced)
        state.record_container(wanted.spec.ref, choice)


def _image(wanted: _Wanted, engine: Engine, progress: Progress) -> str:
    """The name to launch the selection by; a pinned digest that is not here is pulled."""
    selection = wanted.selection
    if selection.reference is None:
        if selection.image is not None and engine.has_image(selection.image):
            return selection.image
        raise ImageNotFound(
            f"the last build of {wanted.spec.ref} for {selection.platform} is not on this machine any more",
            hint=f"processorctl build --ref {wanted.spec.ref} --platforms {selection.platform}",
        )
    reference = selection.reference
    here = engine.local_image(reference.digest, repository=reference.repository, platform=selection.platform)
    if here is not None:
        return here
    return engine.pull(reference, selection.platform, progress=progress)


def _launch(
    wanted: _Wanted,
    image: str,
    asked: Starting,
    *,
    engine: Engine,
    state: LocalState,
    root_id: str,
    warn: Warn,
) -> Container:
    spec, selection = wanted.spec, wanted.selection
    port = state.allocate_port(spec.ref, usable=launching.is_free)
    launch = Launch(
        name=f"processor-{spec.ref.slug}-{root_id}",
        ref=spec.ref,
        image=image,
        platform=selection.platform,
        container_port=spec.runtime.port,
        host_port=port,
        environment=wanted.environment(engine, asked.environ, state.new_token(spec.ref)),
        labels=wanted.labels(root_id),
        limits=spec.runtime.limits(),
    )
    container = launching.launch(launch, engine, state, warn)
    try:
        launching.await_ready(container, engine, spec.ref, timeout_s=asked.timeout_s)
        state.record_container(
            spec.ref,
            ContainerRecord(
                engine=engine.name,
                id=container.id,
                name=container.name,
                port=container.host_port or port,
                image_digest=selection.digest,
                spec_digest=spec.spec_digest,
                source=selection.source,
                platform=str(selection.platform),
                secrets=tuple(sorted(wanted.secrets)),
                secrets_hmac=wanted.secrets_hmac,
                forced=wanted.forced,
            ),
        )
    except BaseException:  # Ctrl-C too: what is not ready is not left behind
        engine.stop(container, grace_s=1.0)
        keep_logs(engine, container, spec.ref, state)
        engine.remove(container)
        raise
    log_file(state, spec.ref).unlink(missing_ok=True)  # from here on the engine has them
    return container
