"""An execution's files under its write prefix: prefix rules, outputs, receipt, index. A run never overwrites.

Order: outputs, receipt, index. A prefix that has an index is complete; whatever kills a run earlier leaves a
prefix without one, in which the same execution can run again.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, Final

from apps.errors import InvalidInputs, OutputExists, OutputInvalid, StorageFailed
from apps.storage import keys
from apps.storage.base import Grant, Grants, ObjectWriter, StorageBackend

DEFAULT_PREFIX: Final = "/artifacts/outputs/{ref_slug}/{execution_id}/"
INDEX: Final = "outputs.json"
RECEIPT: Final = "receipt.json"
DOCUMENT_BYTES: Final = 64 * 1024 * 1024  # an index or receipt is never larger


def expand(prefix: str | None, *, execution_id: str, ref_slug: str) -> str:
    """The write prefix with its placeholders filled in; the default one for None.

    Raises InvalidInputs: it starts with /artifacts/, ends with a slash, knows {execution_id} and {ref_slug} and
    no other brace, and what is between is a key.
    """
    prefix = DEFAULT_PREFIX if prefix is None else prefix
    expanded = prefix.replace("{execution_id}", execution_id).replace("{ref_slug}", ref_slug)
    if not (expanded.startswith("/artifacts/") and expanded.endswith("/")):
        raise _bad_prefix(prefix, "it starts with /artifacts/ and ends with /")
    if "{" in expanded or "}" in expanded:
        raise _bad_prefix(prefix, "it knows {execution_id} and {ref_slug} alone")
    try:
        keys.split(expanded[1:-1])
    except InvalidInputs as exc:
        raise _bad_prefix(prefix, exc.message) from exc
    return expanded


def _bad_prefix(prefix: str, why: str) -> InvalidInputs:
    return InvalidInputs(f"{prefix!r} can't be a write prefix: {why}", hint=f"for instance {DEFAULT_PREFIX}")


def key(prefix: str, path: str) -> str:
    """Where the output `path` of the expanded `prefix` lies: without the first slash.

    Raises OutputInvalid for a path that can't be one, the names of index and receipt (in any folder and
    spelling: an output must not pass for another prefix's index) included.
    """
    found = f"{prefix}{path}"[1:]
    try:
        *_, name = keys.split(found)
    except InvalidInputs as exc:
        raise OutputInvalid(f"the handler wrote {path!r}: {exc.message}", details={"path": path}) from exc
    if name.casefold() in (INDEX, RECEIPT):
        raise OutputInvalid(
            f"the handler wrote {path!r}, a name kept for the execution's own documents",
            hint="write the output under another name",
            details={"path": path},
        )
    return found


class Artifacts:
    """The files of one execution in one backend, under an expanded prefix."""

    def __init__(self, backend: StorageBackend, prefix: str) -> None:
        self._backend = backend
        self._grants: Grants | None = None
        self.prefix = prefix

    @property
    def grants(self) -> bool:
        """Whether outputs can go straight to the store."""
        return self._grants is not None

    @property
    def downloads(self) -> Grants | None:
        """By which a container can have inputs straight from the store; None where it can't reach it."""
        return self._grants

    @property
    def remote(self) -> bool:
        """Whether storing may mean waiting for another machine."""
        return self.grants or self._backend.name != "filesystem"

    def reach(self, loopback: str | None) -> str:
        """From now on grant uploads where the store can, to a container that knows this machine by that name.

        Returns how outputs go: direct or relay.
        """
        self._grants = self._backend.grants(loopback)
        return "direct" if self.grants else "relay"

    def previous(self, execution_id: str) -> bytes | None:
        """The receipt when this execution is complete already, None when it may run.

        A receipt without an index is of a run that was killed between the two. Another run could never write
        its own receipt over it (times differ), so the index is written from it and it is the answer.

        Raises OutputExists when the prefix is another execution's or holds what is none of ours, StorageFailed.
        """
        # The index first: a run that ends meanwhile writes it last.
        index = self._own(INDEX, execution_id)
        receipt = self._own(RECEIPT, execution_id)
        if receipt is None:
            if index is not None:
                raise StorageFailed(f"{self.locate(INDEX)} is there, its {RECEIPT} is gone", hint=self._move_it())
            return None
        if index is None:
            self._store({INDEX: self._index_of(receipt)})
        return receipt

    def receive(self, path: str, *, size_bytes: int, digest: str, mime: str) -> ObjectWriter:
        """Start writing the output `path`; `commit` the writer with this size and digest.

        Raises OutputInvalid (see `key`), StorageFailed, and OutputExists before a byte moves where that is sure.
        """
        where = key(self.prefix, path)
        found = self._backend.stat(where)
        if found and (found.size_bytes != size_bytes or found.digest not in (None, digest)):
            raise OutputExists(
                f"{self._backend.locate(where)} exists already with other content",
                hint="choose another --write-prefix: a run never overwrites",
            )
        return self._backend.create(where, mime=mime)

    def grant(self, path: str, *, size_bytes: int, digest: str, mime: str, former: Grant | None = None) -> Grant:
        """Permission to bring the output `path` to the store; `former` is one that ended before it was used up.

        Only where `grants`. `accept` or `abandon` it. Raises as `receive` does.
        """
        assert self._grants is not None  # noqa: S101  see above
        where = key(self.prefix, path)
        if former is not None:
            return self._grants.renew(where, former, size_bytes=size_bytes, digest=digest, mime=mime)
        return self._grants.upload(where, size_bytes=size_bytes, digest=digest, mime=mime)

    def accept(self, path: str, grant: Grant, *, size_bytes: int, digest: str, etags: Sequence[str] = ()) -> None:
        """Be sure that what was uploaded by `grant` is there, whole.

        Raises OutputExists, UploadFailed, StorageFailed.
        """
        assert self._grants is not None  # noqa: S101  there is a grant
        self._grants.accept(key(self.prefix, path), grant, size_bytes=size_bytes, digest=digest, etags=etags)

    def abandon(self, path: str, grant: Grant) -> None:
        """Forget an upload that will not be completed. Never raises."""
        assert self._grants is not None  # noqa: S101  there is a grant
        self._grants.abandon(key(self.prefix, path), grant)

    def holds(self, path: str, digest: str, size_bytes: int) -> bool:
        """Whether the output `path` is stored with these very bytes: read and hashed. Raises StorageFailed."""
        where = key(self.prefix, path)
        found = self._backend.stat(where)
        if found is None or found.size_bytes != size_bytes:
            return False
        with self._backend.open(where) as file:
            return f"sha256:{_sha256(file)}" == digest

    def finish(self, index: bytes, receipt: bytes) -> None:
        """Write receipt and index, once all outputs are stored. Raises OutputExists, StorageFailed."""
        self._store({RECEIPT: receipt, INDEX: index})

    def open(self, path: str) -> BinaryIO:
        """A stored output for reading. Raises StorageFailed when absent."""
        return self._backend.open(key(self.prefix, path))

    def locate(self, path: str = "") -> str:
        """Where a person finds the output `path`, or the whole prefix."""
        return self._backend.locate(f"{self.prefix}{path}"[1:])

    def _own(self, name: str, execution_id: str) -> bytes | None:
        """Index or receipt when it is there and this execution's."""
        data = self._backend.read(f"{self.prefix}{name}"[1:], limit_bytes=DOCUMENT_BYTES)
        if data is None:
            return None
        owner = _execution_id(data)
        if owner is None:
            raise OutputExists(f"{self.locate(name)} is not a document of an execution", hint=self._move_it())
        if owner != execution_id:
            raise OutputExists(
                f"{self.prefix} holds the outputs of execution {owner}",
                hint="choose another --write-prefix, best one with {execution_id}: a run never overwrites",
                details={"execution_id": owner},
            )
        return data

    def _index_of(self, receipt: bytes) -> bytes:
        """The index that belongs to a receipt, once each of its outputs was read and found true."""
        envelope = json.loads(receipt)
        try:
            for output in envelope["outputs"]:
                path = str(output["path"]).removeprefix(self.prefix)
                if not self.holds(path, output["digest"], output["size_bytes"]):
                    text = f"{self.locate(RECEIPT)} names {output['path']}, which is not there as it says"
                    raise OutputExists(text, hint=self._move_it())
            document = {name: envelope[name] for name in ("schema", "execution_id", "ref", "outputs")}
        except (KeyError, TypeError, OutputInvalid) as exc:
            raise OutputExists(f"{self.locate(RECEIPT)} is not a receipt", hint=self._move_it()) from exc
        return json.dumps(document, separators=(",", ":")).encode()

    def _store(self, documents: dict[str, bytes]) -> None:
        """Commit `documents` in their order. All are written before the first appears: most of what can fail,
        a full disk above all, then leaves none."""
        with ExitStack() as undo:
            writers = []
            for name, data in documents.items():
                writer = self._backend.create(f"{self.prefix}{name}"[1:], mime="application/json")
                undo.callback(writer.abort)
                writer.write(data)
                writers.append((writer, data))
            for writer, data in writers:
                writer.commit(size_bytes=len(data), digest=f"sha256:{hashlib.sha256(data).hexdigest()}")

    def _move_it(self) -> str:
        return f"move {self.locate()} away, or choose another --write-prefix"


def _execution_id(data: bytes) -> str | None:
    """Whom an index or a receipt is of; None when it is neither."""
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schema") != 1:
        return None
    owner = document.get("execution_id")
    return owner if isinstance(owner, str) else None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1024 * 1024):
        digest.update(piece)
    return digest.hexdigest()
