"""What two archives of an image differ in: its configuration, its layers, and the files of these."""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from apps.errors import EngineFailed

FILES: Final = 100
"""Differing files of one layer that are told; of the others only how many."""

_DOCUMENT_BYTES: Final = 8 * 1024**2
# What tar itself makes of a header; the rest (extended attributes) is the file's own.
_TARS_OWN: Final = frozenset({"path", "linkpath", "size", "uid", "gid", "uname", "gname", "mtime"})


@dataclass(frozen=True, slots=True)
class FileDifference:
    """One path that is not the same in both layers."""

    path: str
    differs: tuple[str, ...]
    """Of type, bytes, mode, mtime, owner, link and attributes (extended ones); or only_first, only_second alone."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One layer that is not the same in both images."""

    index: int
    """0 is the lowest layer, of the base image."""
    created_by: str | None
    """The step of the Dockerfile, as the image's history has it."""
    differs: str
    """files; order (of the same files); compression (of the same layer); or presence: one image has it alone."""
    files: tuple[FileDifference, ...] = ()
    more: int = 0
    """Files beyond these."""


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """Empty for images whose configuration and layers are equal, byte for byte."""

    config: tuple[str, ...]
    """Keys of the configuration that differ, dotted: config.Env. No values: they may be secrets."""
    layers: tuple[LayerDifference, ...]


def compare(first: Path, second: Path) -> ImageDifference:
    """What differs between two images, each an archive as BuildKit (type=oci) or `docker save` writes it.

    Layers are read side by side as streams; held in memory is what differs, or comes in another order. Raises
    EngineFailed: one of them is no whole image.

    Source: https://github.com/opencontainers/image-spec/blob/main/layer.md
    """
    try:
        with tarfile.open(first) as one, tarfile.open(second) as two:
            return _compare(_Image.of(one), _Image.of(two))
    except (tarfile.TarError, zlib.error, EOFError, OSError, KeyError, IndexError, TypeError, ValueError) as exc:
        raise EngineFailed(f"what the engine wrote is no whole image: {exc}", hint="try again") from exc


def digest(archive: Path) -> str:
    """The digest of the image's manifest in an OCI archive of one image. Raises EngineFailed."""
    try:
        with tarfile.open(archive) as tar:
            return str(_document(tar, "index.json")["manifests"][0]["digest"])
    except (tarfile.TarError, OSError, KeyError, IndexError, TypeError, ValueError) as exc:
        raise EngineFailed(f"what the engine wrote is no whole image: {exc}", hint="try again") from exc


@dataclass(frozen=True, slots=True)
class _Image:
    tar: tarfile.TarFile
    config: Mapping[str, Any]
    layers: tuple[str, ...]
    """Members of the archive, the lowest first."""

    @classmethod
    def of(cls, tar: tarfile.TarFile) -> "_Image":
        if "manifest.json" in tar.getnames():  # docker save
            [image] = _document(tar, "manifest.json")
            return cls(tar, _document(tar, image["Config"]), tuple(image["Layers"]))
        manifest = _document(tar, _blob(_document(tar, "index.json")["manifests"][0]))
        return cls(tar, _document(tar, _blob(manifest["config"])), tuple(map(_blob, manifest["layers"])))

    @property
    def contents(self) -> list[str]:
        """Digests of the layers without their compression."""
        return list(self.config["rootfs"]["diff_ids"])

    def created_by(self, index: int) -> str | None:
        steps = [step.get("created_by") for step in self.config.get("history", ()) if not step.get("empty_layer")]
        return steps[index] if index < len(steps) else None

    def entries(self, index: int) -> Iterator[tuple[str, dict[str, object]]]:
        """Path and facts of each file of a layer, in the layer's order."""
        file = self.tar.extractfile(self.layers[index])
        with closing(file or _none(self.layers[index])), tarfile.open(fileobj=file, mode="r|*") as inner:
            for entry in inner:
                yield entry.name.rstrip("/"), _facts(inner, entry)
                inner.members = []  # type: ignore[attr-defined]  # else it remembers every file of the layer


def _compare(first: _Image, second: _Image) -> ImageDifference:
    one, two = _flat(first.config), _flat(second.config)
    return ImageDifference(
        config=tuple(sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))),
        layers=tuple(_layers(first, second)),
    )


def _layers(first: _Image, second: _Image) -> Iterator[LayerDifference]:
    contents = zip_longest(first.contents, second.contents)
    names = zip_longest(first.layers, second.layers)
    for index, (content, name) in enumerate(zip(contents, names, strict=True)):
        created_by = first.created_by(index) or second.created_by(index)
        if None in content:
            yield LayerDifference(index, created_by, "presence")
        elif content[0] != content[1]:
            files, more = _capped(_files(first.entries(index), second.entries(index)))
            yield LayerDifference(index, created_by, "files" if files else "order", files, more)
        elif name[0] != name[1]:
            yield LayerDifference(index, created_by, "compression")


def _capped(found: Iterator[FileDifference]) -> tuple[tuple[FileDifference, ...], int]:
    files: list[FileDifference] = []
    more = 0
    for each in found:
        if len(files) < FILES:
            files.append(each)
        else:
            more += 1
    return tuple(files), more


def _files(
    first: Iterator[tuple[str, dict[str, object]]], second: Iterator[tuple[str, dict[str, object]]]
) -> Iterator[FileDifference]:
    """Both layers side by side. They nearly always have one order, so nearly nothing waits for its counterpart."""
    waiting: tuple[dict[str, dict[str, object]], dict[str, dict[str, object]]] = ({}, {})
    for pair in zip_longest(first, second):
        for side, entry in enumerate(pair):
            if entry is None:
                continue
            path, facts = entry
            other = waiting[1 - side].pop(path, None)
            if other is None:
                waiting[side][path] = facts
            elif differs := tuple(name for name in facts if facts[name] != other[name]):
                yield FileDifference(path, differs)
    for side, word in enumerate(("only_first", "only_second")):
        yield from (FileDifference(path, (word,)) for path in waiting[side])


def _facts(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> dict[str, object]:
    """All that a layer says of a file; names are those of FileDifference.differs."""
    content = b""
    if file := tar.extractfile(entry) if entry.isreg() else None:
        with file:
            content = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]  # it only reads
    return {
        "type": entry.type,
        "bytes": content,
        "mode": entry.mode,
        "mtime": entry.pax_headers.get("mtime", entry.mtime),
        "owner": (entry.uid, entry.gid, entry.uname, entry.gname),
        "link": (entry.linkname, entry.devmajor, entry.devminor),
        "attributes": {key: value for key, value in entry.pax_headers.items() if key not in _TARS_OWN},
    }


def _flat(document: Mapping[str, Any], above: str = "") -> dict[str, object]:
    """Dotted key → value, without the layers' digests: what differs there is told by layers."""
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return {key: value for key, value in flat.items() if key != "rootfs.diff_ids"}


def _blob(descriptor: Mapping[str, Any]) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def _document(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name) or _none(name)
    with closing(file):
        return json.loads(file.read(_DOCUMENT_BYTES))


def _none(name: str) -> Any:
    raise KeyError(f"{name} is no file")
