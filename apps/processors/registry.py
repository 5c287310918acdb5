"""The folder registry/: registry.yaml files ↔ ProcessorSpec. The only reader and writer of those files."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from apps.errors import ConfigurationError, InvalidReference, InvalidRegistry, RefNotFound
from apps.processors import marked_yaml, spec
from apps.processors.atomic import write_text
from apps.processors.reference import ImageReference, Platform, ProcessorRef
from apps.processors.spec import Build, OutputRule, ProcessorSpec, Runtime, Secrets

__all__ = ["Build", "OutputRule", "ProcessorSpec", "Runtime", "Secrets", "check", "load", "load_all", "pin", "pin_in"]

FILE_NAME: Final = "registry.yaml"
MAX_FILE_BYTES: Final = 1024 * 1024

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong in one file, and where."""

    file: str
    """Relative to the root folder."""
    line: int
    column: int
    path: str
    """Inside the document, as JSONPath (RFC 9535): `$.runtime.cpu`."""
    expected: str
    found: str

    @property
    def message(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class _Wrong(Exception):
    def __init__(self, *findings: Finding) -> None:
        super().__init__(len(findings))
        self.findings = findings


def load(root: Path, ref: ProcessorRef) -> ProcessorSpec:
    """The processor `ref` of the checkout at `root`.

    Raises RefNotFound when it has no registry.yaml, InvalidRegistry (details.findings) when that is wrong.
    """
    path = _file(root, ref)
    try:
        return _read(root, path, ref)
    except _Wrong as exc:
        raise _error(list(exc.findings)) from exc


def pin(root: Path, ref: ProcessorRef, platform: Platform, image: ImageReference) -> ImageReference | None:
    """Make `image` the pin of `platform`; returns the one that stood. Changes or adds one line, if any.

    The caller holds a lock: this reads, then replaces the file. Raises RefNotFound, InvalidRegistry (also when the
    file is written so that one line can't do it), ConfigurationError (it can't be written).
    """
    path = _file(root, ref)
    try:
        text = _text(root, path)
        before = _parse(root, path, ref, text)
        if before.pins[platform] != image:
            _replace(path, _repinned(root, before, text, platform, image))
        return before.pins[platform]
    except _Wrong as exc:
        raise _error(list(exc.findings)) from exc


def pin_in(text: str, platform: Platform) -> ImageReference | None:
    """The pin in the text of a registry.yaml of any age; None without one, and when it can't be read."""
    try:
        data: Any = marked_yaml.read(text).data
        return ImageReference.parse(data["image"]["platforms"][platform.architecture])
    except (marked_yaml.Unreadable, InvalidReference, LookupError, TypeError, AttributeError):
        return None


def _file(root: Path, ref: ProcessorRef) -> Path:
    path = root / "registry" / ref.namespace / ref.name / str(ref.version) / FILE_NAME
    try:
        path.lstat()
    except PermissionError:
        return path  # reading it tells
    except OSError as exc:
        raise RefNotFound(f"no processor {ref} in {root / 'registry'}", hint="list them: processorctl list") from exc
    return path


def load_all(root: Path) -> list[ProcessorSpec]:
    """Every processor, sorted by ref. Raises InvalidRegistry with the findings of all files."""
    found: list[ProcessorSpec] = []
    findings: list[Finding] = []
    for path in _files(root):
        try:
            _refuse_link(root, path)
            found.append(_read(root, path, _ref_of_folder(root, path)))
        except _Wrong as exc:
            findings += exc.findings
    if findings:
        raise _error(findings)
    return sorted(found, key=lambda each: each.ref)


def check(root: Path) -> int:
    """How many files were checked. Raises InvalidRegistry with every finding in details.findings."""
    return len(load_all(root))


def _error(findings: list[Finding]) -> InvalidRegistry:
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return InvalidRegistry(
        f"{findings[0]}{more}",
        hint="correct it, then: processorctl validate",
        details={"findings": [{**asdict(finding), "message": finding.message} for finding in findings]},
    )


# Which files there are


def _files(root: Path) -> Iterator[Path]:
    """Every registry.yaml below registry/, misplaced ones and links to folders elsewhere too."""
    registry = root / "registry"
    if not registry.is_dir():
        raise _error([_of_file(root, registry, "a folder", "nothing")])
    try:
        yield from _below(registry, registry.resolve(), depth=0)
    except OSError as exc:
        raise _error([_of_file(root, Path(exc.filename), "a readable folder", f"({exc.strerror})")]) from exc


def _below(folder: Path, registry: Path, *, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        path = folder / name
        if name == FILE_NAME or _leads_out(path, registry):
            yield path
        elif depth < 4 and path.is_dir():
            yield from _below(path, registry, depth=depth + 1)


def _leads_out(path: Path, registry: Path) -> bool:
    return path.is_symlink() and path.is_dir() and not Path(os.path.realpath(path)).is_relative_to(registry)


def _ref_of_folder(root: Path, path: Path) -> ProcessorRef:
    parts = path.parent.relative_to(root / "registry").parts
    text = f"{parts[0]}/{parts[1]}@{parts[2]}" if len(parts) == 3 else ""
    try:
        return ProcessorRef.parse(text)
    except InvalidReference:
        where = "registry/<namespace>/<name>/<version>/registry.yaml"
        raise _Wrong(_of_file(root, path, f"a file {where}", "another folder")) from None


# Reading one


def _read(root: Path, path: Path, ref: ProcessorRef) -> ProcessorSpec:
    """Raises _Wrong."""
    return _parse(root, path, ref, _text(root, path))


def _parse(root: Path, path: Path, ref: ProcessorRef, text: str) -> ProcessorSpec:
    try:
        document = marked_yaml.read(text)
    except marked_yaml.Unreadable as exc:
        raise _Wrong(_finding(root, path, exc.place, exc.path, exc.expected, exc.found)) from exc
    try:
        return spec.parse(document.data, file=path, ref=ref)
    except spec.InvalidSpec as exc:
        findings = [
            _finding(root, path, document.place(each.path, key=each.at_key), each.path, each.expected, each.found)
            for each in exc.problems
        ]
        raise _Wrong(*sorted(findings, key=lambda each: (each.line, each.column))) from exc


def _text(root: Path, path: Path) -> str:
    data = _bytes(root, path)
    if len(data) > MAX_FILE_BYTES:
        raise _Wrong(_of_file(root, path, f"at most {MAX_FILE_BYTES} bytes", "more"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8")
        place = (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise _Wrong(_finding(root, path, place, (), "UTF-8", f"the byte 0x{data[exc.start]:02x}")) from exc


def _bytes(root: Path, path: Path) -> bytes:
    """At most one byte more than allowed, of a regular file inside registry/."""
    try:
        _refuse_link(root, path)
        real = path.resolve(strict=True)
        # Without waiting: opening a FIFO would hang until somebody writes to it.
        with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise _Wrong(_of_file(root, path, "a regular file", "something else"))
            return file.read(MAX_FILE_BYTES + 1)
    except IsADirectoryError as exc:
        raise _Wrong(_of_file(root, path, "a regular file", "a folder")) from exc
    except (OSError, RuntimeError) as exc:  # RuntimeError: a loop of links, before Python 3.13
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise _Wrong(_of_file(root, path, "a readable file", f"({reason})")) from exc


# Writing one


def _repinned(root: Path, before: ProcessorSpec, text: str, platform: Platform, image: ImageReference) -> str:
    """The new text, which was read to be sure that only this pin is another. Raises _Wrong."""
    from apps.processors import registry_edit  # not for a run

    path = before.file
    try:
        after = registry_edit.with_pin(text, platform.architecture, str(image))
    except registry_edit.CannotEdit as exc:
        place = marked_yaml.read(text).place(exc.path, key=True)
        raise _Wrong(_finding(root, path, place, exc.path, exc.expected, exc.found)) from exc
    wanted = replace(before, pins={**before.pins, platform: image})
    try:
        found = _parse(root, path, before.ref, after)
    except _Wrong:
        found = None
    if found != wanted:
        steps = (*registry_edit.PLATFORMS, platform.architecture)
        place = marked_yaml.read(text).place(steps, key=True)
        raise _Wrong(_finding(root, path, place, steps, "a line of its own for the pin", "an anchor or another form"))
    return after


def _replace(path: Path, text: str) -> None:
    try:
        real = path.resolve(strict=True)  # a link stays one
        if not os.access(real, os.W_OK):  # what replaces a file would not ask
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        write_text(real, text, like=real.stat())
    except OSError as exc:
        raise ConfigurationError(f"{path} can't be written: {exc.strerror}", hint=f"ls -l {path.parent}") from exc


def _refuse_link(root: Path, path: Path) -> None:
    if not Path(os.path.realpath(path)).is_relative_to((root / "registry").resolve()):
        raise _Wrong(_of_file(root, path, "a file inside registry/", "a link that leads out of it"))


def _of_file(root: Path, path: Path, expected: str, found: str) -> Finding:
    return _finding(root, path, (1, 1), (), expected, found)


def _finding(
    root: Path, path: Path, place: marked_yaml.Place, steps: marked_yaml.Path, expected: str, found: str
) -> Finding:
    return Finding(str(path.relative_to(root)), *place, _json_path(steps), expected, found)


def _json_path(steps: marked_yaml.Path) -> str:
    return "$" + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if _PLAIN_KEY.fullmatch(step) else f"[{step!r}]"
        for step in steps
    )
