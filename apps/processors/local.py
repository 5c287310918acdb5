"""Start a processor on this machine: one ready container of the selected image, reused while nothing differs."""

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.errors import (
    ConfigurationError,
    EngineFailed,
    ImageNotFound,
    MissingSecret,
    RuntimeFailed,
)
from apps.processors import environment
from apps.processors.adapters.base import Container, Engine, Launch, NameTaken, PortTaken, Progress
from apps.processors.containers import Warn, keep_logs, last_words, log_file, of_ref, probe, retire
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.selection import Selection, select
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
    platform = asked.platform or engine.platform()
    with state.changing(spec.ref):
        _refuse_second_engine(spec.ref, others)
        selection = select(
            spec, platform, builds=state.builds(spec.ref), engine=engine.name, gives_digests=engine.gives_digests
        )
        for note in selection.notes:
            warn(note)
        found = of_ref(engine, spec.ref)
        wanted = _Wanted(spec, selection, secrets.values, state.secrets_hmac(secrets.values))
        if (reused := _reusable(found, wanted, state)) is not None:
            return _started(wanted, engine, reused, reused=True, replaced=None, began=began)
        image = _image(wanted, engine, progress)
        for old in found:
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


def _refuse_second_engine(ref: ProcessorRef, others: Sequence[Engine]) -> None:
    for other in others:
        if any(each.state == "running" for each in of_ref(other, ref)):
            raise ConfigurationError(
                f"{ref} runs on the {other.name} engine", hint=f"stop it first: localctl stop --ref {ref}"
            )


def _reusable(found: Sequence[Container], wanted: _Wanted, state: LocalState) -> Container | None:
    """The running container in which nothing differs, and which answers."""
    record = state.container(wanted.spec.ref)
    for each in found:
        same = (
            each.state == "running"
            and record is not None
            and record.id == each.id
            and record.secrets_hmac == wanted.secrets_hmac
            and wanted.labels("").items() - {("theory.root", "")} <= each.labels.items()
        )
        if same and each.host_port is not None and probe(each.host_port) == "ready":
            return each
    return None


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
    progress(f"pulling {reference}")
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
    port = state.allocate_port(spec.ref, usable=_is_free)
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
    container = _on_a_free_port(launch, engine, state, warn)
    try:
        _await_ready(container, engine, spec.ref, timeout_s=asked.timeout_s)
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
            ),
        )
    except BaseException:  # Ctrl-C too: what is not ready is not left behind
        engine.stop(container, grace_s=1.0)
        keep_logs(engine, container, spec.ref, state)
        engine.remove(container)
        raise
    log_file(state, spec.ref).unlink(missing_ok=True)  # from here on the engine has them
    return container


def _on_a_free_port(launch: Launch, engine: Engine, state: LocalState, warn: Warn) -> Container:
    for _ in range(5):
        try:
            return engine.launch(launch)
        except PortTaken:
            port = state.allocate_port(launch.ref, usable=_is_free, replace=True)
            warn(f"port {launch.host_port} is taken by something else; {launch.ref} has port {port} from now on")
            launch = replace(launch, host_port=port)
        except NameTaken as exc:
            raise EngineFailed(
                f"a container named {launch.name} exists that is not ours", hint=f"docker rm -f {launch.name}"
            ) from exc
    raise EngineFailed(f"no free port for {launch.ref} after five tries", hint="try again")


def _is_free(port: int) -> bool:
    with socket.socket() as probe_socket:
        try:
            probe_socket.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _await_ready(container: Container, engine: Engine, ref: ProcessorRef, *, timeout_s: float) -> None:
    assert container.host_port is not None  # noqa: S101  just published
    deadline, pause_s, looked = time.monotonic() + timeout_s, 0.01, 0.0
    while True:
        if probe(container.host_port) == "ready":
            return
        now = time.monotonic()
        if now - looked > 0.25:  # asking the engine costs more than asking the port
            looked = now
            alive = next((each for each in engine.containers() if each.id == container.id), None)
            if alive is None or alive.state != "running":
                raise _ended(alive or container, engine, ref, f"{ref} ended before it was ready")
        if now > deadline:
            raise _ended(container, engine, ref, f"{ref} was not ready within {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.2)


def _ended(container: Container, engine: Engine, ref: ProcessorRef, message: str) -> RuntimeFailed:
    """The error for a container that ended or never came up, with its last words."""
    return RuntimeFailed(message, hint=f"localctl logs --ref {ref}", details=last_words(container, engine))
