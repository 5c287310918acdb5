"""Stands between `localctl start`, which ends, and a processor's process, which stays: its logs, its exit status.

A script of its own, `python -I -S host_shim.py`, with the standard library alone: an engine's shim must start in
milliseconds and outlive any change to the checkout. It reads one JSON document from stdin (so that no secret is
in argv or in a file), starts the process, writes process.json, answers on stdout, and goes to the background
until the process ends. Whichever of the two dies first takes the other one along.
"""

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

RECORD: Final = "process.json"
EXIT: Final = "exit.json"
LOG: Final = "log.jsonl"
OLD_LOG: Final = "log.jsonl.1"

LOG_LIMIT_BYTES: Final = 10 * 1024 * 1024
LONGEST_LINE_BYTES: Final = 64 * 1024
READ_BYTES: Final = 64 * 1024
SWEEP_S: Final = 5.0
"""How long descendants that outlive the process are killed for, until none is left."""
DRAIN_S: Final = 1.0
"""How long the pipes are read after that, should somebody else hold them open."""

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36
LINUX: Final = sys.platform == "linux"


# Who a process is. The engine uses these too.


def start_time(pid: int) -> str | None:
    """When process `pid` began, as an opaque word that no later process of that pid shares; None when it is gone.

    A process that ended and was not waited for is gone. Source: proc_pid_stat(5), fields 3 and 22.
    """
    if not LINUX:
        return _start_time_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    state, *rest = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold anything
    return None if state in "ZX" else rest[18]


def _start_time_by_ps(pid: int) -> str | None:
    argv = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    answer = subprocess.run(argv, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=10, check=False)
    state, _, began = answer.stdout.strip().partition(" ")
    if not began or state.startswith("Z"):
        return None
    return str(int(time.mktime(time.strptime(began.strip(), "%a %b %d %H:%M:%S %Y"))))


def pid_space() -> str:
    """What pids and start times are counted in: this boot of this machine, this pid namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def parents() -> dict[int, int]:
    """pid → parent's pid, of every process that can be seen; empty without /proc."""
    found = {}
    for name in os.listdir("/proc") if LINUX else ():
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{name}/stat").read_text("ascii", "replace")
                found[int(name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
    return found


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


# The files


def write_json(name: str, document: dict[str, Any]) -> None:
    """Replace file `name` of the current folder in one step."""
    temporary = f".{name}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, name)


class Log:
    """log.jsonl: one `{"ts","stream","line"}` a line. At `limit_bytes` it becomes log.jsonl.1 and begins anew."""

    def __init__(self, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._partial = {"stdout": b"", "stderr": b""}
        self._open()

    def _open(self) -> None:
        self._file = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(self._file).st_size

    def feed(self, stream: str, data: bytes) -> None:
        """Take what was read; empty `data` is the stream's end. Memory stays below one line of the longest."""
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        if rest and (not data or len(rest) >= LONGEST_LINE_BYTES):
            lines.append(rest)
            rest = b""
        self._partial[stream] = rest
        ts = now()
        entries = [{"ts": ts, "stream": stream, "line": line.decode("utf-8", "replace")} for line in lines]
        self._write("".join(json.dumps(entry) + "\n" for entry in entries).encode())

    def _write(self, text: bytes) -> None:
        # A full disk costs lines, never the processor: it must not block or die for its log.
        with contextlib.suppress(OSError):
            if self._size_bytes + len(text) > self._limit_bytes:
                os.close(self._file)
                os.replace(LOG, OLD_LOG)
                self._open()
            while text:
                written = os.write(self._file, text)
                self._size_bytes += written
                text = text[written:]

    def close(self) -> None:
        os.close(self._file)


# The process


def _prctl() -> Callable[..., int]:
    return ctypes.CDLL(None, use_errno=True).prctl if LINUX else lambda *_: 0


def _dying_with(parent: int, prctl: Callable[..., int]) -> Callable[[], None]:
    def child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return child


def begin(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the process in its own process group. Raises OSError."""
    prctl = _prctl()
    # Orphans of the process become children of this one, which ends them: no session or daemon escapes.
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no handler reads this one's memory: it has held the secrets
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold them too
    return subprocess.Popen(
        config["argv"],
        cwd=config["cwd"],
        env=config["environment"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
        preexec_fn=_dying_with(os.getpid(), prctl),
    )


def attend(process: subprocess.Popen[bytes], log: Log) -> int:
    """Keep the log until the process ended and nothing it started is left; returns its exit status."""
    with selectors.DefaultSelector() as selector:
        selector.register(_wake_on_signals(), selectors.EVENT_READ, "")
        for stream, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            selector.register(pipe, selectors.EVENT_READ, stream)  # type: ignore[arg-type]
        _on_stop(lambda *_: os.kill(process.pid, signal.SIGTERM))
        # Not waited for yet: its pid and its process group can't become somebody else's before the sweep.
        while start_time(process.pid) is not None:
            _pump(selector, log, timeout_s=10.0)
        _on_stop(signal.SIG_IGN)
        process.returncode = _finish(process.pid)
        deadline = time.monotonic() + DRAIN_S
        while len(selector.get_map()) > 1 and time.monotonic() < deadline:
            _pump(selector, log, timeout_s=0.1)
    return process.returncode


def _wake_on_signals() -> int:
    """A descriptor that becomes readable with every signal, a child's end included."""
    wake, woken = os.pipe()
    for descriptor in (wake, woken):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake


def _on_stop(action: Any) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, action)


def _pump(selector: selectors.BaseSelector, log: Log, *, timeout_s: float) -> None:
    for key, _ in selector.select(timeout_s):
        data = os.read(key.fd, READ_BYTES)
        if key.data:
            log.feed(key.data, data)
            if not data:
                selector.unregister(key.fileobj)


def _finish(pid: int) -> int:
    """End what the process left behind; returns its own exit status."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    deadline = time.monotonic() + SWEEP_S
    with contextlib.suppress(ChildProcessError):  # none left
        while time.monotonic() < deadline:
            for child in [child for child, parent in parents().items() if parent == os.getpid()]:
                os.kill(child, signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)
    return status


# From the command's call to the end


def supervise(config: dict[str, Any], report: int) -> None:
    """Run the process from its start to its end. `report` gets one JSON document, then the end of file.

    The current folder is one that only this launch knows, until a rename publishes it whole: a reader finds a
    complete process.json or nothing, and of two launches under one name one finds the name taken.
    """
    os.umask(0o077)
    os.chdir(config["staging"])
    try:
        process = begin(config)
    except OSError as exc:
        os.write(report, json.dumps({"error": str(exc)}).encode())
        return
    pids = {"pid": process.pid, "shim_pid": os.getpid(), "space": pid_space()}
    starts = {"start": start_time(process.pid), "shim_start": start_time(os.getpid()), "started_at": now()}
    log = Log()
    try:
        write_json(RECORD, {"schema": 1, **config["record"], **pids, **starts})
        os.rename(config["staging"], config["folder"])
        os.write(report, json.dumps({"pid": process.pid}).encode())
        os.close(report)
    except OSError:  # the folder is gone, the name is taken, or nobody waits for the answer any more
        process.kill()
        attend(process, log)
        log.close()
        withdraw()
        return
    config.clear()
    status = attend(process, log)
    log.close()
    write_json(EXIT, {"schema": 1, "exit_status": status, "ended_at": now()})


def withdraw() -> None:
    """Remove the current folder: a launch that nobody knows of leaves nothing behind."""
    with contextlib.suppress(OSError):
        for name in os.listdir("."):
            os.unlink(name)
        os.rmdir(os.getcwd())


def main() -> int:
    """Answer the command with process.json, or with nothing and status 1, as soon as the process runs."""
    config = json.load(sys.stdin.buffer)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with open(reader, "rb") as answer:
            document = answer.read()
        sys.stdout.buffer.write(document)
        return 0 if document else 1
    # Detached: a session of its own, and no descriptor of the command's.
    os.setsid()
    os.close(reader)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    supervise(config, writer)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
