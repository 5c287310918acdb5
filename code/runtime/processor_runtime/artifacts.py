"""Values `{"$artifact": "/artifacts/…"}` in inputs: what they name, and their replacement by files. No I/O.

Both ends import this module; it needs the standard library alone.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from processor_runtime.protocol import ARTIFACT

FOLDER: Final = "inputs"  # of the files, in the spool folder first, then in the handler's working folder
MAX_ARTIFACTS: Final = 1024  # of one execution
MAX_PATH_BYTES: Final = 1024  # as a key: without its first slash
MAX_SEGMENT_BYTES: Final = 255
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


class Malformed(ValueError):
    """A value that looks like an artifact and is none; `pointer` (RFC 6901) says where."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(message)
        self.pointer, self.message = pointer, message


class Named(NamedTuple):
    """One value, and what it names."""

    pointer: str
    path: str


def named(inputs: Mapping[str, Any]) -> list[Named]:
    """Every artifact that `inputs` name, in their order. Raises Malformed."""
    found = []
    for pointer, value in _values(inputs, ""):
        found.append(Named(pointer, _path(pointer, value)))
        if len(found) > MAX_ARTIFACTS:
            raise Malformed(pointer, f"more than {MAX_ARTIFACTS} artifacts")
    return found


def replaced(value: Any, files: Mapping[str, str]) -> Any:
    """`value` with every artifact in it replaced by what `files` has for its path."""
    if isinstance(value, dict):
        if ARTIFACT in value:
            return files[value[ARTIFACT]]
        return {key: replaced(each, files) for key, each in value.items()}
    return [replaced(each, files) for each in value] if isinstance(value, list) else value


def _values(value: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if ARTIFACT in value:
            yield pointer, value
            return
        for key, each in value.items():
            yield from _values(each, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _values(each, f"{pointer}/{number}")


def _path(pointer: str, value: dict[str, Any]) -> str:
    path = value[ARTIFACT]
    if not pointer:
        raise Malformed(pointer, "the inputs as a whole can't be an artifact")
    if len(value) > 1 or not isinstance(path, str):
        raise Malformed(pointer, f'an artifact is {{"{ARTIFACT}": "/artifacts/…"}}, and nothing beside it')
    if fault := _fault(path):
        raise Malformed(pointer, f"{path[:100]!r} can't be the path of an artifact: {fault}")
    return path


def _fault(path: str) -> str:
    if not path.startswith("/artifacts/"):
        return "it starts with /artifacts/"
    if _CONTROL.search(path):
        return "it has a control character"
    try:
        sizes = [len(segment.encode()) for segment in path[1:].split("/")]
    except UnicodeEncodeError:
        return "it is no valid text"
    if any(segment in ("", ".", "..") for segment in path[1:].split("/")):
        return "it has an empty segment, or one that is . or .."
    if max(sizes) > MAX_SEGMENT_BYTES or len(path.encode()) - 1 > MAX_PATH_BYTES:
        return f"it is too long ({MAX_PATH_BYTES} bytes, {MAX_SEGMENT_BYTES} a segment)"
    return ""
