"""What a key may be: the same rule for every store, so that a run works the same on each."""

import re
from typing import Final

from apps.errors import InvalidInputs

MAX_KEY_BYTES: Final = 1024  # what S3 takes
MAX_SEGMENT_BYTES: Final = 255  # what filesystems take
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


ATTACHED: Final = re.compile(r"artifacts/inputs/sha256/([0-9a-f]{64})/[^/]+")
"""Keys of files that were attached to runs: they hold the file's own digest."""


def attached(sha256: str, name: str) -> str:
    """The key of an attached file, of that hexadecimal digest. No execution wrote it."""
    return f"artifacts/inputs/sha256/{sha256}/{name}"


def split(key: str) -> list[str]:
    """The segments of `key`: at least one. Raises InvalidInputs naming what is wrong with it.

    A segment is valid text without control characters, neither `.` nor `..`, and 1 to 255 bytes of UTF-8. The
    first can't be `.tmp…`, where the filesystem backend keeps what is on its way in.
    """
    segments = key.split("/")
    wrong = next(filter(None, map(_wrong, segments)), None)
    if segments[0].casefold().startswith(".tmp"):
        wrong = "its first segment is reserved"
    elif wrong is None and len(key.encode()) > MAX_KEY_BYTES:
        wrong = f"it has more than {MAX_KEY_BYTES} bytes"
    if wrong:
        raise InvalidInputs(f"{key!r} can't be a key: {wrong}", details={"key": key})
    return segments


def _wrong(segment: str) -> str | None:
    if not segment:
        return "it has an empty segment"
    if segment in (".", ".."):
        return f"it has a segment {segment!r}"
    if _CONTROL.search(segment):
        return "it has a control character"
    try:
        size_bytes = len(segment.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return "it is no valid text"
    if size_bytes > MAX_SEGMENT_BYTES:
        return f"it has a segment of more than {MAX_SEGMENT_BYTES} bytes"
    return None
