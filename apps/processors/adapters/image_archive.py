"""Reads chosen files of an image out of the stream that `docker save` gives: one pass, nothing unpacked to disk."""

import json
import posixpath
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

from apps.errors import EngineFailed

Wanted = Callable[[str], int]
"""Path inside the image, without a leading / → bytes of that file to keep, from its beginning; 0: none."""

_DOCUMENT_BYTES: Final = 8 * 1024**2
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_ZSTANDARD: Final = b"\x28\xb5\x2f\xfd"


class Unreadable(Exception):
    """A layer that can't be read here; the message says why, in a clause."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was read of an image."""

    config: Mapping[str, Any]
    """Its OCI image config."""
    files: Mapping[str, bytes]
    """Path → content, as far as it was wanted."""


@dataclass(slots=True)
class _Layer:
    files: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """What this layer hides of those below: a path with all that is in it."""
    emptied: set[str] = field(default_factory=set)
    """Folders of which nothing below is left."""


def read(stream: IO[bytes], wanted: Wanted) -> Contents:
    """The files of an image as a container of it sees them: later layers go over earlier ones.

    Args:
        stream: a tar as `docker save` writes it, layers in any order, of any engine's version.
        wanted: which files, and how much of each.

    Raises:
        Unreadable: a layer is compressed in a way that Python can't undo.
        EngineFailed: the stream ended early, or is no image.

    Source: https://github.com/opencontainers/image-spec/blob/main/layer.md
    """
    documents: dict[str, Any] = {}
    layers: dict[str, _Layer] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as outer:
            for member in outer:
                name = _clean(member.name)
                if member.issym():  # engines before 25 store a layer of two images once
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif file := outer.extractfile(member) if member.isfile() else None:
                    _sort(name, file, documents, layers, wanted)
        image = documents["manifest.json"][0]
        config = documents[_clean(image["Config"])]
        ordered = [layers[links.get(name, name)] for name in map(_clean, image["Layers"])]
    except (tarfile.TarError, EOFError, OSError, KeyError, IndexError, TypeError, ValueError) as exc:
        raise EngineFailed(f"what the engine sent is no whole image: {exc}", hint="try again") from exc
    return Contents(config, _merged(ordered))


def _sort(name: str, file: IO[bytes], documents: dict[str, Any], layers: dict[str, _Layer], wanted: Wanted) -> None:
    """Read one file of the archive. What it is, its first bytes tell: names differ between engines."""
    start = file.read(4)
    if start[:1] in (b"{", b"["):
        text = start + file.read(_DOCUMENT_BYTES)
        documents[name] = json.loads(text)
    elif start == _ZSTANDARD:
        raise Unreadable("a layer is compressed with zstd, which is not read here")
    elif len(start) == 4:
        layers[name] = _layer(_Rejoined(start, file), wanted)


class _Rejoined:
    """A file whose first bytes were read already."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = start, rest

    def read(self, size: int) -> bytes:
        if not self._start:
            return self._rest.read(size)
        found, self._start = self._start[:size], self._start[size:]
        return found


def _layer(file: "_Rejoined", wanted: Wanted) -> _Layer:
    found = _Layer()
    with tarfile.open(fileobj=file, mode="r|*") as inner:  # type: ignore[call-overload]  # it only reads
        for member in inner:
            _add(found, inner, member, wanted)
            inner.members = []  # else it remembers every file of the layer
    return found


def _add(found: _Layer, inner: tarfile.TarFile, member: tarfile.TarInfo, wanted: Wanted) -> None:
    path = _clean(member.name)
    folder, name = posixpath.split(path)
    if name == _OPAQUE:
        found.emptied.add(folder)
    elif name.startswith(_WHITEOUT):
        found.gone.add(posixpath.join(folder, name.removeprefix(_WHITEOUT)))
    elif member.islnk():
        if data := found.files.get(_clean(member.linkname)):
            found.files[path] = data
    elif not member.isfile() and not member.isdir():
        found.gone.add(path)  # a link, where there was a folder or a file
        found.files.pop(path, None)
    elif member.isfile() and (size := wanted(path)):
        file = inner.extractfile(member)
        found.files[path] = file.read(size) if file else b""


def _merged(layers: list[_Layer]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for layer in layers:
        files = {path: data for path, data in files.items() if not _hidden(path, layer)} | layer.files
    return dict(sorted(files.items()))


def _hidden(path: str, layer: _Layer) -> bool:
    above = path
    while above:
        if above in layer.gone:
            return True
        above = posixpath.dirname(above)
        if above in layer.emptied:
            return True
    return False


def _clean(name: str) -> str:
    return posixpath.normpath(name).lstrip("/") if name.strip("./") else ""
