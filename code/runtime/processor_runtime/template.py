"""The template processes: they import the handler once, and fork the workers.

The first one imports `handler` and forks mock workers. It also forks the second one, which gets the secrets, runs
`load()` and forks real workers: so neither a long load() nor a broken one keeps mock from running, and no mock
worker descends from a process that had a secret. Each is single-threaded, the parent of its workers, and ends
every process that a dead worker leaves behind.
"""

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections import deque
from types import ModuleType
from typing import Any, Final, NoReturn

from processor_runtime import guard, ipc, outcome, system, worker
from processor_runtime.environment import MIN_REDACTED_CHARACTERS, Environment, redact

HANDLER: Final = "handler"
REAL: Final = 0  # the number of the second template, among the first one's children

log = logging.getLogger("processor_runtime")


class Stop(BaseException):
    """The supervisor is gone: end everything."""


def main(control: socket.socket, environment: Environment, supervisor: int) -> NoReturn:
    """The first template's life, from its fork (or exec) on."""
    template = _Template(control, environment, "mock")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stop sent to the whole process group is the supervisor's
    signal.signal(signal.SIGUSR2, template.stop)
    system.die_with_parent(supervisor, signal.SIGUSR2)
    system.adopt_orphans()
    system.offer_to_oom_killer(500)
    guard.install()
    try:
        template.prepare()
        template.serve()
    except Stop:
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    template.end()
    os._exit(0)


def import_handler() -> ModuleType:
    """The author's module. Raises whatever its import raises; LookupError when it is absent or has no run()."""
    if (found := importlib.util.find_spec(HANDLER)) is None or found.origin is None:
        raise LookupError("no handler.py on the Python path: an image keeps it in /app, with PYTHONPATH=/app")
    guard.close("the import of handler.py", os.path.dirname(found.origin))
    try:
        handler = importlib.import_module(HANDLER)
    finally:
        guard.open_()
    if not callable(getattr(handler, "run", None)):
        raise LookupError(f"{handler.__file__} has no function run(context)")
    return handler


class _Template:
    def __init__(self, control: socket.socket, environment: Environment, mode: str) -> None:
        self._control, self._environment, self._mode = control, environment, mode
        self._handler: ModuleType
        self._secrets: tuple[str, ...] = ()
        self._known: dict[int, int] = {}  # pid → number
        self._descriptors: deque[int] = deque()
        self._splitter = ipc.Splitter()
        self._wake, self._waker = _wake_on_signals()

    def stop(self, *_: object) -> NoReturn:
        raise Stop

    def prepare(self) -> None:
        """Import the handler and tell how that went; ends the process when it failed."""
        _line_by_line()
        try:
            self._handler = import_handler()
        except LookupError as exc:
            self._tell(failed=str(exc))
            os._exit(1)
        except Exception as exc:
            sys.stderr.write(outcome.trace(exc) + "\n")
            self._tell(failed=f"the import of handler.py failed: {type(exc).__name__}: {exc}")
            os._exit(1)
        self._freeze()
        self._tell(imported=True)

    def _print_into(self, *pipes: int) -> None:
        """Have stdout and stderr of all that comes from here pass the supervisor, which blanks secrets."""
        for target, pipe in enumerate(pipes, start=1):
            os.dup2(pipe, target)
            os.close(pipe)

    def load(self, secrets: dict[str, str]) -> None:
        """Run the author's load() with the secrets in place, and tell how that went."""
        os.environ.update(secrets)
        self._secrets = tuple(value for value in secrets.values() if len(value) >= MIN_REDACTED_CHARACTERS)
        started = time.monotonic()
        words = None
        try:
            if callable(load := getattr(self._handler, "load", None)):
                result = load()
                if asyncio.iscoroutine(result):
                    asyncio.run(result)
        except Exception as exc:
            sys.stderr.write(redact(outcome.trace(exc), self._secrets) + "\n")
            failure = outcome.of_exception(exc, scratch=str(self._environment.scratch))
            words = {**failure.words(), "message": redact(failure.message, self._secrets)}
            words["details"] = {"traceback": redact(outcome.trace(exc), self._secrets)}
        self._freeze()
        self._tell(loaded={"error": words, "duration_s": round(time.monotonic() - started, 3)})

    def serve(self) -> NoReturn:
        """Fork, reap and tell, until the supervisor is gone."""
        while True:
            control = self._control.fileno()
            readable, _, _ = select.select([control, self._wake], [], [])
            if self._wake in readable:
                _drain(self._wake)
            self._reap()
            if control in readable:
                self._receive()

    def end(self) -> None:
        """End all that descends from us."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a second one would interrupt this
        for pid in list(self._known):
            _end_group(pid)
        self._known.clear()
        self._sweep()

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, ipc.READ_BYTES, 16)
        except ConnectionResetError:
            raise Stop from None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            self._descriptors.append(descriptor)
        if not data:
            raise Stop
        for _, body in self._splitter.feed(data):
            command: dict[str, Any] = json.loads(body)
            if "load" in command:
                self._print_into(self._descriptors.popleft(), self._descriptors.popleft())
                self.load(command["load"])
            else:
                self._fork(command["fork"], socket.socket(fileno=self._descriptors.popleft()))

    def _fork(self, number: int, channel: socket.socket) -> None:
        parent = os.getpid()
        with warnings.catch_warnings():
            # the import may have left a thread (3.12 and up warn); workers are told not to count on it
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            self._known[pid] = number
            channel.close()
            return
        try:
            self._become_child()
            if number == REAL:
                _real(channel, self, parent)
            system.die_with_parent(parent, signal.SIGKILL)
            job = worker.Job(number, self._mode, self._handler, self._environment, self._secrets)
            worker.main(channel, job)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _become_child(self) -> None:
        """Leave behind what belongs to the parent alone."""
        self._control.close()
        signal.set_wakeup_fd(-1)  # asyncio, where it was imported, has done so at the fork (Python 3.12 and up)
        for number in (signal.SIGCHLD, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._wake)
        os.close(self._waker)
        self._known.clear()

    def take_over(self, control: socket.socket) -> None:
        """Be the second template from now on."""
        self._control, self._mode = control, "real"
        self._splitter = ipc.Splitter()
        self._wake, self._waker = _wake_on_signals()

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in self._known:
                _end_group(found.si_pid)  # before it is reaped: until then its number is nobody else's
            _, status = os.waitpid(found.si_pid, 0)
            number = self._known.pop(found.si_pid, None)
            if number is not None:
                self._sweep()
                self._tell(died=number, status=os.waitstatus_to_exitcode(status))

    def _sweep(self) -> None:
        """End the processes that a dead worker left to us."""
        for _ in range(50):
            strangers = [pid for pid in system.children(os.getpid()) if pid not in self._known]
            if not strangers:
                return
            for pid in strangers:
                for child in system.children(pid):
                    _kill(child)
                _kill(pid)
                _wait(pid)

    def _freeze(self) -> None:
        """Keep the garbage collector off what is here now, so that workers go on sharing its memory."""
        gc.collect()
        gc.freeze()
        if (threads := threading.active_count() - 1) > 0:
            log.warning("the handler's import left %d threads running; they do not exist in its workers", threads)

    def _tell(self, **report: Any) -> None:
        try:
            self._control.sendall(ipc.pack(ipc.CONTROL, json.dumps(report).encode()))
        except (BrokenPipeError, ConnectionResetError):
            raise Stop from None


def _real(control: socket.socket, template: _Template, parent: int) -> NoReturn:
    """The second template's life."""
    template.take_over(control)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    system.die_with_parent(parent, signal.SIGKILL)  # even inside load(); the first one sweeps up after us
    system.adopt_orphans()
    try:
        template.serve()
    except Stop:
        template.end()
    os._exit(0)


def _wake_on_signals() -> tuple[int, int]:
    """A descriptor that becomes readable when a child ends, and its other end, which is written to."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read, write


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, 4096)


def _line_by_line() -> None:
    """Let every line that a handler prints out at once and whole: a killed worker flushes nothing.

    Not write-through, as PYTHONUNBUFFERED has it: print() would write line and line break apart, and workers'
    lines would run together.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def _end_group(pid: int) -> None:
    _kill(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


if __name__ == "__main__":  # started again by the supervisor, after the first one ended
    main(socket.socket(fileno=int(sys.argv[1])), Environment.read(os.environ), os.getppid())
