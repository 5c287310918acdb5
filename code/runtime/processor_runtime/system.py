"""What the kernel does for us: parent-death signals, orphans, limits, pidfds. Absent parts (macOS) do nothing."""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None)
_libc.getenv.restype = ctypes.c_void_p


def _prctl(option: int, argument: int) -> None:
    with contextlib.suppress(AttributeError):  # no prctl on this system
        _libc.prctl(option, argument, 0, 0, 0)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Get `signal_number` when process `parent`, our parent, ends; exit at once if it did already."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be found and ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Keep other processes of this user from reading our memory and environment.

    After forking: a child inherits it, and could then not write its own oom_score_adj.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def wipe_variable(name: str, value: str) -> None:
    """Remove a variable from os.environ and from the memory that /proc/<pid>/environ shows."""
    address = _libc.getenv(os.fsencode(name))
    if address:
        ctypes.memset(address, 0, len(os.fsencode(value)))
    os.environ.pop(name, None)


def offer_to_oom_killer(score: int) -> None:
    """Ask the kernel to end this process before others when memory ends (0 to 1000)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def limit(kind: int, amount: int) -> None:
    """Lower a resource limit of this process, soft and hard, never raising it."""
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or amount < hard:
        # macOS refuses some limits that Linux takes
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (amount, amount))


def raise_open_files() -> None:
    """Take all the file descriptors that we may have: each waiting client holds one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def children(pid: int) -> list[int]:
    """Children of the single-threaded process `pid`; [] where the kernel does not tell."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


class ProcessHandle:
    """A process to signal, which a reused pid can't be mistaken for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor: int | None = None
        self._gone = False
        if hasattr(os, "pidfd_open"):
            try:
                self._descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self._gone = True
            except OSError:  # a kernel or sandbox without pidfds
                self._descriptor = None

    def signal(self, number: int) -> None:
        """Send a signal; a process that is gone is no error."""
        if self._gone:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        """Call when the process is known to have ended."""
        self._gone = True
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_OOM_COUNTERS: Final = (
    "/sys/fs/cgroup/memory.events",  # cgroup v2
    "/sys/fs/cgroup/memory/memory.oom_control",  # cgroup v1
    "/proc/vmstat",  # the whole machine, without a container
)


def oom_kills() -> dict[str, int]:
    """How often the kernel ended a process of ours for want of memory, by where it counts that."""
    found = {}
    for path in _OOM_COUNTERS:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    found[path] = int(count)
    return found
