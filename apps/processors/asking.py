"""What a caller asks of a run, checked before anything is sent: inputs, prefix, id, and what ran under them before."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import rfc8785
from processor_runtime import protocol

from apps.errors import Cancelled, ExecutionConflict, InvalidInputs, OperationError, StorageFailed
from apps.processors import checked, inputs, runs
from apps.processors.envelope import new_execution_id
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.spec import ProcessorSpec
from apps.settings import Settings
from apps.storage import artifacts
from apps.storage.base import StorageBackend

if TYPE_CHECKING:
    from apps.processors.attaching import Attached
    from apps.processors.fetching import Sources

SHOWN_BYTES: Final = 64 * 1024


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
    attach: tuple[str, ...] = ()
    """NAME=PATH of files that the inputs shall name."""

    def id(self) -> str:
        """The execution's: what was typed, an empty word too (`prepare` refuses it), or a new one."""
        return new_execution_id() if self.execution_id is None else self.execution_id


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


class Prepared(NamedTuple):  # no dataclass: every run would pay for making it
    """What can be sent, and where its outputs go."""

    spec: ProcessorSpec
    request: protocol.Run
    artifacts: artifacts.Artifacts
    before: Ran | None
    """This very execution, complete already: it is given back."""
    backend: StorageBackend
    attached: "Sequence[Attached]"
    """Files that are still to be uploaded."""
    names_artifacts: bool

    def supply(self) -> "Sources | None":
        """Have in the store what the inputs name, and know it: once it is sure that all else can be.

        Raises InvalidInputs, StorageFailed.
        """
        if self.attached:
            from apps.processors import attaching

            attaching.store(self.attached, self.backend)
        if not self.names_artifacts:
            return None
        from apps.processors import fetching  # most runs need none of it

        return fetching.look_up(self.request.inputs, self.backend)


@contextmanager
def told(known: runs.Known) -> Iterator[None]:
    """Every failure in here carries the error envelope."""
    try:
        yield
    except OperationError as error:
        raise known.failed(error) from error
    except KeyboardInterrupt as exc:  # where no execution could be cancelled yet, or the user would not wait for it
        raise known.failed(Cancelled("interrupted", details={"by": "user"})) from exc


def prepare(
    asked: Asked, known: runs.Known, settings: Settings, storage_of: Callable[[Settings], StorageBackend]
) -> Prepared:
    """Check all that can be checked without the processor; `known` holds what was learnt.

    Raises RefNotFound, InvalidRegistry, InvalidInputs, ConfigurationError, StorageFailed, OutputExists,
    ExecutionConflict.
    """
    spec = checked.load(settings.root, ProcessorRef.parse(asked.ref), folder=settings.state)
    known.learn(spec_digest=spec.spec_digest)
    request, attached, names_artifacts = _request(asked, spec, known, settings)
    backend = storage_of(settings)
    known.learn(storage=backend.name)
    backend.check()
    place = artifacts.Artifacts(backend, request.write_prefix)
    receipt = place.previous(request.execution_id)
    before = Ran(_same_execution(receipt, known), place) if receipt is not None else None
    return Prepared(spec, request, place, before, backend, attached, names_artifacts)


def _request(
    asked: Asked, spec: ProcessorSpec, known: runs.Known, settings: Settings
) -> "tuple[protocol.Run, Sequence[Attached], bool]":
    """What to send, what to upload before, and whether the inputs name any artifact."""
    if not protocol.EXECUTION_ID.fullmatch(known.execution_id):
        raise InvalidInputs(
            f"{known.execution_id!r} is not an execution id",
            hint="an execution id is a UUIDv7; leave it out to get one",
        )
    document, attached = _inputs(asked, spec, settings)
    inputs.validate(spec.inputs, document, ref=asked.ref)
    canonical = rfc8785.dumps(document)
    known.learn(inputs_digest="sha256:" + hashlib.sha256(canonical).hexdigest())
    known.write_prefix = artifacts.expand(asked.write_prefix, execution_id=known.execution_id, ref_slug=spec.ref.slug)
    request = protocol.Run(
        execution_id=known.execution_id,
        mode=asked.mode,
        inputs=document,
        write_prefix=known.write_prefix,
        timeout_s=asked.timeout_s or spec.runtime.timeout_s,
    )
    return request, attached, protocol.ARTIFACT_MARK in canonical


def _inputs(asked: Asked, spec: ProcessorSpec, settings: Settings) -> "tuple[dict[str, Any], Sequence[Attached]]":
    if not asked.attach:
        document = asked.inputs(settings)
        return _default_inputs(spec, asked.mode) if document is None else document, ()
    from apps.processors import attaching

    attachments = attaching.parse(asked.attach)
    document = asked.inputs(settings)
    if document is None:  # and no example, in either mode: it may hold another file in the very place
        document = {"schema": "v1", "params": {}}
    return document, attaching.attach(document, attachments, settings.caller)


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
