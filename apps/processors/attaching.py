"""`run --attach NAME=PATH`: files of the caller's that inputs shall name, and their way into the artifact store."""

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from processor_runtime.artifacts import MAX_ARTIFACTS
from processor_runtime.protocol import ARTIFACT

from apps.errors import InvalidInputs, StorageFailed, UploadFailed, UsageError
from apps.storage import keys
from apps.storage.base import StorageBackend

PIECE_BYTES: Final = 1024 * 1024
MAX_NAME_CHARACTERS: Final = 100
MAX_TOKENS: Final = 32
HINT: Final = "NAME is a key of params, or a dotted path or JSON pointer to a deeper place"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


class Attachment(NamedTuple):
    """One file, and the place in the inputs that shall name it."""

    place: tuple[str, ...]
    """Keys and indices from the top of the document."""
    file: str
    """As it was typed."""

    @property
    def pointer(self) -> str:
        """RFC 6901."""
        return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in self.place)


class Attached(NamedTuple):
    """A file that was read once; its bytes are still to be stored."""

    file: Path
    key: str
    """Holds the digest and the file's name: the same file is the same key."""
    size_bytes: int
    digest: str
    pointer: str


def parse(words: Sequence[str]) -> list[Attachment]:
    """What was typed after each --attach. Raises UsageError."""
    found: dict[tuple[str, ...], Attachment] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--attach takes NAME=PATH, not {word[:80]!r}", hint=HINT)
        attachment = Attachment(_place(name), file)
        if attachment.place in found:
            raise UsageError(f"--attach names {name!r} twice", hint="each place takes one file")
        found[attachment.place] = attachment
    if len(found) > MAX_ARTIFACTS:
        raise UsageError(f"--attach more than {MAX_ARTIFACTS} times")
    return list(found.values())


def _place(name: str) -> tuple[str, ...]:
    if name.startswith("/"):
        tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in name[1:].split("/"))
        if tokens[0] != "params" or len(tokens) < 2:
            raise UsageError(f"--attach can't write {name!r}: a pointer starts with /params/", hint=HINT)
    else:
        tokens = ("params", *name.split("."))
    if "" in tokens or len(tokens) > MAX_TOKENS:
        raise UsageError(f"--attach can't write {name!r}: no place in the inputs has that name", hint=HINT)
    return tokens


def attach(document: dict[str, Any], attachments: Sequence[Attachment], caller: Path) -> list[Attached]:
    """Read each file and name it in `document`, which is changed. Paths are relative to the folder `caller`.

    Raises InvalidInputs for a file that can't be read, and for a place that is taken.
    """
    attached = []
    for attachment in attachments:
        found = _read(attachment, caller)
        _put(document, attachment, {ARTIFACT: f"/{found.key}"})
        attached.append(found)
    return attached


def store(attached: Sequence[Attached], backend: StorageBackend) -> None:
    """Upload what is not there yet. Raises InvalidInputs for a file that has changed meanwhile, StorageFailed."""
    for each in attached:
        found = backend.stat(each.key)
        if found is None:
            _upload(each, backend)
        elif found.size_bytes != each.size_bytes:
            where, sizes = backend.locate(each.key), f"{found.size_bytes} bytes, not {each.size_bytes}"
            raise StorageFailed(f"{where} is not what its name says: {sizes}", hint="remove it, then run again")


# Files


def _read(attachment: Attachment, caller: Path) -> Attached:
    path = caller / attachment.file
    digest, size_bytes = hashlib.sha256(), 0
    with _opened(path, attachment) as file:
        try:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                size_bytes += len(piece)
        except OSError as exc:
            raise _unreadable(attachment, exc.strerror or str(exc)) from exc
    key = keys.attached(digest.hexdigest(), _safe(path.name))
    return Attached(path, key, size_bytes, f"sha256:{digest.hexdigest()}", attachment.pointer)


def _opened(path: Path, attachment: Attachment) -> BinaryIO:
    try:
        # O_NONBLOCK: to open a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise _unreadable(attachment, reason) from exc
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "it is a folder" if stat.S_ISDIR(mode) else "it is no plain file, and has to be read twice"
        raise _unreadable(attachment, what)
    return os.fdopen(descriptor, "rb", buffering=0)


def _unreadable(attachment: Attachment, reason: str) -> InvalidInputs:
    return InvalidInputs(
        f"{attachment.file!r}, for inputs at {attachment.pointer}, can't be read: {reason}",
        hint="a path is relative to the current folder",
        details={"file": attachment.file, "pointer": attachment.pointer},
    )


def _safe(name: str) -> str:
    """A name that every store and file system takes, with its suffix kept."""
    stem, dot, suffix = _UNSAFE.sub("_", name).strip(".").rpartition(".")
    suffix = f"{dot}{suffix}"[:20] if dot else ""
    stem = stem if dot else _UNSAFE.sub("_", name).strip(".")
    return f"{stem[: MAX_NAME_CHARACTERS - len(suffix)]}{suffix}" or "file"


def _upload(each: Attached, backend: StorageBackend) -> None:
    writer = backend.create(each.key, mime="application/octet-stream")
    try:
        with each.file.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                writer.write(piece)
        writer.commit(size_bytes=each.size_bytes, digest=each.digest)
    except (OSError, UploadFailed) as exc:
        raise InvalidInputs(
            f"{str(each.file)!r} was changed while it was read",
            hint="run again once nobody writes it",
            details={"file": str(each.file), "pointer": each.pointer},
        ) from exc
    finally:
        writer.abort()


# The document


def _put(document: Any, attachment: Attachment, value: dict[str, str]) -> None:
    """Write `value` at its place; what is missing on the way is made, an array where `0` or `-` comes next."""
    parent = document
    for token, following in zip(attachment.place, attachment.place[1:], strict=False):
        empty: Any = [] if following in ("0", "-") else {}
        parent = _child(parent, token, attachment, empty)
    _set(parent, attachment.place[-1], attachment, value)


def _child(parent: Any, token: str, attachment: Attachment, empty: Any) -> Any:
    if isinstance(parent, dict):
        return parent.setdefault(token, empty)
    index = _index(parent, token, attachment)
    if index == len(parent):
        parent.append(empty)
    return parent[index]


def _set(parent: Any, token: str, attachment: Attachment, value: dict[str, str]) -> None:
    if isinstance(parent, dict):
        if token in parent:
            raise _taken(attachment)
        parent[token] = value
    elif _index(parent, token, attachment) == len(parent):
        parent.append(value)
    else:
        raise _taken(attachment)


def _index(parent: Any, token: str, attachment: Attachment) -> int:
    """Of an array: one of its elements, or the next one, which `-` names too."""
    if not isinstance(parent, list):
        raise _wrong(attachment, "what is there has no inside")
    if token == "-":
        return len(parent)
    if not (token.isascii() and token.isdecimal() and len(token) < 10 and int(token) <= len(parent)):
        raise _wrong(attachment, f"there is an array, with {len(parent)} elements")
    return int(token)


def _taken(attachment: Attachment) -> InvalidInputs:
    return _wrong(attachment, "it is given in the inputs already")


def _wrong(attachment: Attachment, reason: str) -> InvalidInputs:
    return InvalidInputs(
        f"--attach can't write inputs at {attachment.pointer}: {reason}",
        hint=HINT,
        details={"pointer": attachment.pointer},
    )
