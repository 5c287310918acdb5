"""Run a processor that was started on this machine: inputs, container, drift, then one execution."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from processor_runtime import protocol

from apps.errors import ConnectionFailed, Drift, ExecutionLost, NotStarted, OperationError, Unauthorized
from apps.processors import engines, runs
from apps.processors.asking import Asked, Ran, prepare, told
from apps.processors.door import Door, Unreachable
from apps.processors.envelope import Meta
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.selection import difference, standard
from apps.processors.spec import ProcessorSpec
from apps.processors.state import ContainerRecord, LocalState
from apps.settings import Settings
from apps.storage.base import StorageBackend

if TYPE_CHECKING:
    from apps.processors.adapters.base import Container, Engine

SETTLE_S: Final = 1.0
"""How long an engine may take to see that a container has ended. The kernel closes its connections before."""


def run(
    asked: Asked,
    *,
    settings_of: Callable[[], Settings],
    state_of: Callable[[Settings], LocalState],
    storage_of: Callable[[Settings], StorageBackend],
    engine_of: "Callable[[Settings, str], Engine]",
    on_event: runs.EventSink,
    warn: Callable[[str], None],
) -> Ran:
    """One execution in the ref's container; an execution that a complete prefix already names is given back.

    Asks no engine unless the container does not answer. Raises OperationErrors that carry the error envelope: what
    can fail is made in here.
    """
    known = runs.Known(asked.id(), asked.ref, Meta(adapter="local", mode=asked.mode))
    with told(known):
        settings = settings_of()
        known.learn(engine=settings.engine)
        return _run(asked, known, settings, state_of(settings), storage_of, engine_of, on_event, warn)


def _run(
    asked: Asked,
    known: runs.Known,
    settings: Settings,
    state: LocalState,
    storage_of: Callable[[Settings], StorageBackend],
    engine_of: "Callable[[Settings, str], Engine]",
    on_event: runs.EventSink,
    warn: Callable[[str], None],
) -> Ran:
    ready = prepare(asked, known, settings, storage_of)
    if ready.before is not None:
        return ready.before

    spec = ready.spec
    record = state.container(spec.ref)
    if record is None:
        raise _not_started(spec.ref)
    traits = engines.traits(record.engine)
    known.learn(engine=record.engine, isolation=traits.isolation, image_digest=record.image_digest)
    known.learn(transfer=ready.artifacts.reach(traits.loopback))
    door = Door(
        f"ws://127.0.0.1:{record.port}{protocol.PATH}", {"Authorization": f"Bearer {state.token(spec.ref) or ''}"}
    )

    sources = ready.supply()

    def identify(hello: protocol.Hello) -> None:
        _refuse_stranger(hello, spec)
        _refuse_drift(hello, spec, asked, record, state, warn)

    def is_gone() -> bool:
        return _is_gone(spec.ref, engine_of(settings, record.engine))

    try:
        envelope = runs.execute(
            ready.request,
            door,
            known=known,
            artifacts=ready.artifacts,
            sources=sources,
            identify=identify,
            on_event=on_event,
            is_gone=is_gone,
        )
    except Unauthorized as exc:
        exc.hint = f"localctl start --ref {spec.ref}"
        raise
    except Unreachable as exc:
        raise _why(exc, spec.ref, engine_of(settings, record.engine), sent=known.sent) from exc
    return Ran(envelope.document(), ready.artifacts)


def _not_started(ref: ProcessorRef) -> NotStarted:
    return NotStarted(f"{ref} is not started", hint=f"localctl start --ref {ref}")


def _refuse_stranger(hello: protocol.Hello, spec: ProcessorSpec) -> None:
    if hello.ref != str(spec.ref):
        raise ConnectionFailed(
            f"{hello.ref} answers on the port of {spec.ref}",
            hint=f"localctl stop --ref {spec.ref}, then start it again",
        )


def _refuse_drift(
    hello: protocol.Hello,
    spec: ProcessorSpec,
    asked: Asked,
    record: ContainerRecord,
    state: LocalState,
    warn: Callable[[str], None],
) -> None:
    platform = asked.platform or Platform.parse(record.platform)
    expected = standard(
        spec,
        platform,
        record,
        builds=state.builds(spec.ref),
        engine=record.engine,
        gives_digests=engines.traits(record.engine).gives_digests,
    )
    if expected.note:
        warn(expected.note)
    found = difference(
        image=hello.image_digest,
        spec=hello.spec_digest,
        selection=expected.selection,
        spec_now=expected.spec_digest,
    )
    if found is not None:
        raise Drift(
            f"the running {found['of']} of {spec.ref} is {found['running']}, "
            f"{found['selected']} would be started for {platform}",
            hint=f"localctl start --ref {spec.ref}"
            + (f" --platform {platform.architecture}" if asked.platform else "")
            + (f" --source {record.forced}" if record.forced in ("build", "pin") else ""),
            details=found,
        )


def _why(lost: Unreachable, ref: ProcessorRef, engine: "Engine", *, sent: bool) -> OperationError:
    """What the engine says of a container that does not answer."""
    from apps.processors.containers import last_words  # a run that goes well needs no engine

    container = _settled(ref, engine)
    if container is not None and container.state == "running":
        return ConnectionFailed(
            f"the connection to {ref} was lost: {lost}" if sent else f"{ref} runs, but nothing answers on its port",
            hint=f"localctl status --ref {ref}",
        )
    details = last_words(container, engine) if container is not None else {}
    if sent:
        return ExecutionLost(
            f"the container of {ref} went away during the execution; its fate is unknown",
            hint=f"localctl logs --ref {ref}",
            details=details,
        )
    error = _not_started(ref)
    if container is not None:
        error.message = f"the container of {ref} has ended (exit status {container.exit_status})"
    error.details = details
    return error


def _is_gone(ref: ProcessorRef, engine: "Engine") -> bool:
    """Whether the engine knows that the container has ended; one that does not answer knows nothing."""
    try:
        container = _settled(ref, engine)
    except OperationError:
        return False
    return container is None or container.state != "running"


def _settled(ref: ProcessorRef, engine: "Engine") -> "Container | None":
    """The ref's container; one that still runs after SETTLE_S is believed to."""
    from apps.processors.containers import of_ref

    deadline = time.monotonic() + SETTLE_S
    while True:
        container = next(iter(of_ref(engine, ref)), None)
        if container is None or container.state != "running" or time.monotonic() > deadline:
            return container
        time.sleep(0.05)
