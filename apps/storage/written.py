"""What an execution left under its write prefix: listed, fetched with its digests verified, removed."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from apps.errors import ExecutionNotFound, InvalidInputs, OperationError, OutputExists, StorageFailed
from apps.storage import keys
from apps.storage.artifacts import DOCUMENT_BYTES, INDEX, RECEIPT
from apps.storage.base import ObjectWriter, StorageBackend
from apps.storage.filesystem import STAGING, FilesystemBackend

_PIECE_BYTES: Final = 1024 * 1024
# Of an execution id: a folder of that name is another execution's.
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class StoredOutput(NamedTuple):
    """One output. The fields are the document's keys; None where no index tells."""

    path: str
    digest: str | None
    size_bytes: int
    mime: str | None


class Written:
    """The files of one execution under an expanded prefix, as they are stored now."""

    def __init__(self, backend: StorageBackend, prefix: str, *, execution_id: str, ref: str) -> None:
        """Raises ExecutionNotFound where nothing is, OutputExists for what is another execution's, StorageFailed."""
        self.prefix, self._backend = prefix, backend
        self._execution_id, self._ref = execution_id, ref
        self._stored = list(backend.list(prefix[1:]))
        if not self._stored:
            raise ExecutionNotFound(
                f"execution {execution_id} wrote nothing under {prefix}",
                hint="look at --execution-id, --ref and --write-prefix: they are those of the run",
            )
        index, receipt = self._document(INDEX), self._document(RECEIPT)
        self.complete = index is not None
        """Whether there is an index, so that all is there as it says."""
        for document in filter(None, (index, receipt)):
            self._refuse_other(document)
        self._refuse_others_below()
        self.outputs = tuple(sorted(self._indexed(index) if index is not None else self._listed()))

    def download(self, folder: Path) -> list[tuple[StoredOutput, Path]]:
        """Every output as a file below `folder`; one that is there with the same bytes is left alone.

        Nothing is written outside of it, whatever an index says. Raises OutputExists for a file with other bytes,
        StorageFailed for an output that is not what the index says, or for a folder that can't be written.
        """
        target = FilesystemBackend(folder)
        with _told_of(folder):
            target.make_root()  # and no more: a folder called .tmp may be the user's own there
        try:
            return [(output, self._fetch(output, target)) for output in self.outputs]
        finally:
            with suppress(OSError):  # in use by another download
                (folder / STAGING).rmdir()

    def discard(self) -> None:
        """Remove all of it, the index first: what is left by a failure is no longer complete. Raises StorageFailed."""
        stored = {found.key for found in self._stored}
        documents = [self._key(name) for name in (INDEX, RECEIPT)]
        for key in (*(key for key in documents if key in stored), *sorted(stored - {*documents})):
            self._backend.delete(key)

    def locate(self, output: StoredOutput) -> str:
        """Where a person finds it."""
        return self._backend.locate(output.path[1:])

    def _key(self, name: str) -> str:
        return f"{self.prefix}{name}"[1:]

    def _document(self, name: str) -> dict[str, Any] | None:
        data = self._backend.read(self._key(name), limit_bytes=DOCUMENT_BYTES)
        if data is None:
            return None
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or document.get("schema") != 1:
            raise OutputExists(f"{self._backend.locate(self._key(name))} is not a document of an execution")
        return document

    def _refuse_other(self, document: dict[str, Any]) -> None:
        owner, ref = document.get("execution_id"), document.get("ref")
        if owner != self._execution_id:
            raise OutputExists(
                f"{self.prefix} holds the outputs of execution {owner}",
                hint=f"--execution-id {owner}",
                details={"execution_id": owner},
            )
        if ref != self._ref:
            raise OutputExists(
                f"execution {owner} is of {ref}, not of {self._ref}", hint=f"--ref {ref}", details={"ref": ref}
            )

    def _refuse_others_below(self) -> None:
        """A prefix that spans executions would list, and discard, what is not this one's."""
        for found in self._stored:
            *folders, name = found.key[len(self.prefix) - 1 :].split("/")
            others = [folder for folder in folders if _ID.fullmatch(folder) and folder != self._execution_id]
            # No output is called so: the names are kept for an execution's own documents.
            if others or (folders and name in (INDEX, RECEIPT)):
                raise OutputExists(
                    f"other executions wrote below {self.prefix}: {self._backend.locate(found.key)}",
                    hint="name this execution's own --write-prefix",
                )
            if keys.ATTACHED.fullmatch(found.key):
                raise OutputExists(
                    f"{self._backend.locate(found.key)} was attached to a run: no execution wrote it",
                    hint="name this execution's own --write-prefix",
                )

    def _indexed(self, index: dict[str, Any]) -> Iterator[StoredOutput]:
        try:
            for each in index["outputs"]:
                output = StoredOutput(
                    str(each["path"]), str(each["digest"]), int(each["size_bytes"]), str(each["mime"])
                )
                if not output.path.startswith(self.prefix):
                    raise ValueError(output.path)
                keys.split(output.path[1:])
                yield output
        except (KeyError, TypeError, ValueError, InvalidInputs) as exc:
            raise StorageFailed(f"{self._backend.locate(self._key(INDEX))} is damaged: {exc}") from exc

    def _listed(self) -> Iterator[StoredOutput]:
        for found in self._stored:
            if found.key != self._key(RECEIPT):
                yield StoredOutput(f"/{found.key}", None, found.size_bytes, None)

    def _fetch(self, output: StoredOutput, target: FilesystemBackend) -> Path:
        name = output.path.removeprefix(self.prefix)
        path = target.root / name
        with _told_of(target.root):
            writer = target.create(name, mime="")
        try:
            with self._backend.open(output.path[1:]) as file:
                size_bytes, digest = _copy(file, writer, target.root)
            if output.digest and (size_bytes, digest) != (output.size_bytes, output.digest):
                raise StorageFailed(f"{self.locate(output)} is not what the index says of it", hint="run it again")
            with _told_of(target.root):
                writer.commit(size_bytes=size_bytes, digest=digest)
        finally:
            writer.abort()
        return path


def _copy(file: BinaryIO, writer: ObjectWriter, folder: Path) -> tuple[int, str]:
    """Size and digest of what was copied."""
    digest, size_bytes = hashlib.sha256(), 0
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        size_bytes += len(piece)
        with _told_of(folder):
            writer.write(piece)
    return size_bytes, f"sha256:{digest.hexdigest()}"


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """The folder is no ARTIFACTS_ROOT: the hint is about --download."""
    try:
        yield
    except OperationError as exc:
        exc.hint = f"name another folder than {folder} with --download"
        raise
