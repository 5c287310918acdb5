"""The supervisor's side of its processes: workers by mode, made ahead of need, replaced when they end."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from processor_runtime import codes, ipc, scratch, system
from processor_runtime.environment import Environment
from processor_runtime.failures import Failure, from_words, signal_name
from processor_runtime.prints import Prints
from processor_runtime.template import REAL
from processor_runtime.workers import Worker

MODES: Final = ("mock", "real")
RESPAWN_S: Final = 1.0  # after a worker that never became ready

log = logging.getLogger("processor_runtime")


class Template:
    """A template process's control channel."""

    def __init__(self, control: socket.socket, on_report: Callable[[dict[str, Any]], None], on_end: Callable[[], None]):
        self._control, self._on_report, self._on_end = control, on_report, on_end
        self.ended = False
        self._splitter = ipc.Splitter()
        self._loop = asyncio.get_running_loop()
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._read)

    def send(self, command: dict[str, Any], *descriptors: int) -> None:
        """Send one command, with the descriptors that it is about. The template reads at once, or it is gone."""
        data = ipc.pack(ipc.CONTROL, json.dumps(command).encode())
        self._control.settimeout(5)
        try:
            if descriptors:
                sent = socket.send_fds(self._control, [data], descriptors)
                data = data[sent:]
            self._control.sendall(data)
        except OSError as exc:
            log.error("a template process does not take commands: %s", exc)
        finally:
            self._control.setblocking(False)

    def close(self) -> None:
        """End the process: it ends with its control channel."""
        self.ended = True
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()

    def _read(self) -> None:
        try:
            data = self._control.recv(ipc.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            self._on_end()
            return
        for _, body in self._splitter.feed(data):
            self._on_report(json.loads(body))


class Pool:
    """Workers and the templates that fork them."""

    def __init__(
        self,
        environment: Environment,
        secrets: dict[str, str],
        control: socket.socket,
        *,
        changed: Callable[[], None],
        stillborn: Callable[[str, Failure], None],
        fatal: Callable[[str], None],
    ) -> None:
        self._environment, self._secrets = environment, secrets
        self._changed, self._stillborn, self._fatal = changed, stillborn, fatal
        self._templates: dict[str, Template] = {}
        self._workers: dict[int, Worker] = {}
        self._parents: dict[int, Template] = {}  # by worker number
        self._idle: dict[str, list[Worker]] = {mode: [] for mode in MODES}
        self._open: set[str] = set()  # modes whose workers can be forked now
        self._held: set[str] = set()  # modes whose last worker did not get ready
        self._last_number = REAL
        self._oom_kills = system.oom_kills()
        self._spawns: set[asyncio.Task[None]] = set()
        self._prints: list[Prints] = []
        self._closing = False
        self.load_failure: Failure | None = None
        """Why real runs can't be, for good: load() failed."""
        self.deaths = 0
        """Workers that ended by themselves."""
        self._adopt(control)

    # what executions ask

    def take(self, mode: str) -> Worker:
        """An idle worker, which from now on is the caller's. Only when `has_idle`."""
        return self._idle[mode].pop()

    def has_idle(self, mode: str) -> bool:
        return bool(self._idle[mode])

    def can_start(self, mode: str) -> bool:
        """Whether a run of this mode finds a worker, or one is made for it at once."""
        return mode in self._open

    def want(self, mode: str, executions: int) -> None:
        """Have workers for so many more executions, and one ahead; never more than run at once."""
        if mode not in self._open or mode in self._held or self._closing:
            return
        mine = [worker for worker in self._workers.values() if worker.mode == mode]
        free = len(self._idle[mode]) + sum(1 for worker in mine if not worker.ready)
        missing = min(max(executions, 1) - free, self._environment.spec.concurrency - len(mine))
        for _ in range(missing):
            self._spawn(mode)

    def counts(self) -> dict[tuple[str, str], int]:
        """Workers by (mode, idle or busy)."""
        found = {}
        for mode in MODES:
            idle = len(self._idle[mode])
            total = sum(1 for worker in self._workers.values() if worker.mode == mode)
            found[mode, "idle"], found[mode, "busy"] = idle, total - idle
        return found

    def close(self) -> None:
        """End all workers and templates."""
        self._closing = True
        for template in list(self._templates.values()):
            template.close()
        self._templates.clear()
        for prints in self._prints:
            prints.close()

    # what workers tell

    def became_ready(self, worker: Worker) -> None:
        worker.ready = True
        self._idle[worker.mode].append(worker)
        if worker.mode == "mock" and "real" not in self._templates:
            self._start_real()
        self._changed()

    def became_idle(self, worker: Worker, *, reusable: bool) -> None:
        if reusable:
            self._idle[worker.mode].append(worker)
        else:
            worker.signal(signal.SIGKILL)

    def lost(self, worker: Worker, failure: Failure) -> None:
        self._workers.pop(worker.number, None)
        if worker in self._idle[worker.mode]:
            self._idle[worker.mode].remove(worker)
        if self._closing:
            return  # the engine removes the scratch space, and our own threads may be over
        scratch.remove_later(self._environment.scratch / f"worker-{worker.number}")
        if not worker.ended_by_us:
            self.deaths += 1
            log.warning("worker %d (%s): %s", worker.number, worker.mode, failure.message)
        had_parent = self.has_parent(worker)
        self._parents.pop(worker.number, None)
        if not worker.ready and had_parent:
            self._held.add(worker.mode)
            asyncio.get_running_loop().call_later(RESPAWN_S, self._release, worker.mode)
            self._stillborn(worker.mode, failure)
        self._changed()

    def has_parent(self, worker: Worker) -> bool:
        """Whether the template that forked it lives, and will tell its exit status."""
        template = self._parents.get(worker.number)
        return template is not None and not template.ended

    def memory_ended(self) -> bool:
        """Whether the kernel has ended a process for want of memory since we last asked."""
        before, self._oom_kills = self._oom_kills, system.oom_kills()
        return any(count > before.get(place, 0) for place, count in self._oom_kills.items())

    # templates

    def _adopt(self, control: socket.socket) -> None:
        self._templates["mock"] = Template(control, self._report, self._template_ended)

    def _report(self, report: dict[str, Any]) -> None:
        if "imported" in report:
            self._open.add("mock")
            self.want("mock", 1)
        elif "failed" in report:
            self._fatal(report["failed"])
        elif "loaded" in report:
            self._loaded(report["loaded"])
        elif report["died"] == REAL:
            self._real_ended(report["status"])
        elif worker := self._workers.get(report["died"]):
            worker.exited(report["status"])

    def _start_real(self) -> None:
        """Fork the second template; without its required secrets it would load for runs that are refused."""
        if self._closing or any(name not in self._secrets for name in self._environment.spec.required_secrets):
            return
        ours, theirs = socket.socketpair()
        self._templates["real"] = template = Template(ours, self._report, lambda: self._orphan("real"))
        self._templates["mock"].send({"fork": REAL}, theirs.fileno())
        theirs.close()
        prints = [Prints(target, tuple(self._secrets.values())) for target in (1, 2)]
        self._prints += prints
        template.send({"load": self._secrets}, *(each.pipe for each in prints))
        for each in prints:
            os.close(each.pipe)

    def _loaded(self, result: dict[str, Any]) -> None:
        if result["error"] is not None:
            self.load_failure = from_words(result["error"])
            log.error("load() failed: %s", self.load_failure.message)
        else:
            log.info("load() took %.3f s; ready for real runs", result["duration_s"])
            self._open.add("real")
            self.want("real", 1)
        self._changed()

    def _real_ended(self, status: int) -> None:
        was_open = "real" in self._open
        self._open.discard("real")
        if (template := self._templates.pop("real", None)) is not None:
            template.close()
        how = f"exit status {status}" if status >= 0 else signal_name(-status)
        if was_open and not self._closing:
            log.error("the template process of real workers ended (%s); loading again", how)
            self._start_real()
        elif self.load_failure is None:
            details = {"exit_status": status}
            self.load_failure = Failure(codes.RUNTIME, f"load() ended its process: {how}", "see the logs", details)
            log.error("%s", self.load_failure.message)
        self._changed()

    def _template_ended(self) -> None:
        """Start again from nothing but the environment: the first template is gone, and its workers with it."""
        if self._closing:
            return
        if "mock" not in self._open:
            self._fatal("the template process ended while it imported handler.py")
            return
        log.error("the template process ended; starting another")
        self._open.clear()
        for worker in self._workers.values():
            worker.signal(signal.SIGKILL)
        for mode in MODES:
            self._orphan(mode)
        for template in self._templates.values():
            template.close()
        self._templates.clear()
        for pid in system.children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            program = [sys.executable, "-m", "processor_runtime.template", str(theirs.fileno())]
            os.posix_spawn(sys.executable, program, os.environ)
        self._adopt(ours)

    def _orphan(self, mode: str) -> None:
        for worker in [worker for worker in self._workers.values() if worker.mode == mode]:
            worker.orphaned()

    # workers

    def _spawn(self, mode: str) -> None:
        self._last_number += 1
        worker = Worker(self, self._last_number, mode)
        self._workers[worker.number] = worker
        task = asyncio.get_running_loop().create_task(self._fork(worker))
        self._spawns.add(task)
        task.add_done_callback(self._spawns.discard)

    async def _fork(self, worker: Worker) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
            if template := self._templates.get(worker.mode):
                self._parents[worker.number] = template
                template.send({"fork": worker.number}, theirs.fileno())

    def _release(self, mode: str) -> None:
        self._held.discard(mode)
        self._changed()
