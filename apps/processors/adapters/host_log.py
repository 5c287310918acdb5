"""Reads what the shim of a host process wrote: log.jsonl.1, then log.jsonl, over rotations, to the process's end."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from apps.processors.adapters.base import LogLine
from apps.processors.adapters.host_shim import LOG, OLD_LOG

POLL_S: Final = 0.1


def read(folder: Path, *, ended: Callable[[], bool], tail: int | None, since: str | None) -> Iterator[LogLine]:
    """Lines in the order written, the last `tail` ones, from `since` on; then new ones until `ended()`.

    Nothing for a folder that is gone. Raises ValueError for a `since` that is no time.
    """
    begin = _stamp(since) if since else ""
    backlog: deque[LogLine] | None = None if tail is None else deque(maxlen=tail)
    for text in _lines(folder, ended):
        if text is None:  # all that there is by now
            yield from backlog or ()
            backlog = None
            continue
        line = _parse(text)
        if line is None or line.ts < begin:
            continue
        if backlog is None:
            yield line
        else:
            backlog.append(line)


def _lines(folder: Path, ended: Callable[[], bool]) -> Iterator[bytes | None]:
    """Whole lines; None each time that there are no more for now, the last time included."""
    files = _open(folder)
    try:
        while files:
            last = ended()  # asked before the read: what was written until then is read
            for file in files:
                yield from _rest(file)
            for file in files[:-1]:
                file.close()
            successor = _successor(folder / LOG, files[-1])
            files = [files[-1], *([successor] if successor else [])]  # more may have come before the rotation
            if successor is None:
                yield None
                if last:
                    return
                time.sleep(POLL_S)
    finally:
        for file in files:
            file.close()


def _open(folder: Path) -> list[BinaryIO]:
    """log.jsonl.1 and log.jsonl, oldest first. The newer is opened first: a rotation in between loses nothing."""
    opened: list[BinaryIO] = []
    for name in (LOG, OLD_LOG):
        try:
            opened.insert(0, (folder / name).open("rb"))
        except FileNotFoundError:
            continue
    if len(opened) == 2 and _same(opened[0], opened[1]):
        opened.pop(0).close()
    return opened


def _same(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _successor(path: Path, current: BinaryIO) -> BinaryIO | None:
    """The file that took the place of `current` when that was rotated."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if not _same(file, current):
        return file
    file.close()
    return None


def _rest(file: BinaryIO) -> Iterator[bytes]:
    while (line := file.readline()).endswith(b"\n"):
        yield line
    file.seek(-len(line), 1)  # a line still being written


def _parse(text: bytes) -> LogLine | None:
    try:
        document = json.loads(text)
        return LogLine(document["ts"], document["stream"], document["line"])
    except (ValueError, KeyError, TypeError):  # a full disk can tear a line
        return None


def _stamp(text: str) -> str:
    """A time as the log's lines have it, so that the two compare as text."""
    moment = datetime.fromisoformat(text)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
