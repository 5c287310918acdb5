"""Run a processor that was started on this machine: inputs, container, drift, then one execution."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import rfc8785
from processor_runtime import protocol

from apps.errors import (
    Cancelled,
    ConnectionFailed,
    Drift,
    ExecutionConflict,
    ExecutionLost,
    InvalidInputs,
    NotStarted,
    OperationError,
    StorageFailed,
    Unauthorized,
)
from apps.processors import checked, engines, inputs, runs
from apps.processors.door import Door, Unreachable
from apps.processors.envelope import Meta, new_execution_id
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.selection import difference, standard
from apps.processors.spec import ProcessorSpec
from apps.processors.state import ContainerRecord, LocalState
from apps.settings import Settings
from apps.storage import artifacts
from apps.storage.base import StorageBackend

if TYPE_CHECKING:
    from apps.processors.adapters.base import Container, Engine

SHOWN_BYTES: Final = 64 * 1024
SETTLE_S: Final = 1.0
"""How long an engine may take to see that a container has ended. The kernel closes its connections before."""


class Asked(NamedTuple):  # no dataclass: every run would pay for making it
    """What the caller typed, not yet checked."""

    ref: str
    mode: str
    inputs: Callable[[Settings], dict[str, Any] | None]
    """Reads the inputs' document; None when the caller gave none."""
    platform: Platform | None = None
    write_prefix: str | None = None
    timeout_s: float | None = None
    execution_id: str | None = None


class Ran(NamedTuple):  # no dataclass: every run would pay for making it
    """A successful execution."""

    envelope: dict[str, Any]
    artifacts: artifacts.Artifacts

    def places(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Each output, and where a person finds it."""
        for output in self.envelope["outputs"]:
            yield output, self.artifacts.locate(output["path"].removeprefix(self.artifacts.prefix))

    def texts(self) -> Iterator[str]:
        """What the processor said: its plain text outputs, the first 64 KiB of each."""
        for output in self.envelope["outputs"]:
            if output["mime"].startswith("text/"):
                with self.artifacts.open(output["path"].removeprefix(self.artifacts.prefix)) as file:
                    yield file.read(SHOWN_BYTES).decode("utf-8", "replace")


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
    known = runs.Known(asked.execution_id or new_execution_id(), asked.ref, Meta(adapter="local", mode=asked.mode))
    try:
        settings = settings_of()
        known.learn(engine=settings.engine)
        return _run(asked, known, settings, state_of(settings), storage_of, engine_of, on_event, warn)
    except OperationError as error:
        raise known.failed(error) from error
    except KeyboardInterrupt as exc:  # where no execution could be cancelled yet, or the user would not wait for it
        raise known.failed(Cancelled("interrupted", details={"by": "user"})) from exc


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
    spec = checked.load(settings.root, ProcessorRef.parse(asked.ref), folder=settings.state)
    known.learn(spec_digest=spec.spec_digest)
    request = _request(asked, spec, known, settings)
    backend = storage_of(settings)
    known.learn(storage=backend.name, transfer="relay")
    backend.check()
    place = artifacts.Artifacts(backend, request.write_prefix)
    if (receipt := place.previous(request.execution_id)) is not None:
        return Ran(_same_execution(receipt, known), place)

    record = state.container(spec.ref)
    if record is None:
        raise _not_started(spec.ref)
    known.learn(
        engine=record.engine, isolation=engines.traits(record.engine).isolation, image_digest=record.image_digest
    )
    door = Door(
        f"ws://127.0.0.1:{record.port}{protocol.PATH}", {"Authorization": f"Bearer {state.token(spec.ref) or ''}"}
    )

    def identify(hello: protocol.Hello) -> None:
        _refuse_stranger(hello, spec)
        _refuse_drift(hello, spec, asked, record, state, warn)

    try:
        envelope = runs.execute(request, door, known=known, artifacts=place, identify=identify, on_event=on_event)
    except Unauthorized as exc:
        exc.hint = f"localctl start --ref {spec.ref}"
        raise
    except Unreachable as exc:
        raise _why(exc, spec.ref, engine_of(settings, record.engine), sent=known.sent) from exc
    return Ran(envelope.document(), place)


def _request(asked: Asked, spec: ProcessorSpec, known: runs.Known, settings: Settings) -> protocol.Run:
    if not protocol.EXECUTION_ID.fullmatch(known.execution_id):
        raise InvalidInputs(
            f"{known.execution_id!r} is not an execution id",
            hint="an execution id is a UUIDv7; leave it out to get one",
        )
    document = asked.inputs(settings)
    if document is None:
        document = _default_inputs(spec, asked.mode)
    inputs.validate(spec.inputs, document, ref=asked.ref)
    known.learn(inputs_digest="sha256:" + hashlib.sha256(rfc8785.dumps(document)).hexdigest())
    known.write_prefix = artifacts.expand(asked.write_prefix, execution_id=known.execution_id, ref_slug=spec.ref.slug)
    return protocol.Run(
        execution_id=known.execution_id,
        mode=asked.mode,
        inputs=document,
        write_prefix=known.write_prefix,
        timeout_s=asked.timeout_s or spec.runtime.timeout_s,
    )


def _default_inputs(spec: ProcessorSpec, mode: str) -> dict[str, Any]:
    examples = spec.inputs.get("examples") or [{}]
    return dict(examples[0]) if mode == "mock" else {}


def _same_execution(receipt: bytes, known: runs.Known) -> dict[str, Any]:
    """The receipt of this very execution, when it was asked for the same thing."""
    try:
        envelope: dict[str, Any] = json.loads(receipt)
        then = {"ref": envelope["ref"], **{name: envelope["meta"][name] for name in ("mode", "inputs_digest")}}
    except (ValueError, KeyError, TypeError) as exc:
        raise StorageFailed(f"the receipt under {known.write_prefix} is damaged: {exc}") from exc
    if then != {"ref": known.ref, "mode": known.meta.mode, "inputs_digest": known.meta.inputs_digest}:
        raise ExecutionConflict(
            f"execution {known.execution_id} ran already, of another ref, with other inputs or in another mode",
            hint="use another --execution-id, or leave it out",
            details=then,
        )
    return envelope


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


def _settled(ref: ProcessorRef, engine: "Engine") -> "Container | None":
    """The ref's container; one that still runs after SETTLE_S is believed to."""
    from apps.processors.containers import of_ref

    deadline = time.monotonic() + SETTLE_S
    while True:
        container = next(iter(of_ref(engine, ref)), None)
        if container is None or container.state != "running" or time.monotonic() > deadline:
            return container
        time.sleep(0.05)
