"""The engine's log stream → lines. Pure parsing: bytes in, values out."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from apps.processors.adapters.base import LogLine

_HEADER_BYTES: Final = 8
_STREAMS: Final = {0: "stdout", 1: "stdout", 2: "stderr"}
_FRACTION: Final = re.compile(r"\.([0-9]+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line, with the engine's own time of its last part."""

    line: LogLine
    time: str
    """RFC 3339 with nanoseconds."""


def entries(chunks: Iterable[bytes]) -> Iterator[Entry]:
    """The lines in a log stream with timestamps, however it was cut.

    A frame is one message of the container: a time, a space, and up to 16 KiB of a line; the engine cuts
    longer ones, and only the last part ends with a line feed.
    Source: Docker Engine API, ContainerAttach, "Stream format".
    """
    unfinished: dict[str, bytes] = {}
    last: dict[str, str] = {}
    for stream, message in _frames(chunks):
        time, _, text = message.partition(b" ")
        last[stream] = time.decode("ascii")
        text = unfinished.pop(stream, b"") + text
        if text.endswith(b"\n"):
            yield _entry(stream, text, last[stream])
        else:
            unfinished[stream] = text
    for stream, rest in unfinished.items():  # the container ended in the middle of a line
        yield _entry(stream, rest, last[stream])


def milliseconds(time: str) -> str:
    """RFC 3339 of any offset and precision → UTC, milliseconds, Z."""
    moment = datetime.fromisoformat(time).astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def nanoseconds(time: str) -> int:
    """RFC 3339 → nanoseconds since 1970; `datetime` alone knows microseconds. Raises ValueError."""
    fraction = _FRACTION.search(time)
    digits = fraction[1] if fraction else ""
    whole = datetime.fromisoformat(_FRACTION.sub("", time))
    return int(whole.timestamp()) * 10**9 + int(digits[:9].ljust(9, "0"))


def since(moment_ns: int) -> str:
    """Nanoseconds since 1970 → what the engine's API takes as a time."""
    return f"{moment_ns // 10**9}.{moment_ns % 10**9:09d}"


def _entry(stream: str, text: bytes, time: str) -> Entry:
    line = text.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    return Entry(LogLine(ts=milliseconds(time), stream=stream, line=line), time)


def _frames(chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start >= _HEADER_BYTES:
            end = start + _HEADER_BYTES + int.from_bytes(buffer[start + 4 : start + 8], "big")
            if len(buffer) < end:
                break
            yield _STREAMS.get(buffer[start], "stdout"), bytes(buffer[start + _HEADER_BYTES : end])
            start = end
        del buffer[:start]
