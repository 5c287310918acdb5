"""One process of the process engine: what its folder says of it, whether it lives, signals that hit no other."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from apps.errors import EngineFailed
from apps.processors.adapters import host_shim
from apps.processors.adapters.base import Container

IMAGE: Final = "image.json"
"""In a snapshot, there once it is complete: what it was made from, and which virtual environment it needs."""
SETTLE_S: Final = 10.0
"""From the process's end to the shim's: it sweeps what is left, reads the pipes, writes exit.json."""
POLL_S: Final = 0.02
SWEEPS: Final = 50


@dataclass(frozen=True, slots=True)
class Record:
    """process.json."""

    name: str
    pid: int
    start: str
    shim_pid: int
    shim_start: str
    space: str
    labels: Mapping[str, str]
    port: int
    scratch: str
    started_at: str
    image: str = ""
    """The snapshot that it runs, below code/.theory/."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None where no launch was completed."""
        try:
            document = json.loads((folder / host_shim.RECORD).read_text("utf-8"))
            return cls(**{name: document[name] for name in cls.__slots__})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def id(self) -> str:
        return f"{self.pid}-{self.start}"

    def runs(self) -> bool:
        return self._alive(self.pid, self.start)

    def attended(self) -> bool:
        """Whether its shim is there: exit.json is still to come."""
        return self._alive(self.shim_pid, self.shim_start)

    def _alive(self, pid: int, start: str) -> bool:
        return self.space == host_shim.pid_space() and host_shim.start_time(pid) == start

    def signal(self, signum: signal.Signals, *, shim: bool = False) -> None:
        """Signal the process (or its shim), never another one that has its pid by now. Gone is no error."""
        pid, start = (self.shim_pid, self.shim_start) if shim else (self.pid, self.start)
        try:
            if self.space == host_shim.pid_space():
                _signal(pid, start, signum)
        except ProcessLookupError:
            return
        except PermissionError as exc:
            raise EngineFailed(f"{self.name} (pid {pid}) is another user's", hint="stop it as that user") from exc


def container_of(folder: Path, record: Record) -> Container:
    """The process as it is now."""
    ended = _exit(folder)
    running = ended is None and record.runs()
    if ended is None and not running:
        # Between the process's end and its record: the shim is about to write it.
        until(lambda: not record.attended() or _exit(folder) is not None, timeout_s=SETTLE_S)
        ended = _exit(folder)
    return Container(
        id=record.id,
        name=record.name,
        state="running" if running else "dead" if ended is None else "exited",
        labels=record.labels,
        host_port=record.port,
        started_at=record.started_at,
        exit_status=ended["exit_status"] if ended else None,
        image=_source_digest(folder.parent.parent / record.image),
    )


def _source_digest(snapshot: Path) -> str | None:
    try:
        return str(json.loads((snapshot / IMAGE).read_text("utf-8"))["source_digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _exit(folder: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads((folder / host_shim.EXIT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return document


def _signal(pid: int, start: str, signum: signal.Signals) -> None:
    handle = _handle(pid)  # from here on the pid can't become another process's unseen
    try:
        if host_shim.start_time(pid) != start:
            return
        if handle is None:
            os.kill(pid, signum)
        else:
            signal.pidfd_send_signal(handle, signum)
    finally:
        if handle is not None:
            os.close(handle)


def _handle(pid: int) -> int | None:
    """A pidfd; None on a system, kernel or sandbox without them. Raises ProcessLookupError."""
    try:
        return os.pidfd_open(pid) if host_shim.LINUX else None
    except ProcessLookupError:
        raise
    except OSError:
        return None


def sweep(scratch: str) -> None:
    """End whatever still has this process's environment: what it started, when its shim was killed with it."""
    mark = f"THEORY_SCRATCH={scratch}".encode()
    for _ in range(SWEEPS):
        found = [pid for pid in host_shim.parents() if mark in _environ(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if (start := host_shim.start_time(pid)) and mark in _environ(pid):
                    _signal(pid, start, signal.SIGKILL)
        time.sleep(POLL_S)


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Wait for `condition`; False when it did not come true within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
