"""Service: what an execution wrote, listed, downloaded or discarded; from any backend, for any place it ran at."""

from pathlib import Path
from typing import Any, NamedTuple

from processor_runtime import protocol

from apps.errors import InvalidInputs
from apps.processors.reference import ProcessorRef
from apps.storage import artifacts
from apps.storage.base import StorageBackend
from apps.storage.written import Written


class Asked(NamedTuple):
    """What the caller typed."""

    ref: ProcessorRef
    execution_id: str
    write_prefix: str | None = None
    download: Path | None = None
    """A folder to write the outputs to."""
    discard: bool = False
    """Remove all that the execution wrote, after the download."""


class Found(NamedTuple):
    """What was there when it was looked for."""

    asked: Asked
    storage: str
    written: Written

    def document(self) -> dict[str, Any]:
        return {
            "status": "success",
            "ref": str(self.asked.ref),
            "execution_id": self.asked.execution_id,
            "write_prefix": self.written.prefix,
            "storage": self.storage,
            "complete": self.written.complete,
            "outputs": [output._asdict() for output in self.written.outputs],
            "downloaded": str(self.asked.download) if self.asked.download else None,
            "discarded": self.asked.discard,
        }

    def rows(self) -> list[tuple[str, int, str]]:
        """Place, size and digest of each output; the place is the file where it was downloaded."""
        folder, prefix = self.asked.download, self.written.prefix
        return [
            (
                str(folder / output.path.removeprefix(prefix)) if folder else self.written.locate(output),
                output.size_bytes,
                output.digest or "-",
            )
            for output in self.written.outputs
        ]


def outputs(asked: Asked, *, storage: StorageBackend) -> Found:
    """List what an execution wrote, then download and discard it as asked.

    Raises InvalidInputs, ExecutionNotFound, OutputExists (another execution's, or a file that is in the way),
    StorageFailed.
    """
    if not protocol.EXECUTION_ID.fullmatch(asked.execution_id):
        raise InvalidInputs(
            f"{asked.execution_id!r} is not an execution id", hint="it is in the envelope of the run: a UUIDv7"
        )
    prefix = artifacts.expand(asked.write_prefix, execution_id=asked.execution_id, ref_slug=asked.ref.slug)
    written = Written(storage, prefix, execution_id=asked.execution_id, ref=str(asked.ref))
    if asked.download:
        written.download(asked.download)
    if asked.discard:
        written.discard()
    return Found(asked, storage.name, written)
