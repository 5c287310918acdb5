"""Room for all executions: who fills scratch space while they run, and a /tmp that is clean again after a failure."""

import asyncio
import logging
import math
from collections.abc import Callable, Set
from typing import Any, Final

from processor_runtime import scratch
from processor_runtime.environment import Environment
from processor_runtime.execution import Execution
from processor_runtime.failures import Failure, scratch_full

LOOK_S: Final = 0.5  # between two looks at scratch space while something runs

log = logging.getLogger("processor_runtime")


class Space:
    """Watches over what running executions write. `cleaned` is called when runs may begin again."""

    def __init__(self, environment: Environment, running: Set[Execution], *, cleaned: Callable[[], None]) -> None:
        self._environment, self._running, self._on_cleaned = environment, running, cleaned
        self._looking = False
        self._first_began = math.inf  # of all runs, seconds since 1970
        self._dirty_since = math.inf
        self.cleaning = False
        """Whether /tmp is being cleaned: a run that began now would lose its own files."""

    def began(self, execution: Execution) -> None:
        """Look at scratch space from time to time, as long as something runs."""
        self._first_began = min(self._first_began, execution.started_at or math.inf)
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def ended(self, execution: Execution, failure: Failure | None) -> None:
        """After a failure /tmp is to be cleaned of its leftovers; a full one, of everybody's. Once nothing runs."""
        if failure is not None and self._environment.in_container and execution.started_at is not None:
            since = self._first_began if failure.details.get("limit") == "tmp" else execution.started_at
            self._dirty_since = min(self._dirty_since, since)
        if self._dirty_since < math.inf and not self._running and not self.cleaning:
            self.cleaning = True
            since, self._dirty_since = self._dirty_since, math.inf
            kept = self._environment.scratch
            future = asyncio.get_running_loop().run_in_executor(None, scratch.clean_tmp, since, kept)
            future.add_done_callback(self._cleaned)

    def _cleaned(self, future: asyncio.Future[Any]) -> None:
        self.cleaning = False
        if future.exception() is not None:
            log.error("cleaning /tmp failed: %s", future.exception())
        self._on_cleaned()

    def _look(self) -> None:
        if not self._running:
            self._looking = False
            return
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, scratch.usage, self._environment.scratch)
        future.add_done_callback(self._looked)

    def _looked(self, future: asyncio.Future[dict[str, int]]) -> None:
        asyncio.get_running_loop().call_later(LOOK_S, self._look)
        limit_bytes = self._environment.spec.scratch_bytes
        if future.exception() is not None or sum((used := future.result()).values()) <= limit_bytes:
            return
        greediest = max(self._running, key=lambda execution: _share(execution, used), default=None)
        if greediest is not None and _share(greediest, used) > 0:
            greediest.stop(scratch_full(limit_bytes), at_once=True)


def _share(execution: Execution, used: dict[str, int]) -> int:
    worker = 0 if execution.worker is None else used.get(f"worker-{execution.worker.number}", 0)
    return worker + used.get(f"spool-{execution.number}", 0)
