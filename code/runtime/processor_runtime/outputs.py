"""A handler's outputs in its worker: which paths the spec allows, and their bytes spooled to disk."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from processor_runtime.environment import OutputRule
from processor_runtime.handler import Content, OutputInvalid

MAX_KEY_BYTES: Final = 1024  # what object stores allow for prefix and path together
MAX_SEGMENT_BYTES: Final = 255  # what file systems allow for one name
PIECE_BYTES: Final = 1024 * 1024
RESERVED: Final = frozenset(("outputs.json", "receipt.json"))

# A table of our own: the host's /etc/mime.types and Python's table differ between machines and versions.
MEDIA_TYPES: Final[Mapping[str, str]] = {
    "bin": "application/octet-stream",
    "bmp": "image/bmp",
    "css": "text/css",
    "csv": "text/csv",
    "flac": "audio/flac",
    "gif": "image/gif",
    "glb": "model/gltf-binary",
    "gz": "application/gzip",
    "htm": "text/html",
    "html": "text/html",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "md": "text/markdown",
    "mov": "video/quicktime",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "ndjson": "application/x-ndjson",
    "ogg": "audio/ogg",
    "opus": "audio/opus",
    "parquet": "application/vnd.apache.parquet",
    "pdf": "application/pdf",
    "png": "image/png",
    "srt": "application/x-subrip",
    "svg": "image/svg+xml",
    "tar": "application/x-tar",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "tsv": "text/tab-separated-values",
    "txt": "text/plain",
    "vtt": "text/vtt",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
    "xml": "application/xml",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "zip": "application/zip",
    "zst": "application/zstd",
}


def check_path(path: str, *, prefix_bytes: int) -> None:
    """Raise OutputInvalid unless `path` may be the name of an output in every store."""
    if not isinstance(path, str) or not path:
        raise OutputInvalid(f"{path!r} is not an output path", hint="give a relative path, e.g. text/response.txt")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise OutputInvalid(f"output path {path!r} is not valid text") from None
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise OutputInvalid(f"output path {path!r} is not a plain relative path", hint="no leading /, no //, no ..")
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in path):
        raise OutputInvalid(f"output path {path!r} holds a control character")
    if size + prefix_bytes > MAX_KEY_BYTES or any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        raise OutputInvalid(f"output path {path[:60]!r}… is too long", details={"limit_bytes": MAX_KEY_BYTES})
    if path in RESERVED:
        raise OutputInvalid(f"output path {path!r} is kept for the run's own index and receipt")


def matches(pattern: str, path: str) -> bool:
    """Whether `path` is `pattern`, or fits it segment by segment: a `*` never crosses a slash."""
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(map(fnmatchcase, given, wanted))


def media_type(path: str) -> str:
    """By the name's last suffix."""
    return MEDIA_TYPES.get(path.rpartition(".")[2].lower(), "application/octet-stream")


class Spool:
    """The outputs of one execution: files in `folder`, made at the first write."""

    def __init__(self, folder: Path, rules: tuple[OutputRule, ...], *, prefix_bytes: int) -> None:
        self._folder, self._rules, self._prefix_bytes = folder, rules, prefix_bytes
        self._written: set[str] = set()
        self._folders: set[str] = set()
        self._count = 0

    def write(self, path: str, content: Content) -> dict[str, Any]:
        """Spool one output; returns what the supervisor needs to upload it. Raises OutputInvalid, OSError."""
        rule = self._claim(path)
        self._count += 1
        name = str(self._count)
        try:
            size_bytes, digest = self._fill(name, content)
        except BaseException:
            self._written.discard(path)
            raise
        mime = rule.mime or media_type(path)
        return {"path": path, "file": name, "size_bytes": size_bytes, "digest": f"sha256:{digest}", "mime": mime}

    def missing(self) -> list[str]:
        """Plain entries of the spec that were not written."""
        return [rule.path for rule in self._rules if not rule.is_glob and rule.path not in self._written]

    def _claim(self, path: str) -> OutputRule:
        check_path(path, prefix_bytes=self._prefix_bytes)
        # a plain entry is the better match: its mime is meant for this very file
        rules = sorted(self._rules, key=lambda rule: rule.is_glob)
        rule = next((rule for rule in rules if rule.path == path or (rule.is_glob and matches(rule.path, path))), None)
        if rule is None:
            raise OutputInvalid(
                f"no entry of outputs matches {path!r}",
                hint="add it to outputs in registry.yaml",
                details={"path": path, "outputs": [rule.path for rule in self._rules]},
            )
        parents = {path[:at] for at, character in enumerate(path) if character == "/"}
        if path in self._written:
            raise OutputInvalid(f"output {path!r} was written twice", details={"path": path})
        if path in self._folders or parents & self._written:
            raise OutputInvalid(f"output {path!r} would be a file and a folder at once", details={"path": path})
        self._written.add(path)
        self._folders |= parents
        return rule

    def _fill(self, name: str, content: Content) -> tuple[int, str]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file_path = self._folder / name
        size_bytes, digest = 0, hashlib.sha256()
        try:
            with file_path.open("xb", buffering=PIECE_BYTES) as file:
                for piece in _pieces(content):
                    file.write(piece)
                    digest.update(piece)
                    size_bytes += len(piece)
        except BaseException as exc:
            file_path.unlink(missing_ok=True)
            if isinstance(exc, OSError) and exc.filename is None:
                exc.filename = str(file_path)  # says which space is full
            raise
        return size_bytes, digest.hexdigest()


def _pieces(content: Any) -> Iterator[bytes | bytearray | memoryview]:
    if isinstance(content, str):
        yield content.encode()
    elif isinstance(content, bytes | bytearray):
        yield content
    elif isinstance(content, memoryview):
        yield content.cast("B")
    elif isinstance(content, os.PathLike):
        with open(content, "rb") as file:
            yield from iter(lambda: file.read(PIECE_BYTES), b"")
    elif hasattr(content, "read"):
        while piece := content.read(PIECE_BYTES):
            yield piece.encode() if isinstance(piece, str) else piece
    elif hasattr(content, "__iter__") and not isinstance(content, Mapping):
        for piece in content:
            yield piece.encode() if isinstance(piece, str) else bytes(piece)
    else:
        raise TypeError(f"write() takes bytes, str, a path, a file or an iterator, not {type(content).__name__}")
