"""Work that may wait for a store, off the thread that reads the connection: a cancel must never wait with it."""

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

THREADS: Final = 8  # as many as a runtime has uploads under way: one that is verified for long delays none

Work = Callable[[], None]


class Lane:
    """What concerns one upload, done in the order given."""

    def __init__(self, workers: "Workers") -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._busy = False

    def do(self, work: Work) -> None:
        """Do `work` after all that was given before."""
        with self._lock:
            self._waiting.append(work)
            if self._busy:
                return
            self._busy = True
        self._workers.do(self._next)

    def _next(self) -> None:
        with self._lock:
            work = self._waiting.popleft()
        try:
            work()
        finally:
            with self._lock:
                self._busy = bool(self._waiting)
            if self._busy:
                self._workers.do(self._next)


class Workers:
    """A few threads, started as they are needed. They hold up no end of the process: what hangs is left behind."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._pending = 0
        self._idle = threading.Condition(self._lock)
        self._bug: BaseException | None = None

    def do(self, work: Work) -> None:
        with self._lock:
            self._pending += 1
            if self._pending > len(self._threads) < THREADS:
                self._threads.append(threading.Thread(target=self._serve, name="store", daemon=True))
                self._threads[-1].start()
        self._work.put(work)

    def check(self) -> None:
        """Raise what a piece of work raised: a bug, it should have handled what it knows."""
        if self._bug is not None:
            raise self._bug

    def close(self, timeout_s: float) -> None:
        """Wait so long for what was begun, then leave it."""
        with self._idle:
            self._idle.wait_for(lambda: not self._pending, timeout_s)
        for _ in self._threads:
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as exc:  # raised again by `check`, in the thread that can tell it
                self._bug = exc
            with self._idle:
                self._pending -= 1
                self._idle.notify_all()
