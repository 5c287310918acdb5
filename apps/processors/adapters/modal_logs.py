"""Logs of a Modal app as lines: a range, the last ones, or followed over lost connections, each line once."""

import asyncio
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from apps.errors import ModalFailed
from apps.processors.adapters.base import LogLine
from apps.processors.adapters.modal_line import Line, translated

DEFAULT_TAIL: Final = 100
"""Lines without --tail and --since."""
_FETCH_S: Final = 60.0
_OVERLAP: Final = timedelta(seconds=10)
"""How far a look back goes behind the newest line that was seen: lines may arrive in another order than written."""
_SETTLE_S: Final = 1.0
"""After a stream began: what was written while it was being opened is looked up then."""
_LOOK_S: Final = 15.0
"""Between two looks, at most, while no stream has brought a line."""
_REMEMBERED: Final = 20_000
_OUTAGE_S: Final = 60.0
"""How long Modal may be out of reach."""
_PAUSE_S: Final = 2.0
_CLOSE_S: Final = 3.0
"""What a stream gets to end."""
_PATIENCE: Final = 5
"""How often in a row a stream may break without bringing a line."""


def logs(line: Line, app: str, *, follow: bool, tail: int | None, since: str | None) -> Iterator[LogLine]:
    """As Target.logs."""
    if not follow:
        return _whole_lines(iter(_past(line, app, tail, since)))
    return _whole_lines(_Following(line, app).entries(tail, since))


def _past(line: Line, app: str, tail: int | None, since: str | None) -> list[Any]:
    async def ask() -> list[Any]:
        import modal

        found = await modal.App.lookup.aio(app, environment_name=line.environment)
        if since is None:
            return [each async for each in found.logs.tail.aio(DEFAULT_TAIL if tail is None else tail)]
        return [each async for each in found.logs.fetch.aio(since=datetime.fromisoformat(since))]

    if tail == 0:
        return []
    entries = line.ask(ask, timeout_s=_FETCH_S, doing=f"tell the logs of {app}")
    entries.sort(key=lambda entry: entry.timestamp)
    return entries if tail is None else entries[-tail:]


class _Following:
    """The entries of an app from now on. The SDK's stream goes on by itself where it can; where not, it begins anew."""

    def __init__(self, line: Line, app: str) -> None:
        self._line, self._app = line, app
        self._told: Counter[tuple[Any, ...]] = Counter()
        self._owed: Counter[tuple[Any, ...]] = Counter()
        """Told, and perhaps still to come by this stream too."""
        self._order: deque[tuple[Any, ...]] = deque()
        self._newest = datetime.now(UTC)

    def entries(self, tail: int | None, since: str | None) -> Iterator[Any]:
        yield from self._new(_past(self._line, self._app, tail, since))
        failures = 0
        while True:
            self._owed = self._told.copy()
            got, end = False, None
            with closing(_Stream(self._line.environment, self._app)) as stream:
                stream.start()  # in here: Ctrl-C may come while it begins, and it must end before the SDK does
                for entry in self._until_it_ends(stream):
                    if isinstance(entry, BaseException | _End):
                        end = entry
                        break
                    got = True
                    yield entry
            if isinstance(end, _End):
                return
            failures = 0 if got else failures + 1
            self._come_back(failures, end)

    def _come_back(self, failures: int, end: BaseException | None) -> None:
        """Wait until Modal can be reached again. Raises ModalFailed when that takes too long."""
        if end is not None and failures >= _PATIENCE:
            with translated(f"go on with the logs of {self._app}"):
                raise end
        deadline = time.monotonic() + _OUTAGE_S
        while True:
            time.sleep(min(0.1 * 2**failures, _PAUSE_S))
            try:
                self._line.look(again=True)
                return
            except ModalFailed:
                if time.monotonic() > deadline:
                    raise

    def _until_it_ends(self, stream: "_Stream") -> Iterator[Any]:
        """New entries of the stream, and of looks at what was written while none was open.

        Until a stream has brought something, the SDK opens it again from wherever the log is then.
        """
        begun, pause_s = False, _SETTLE_S
        while True:
            try:
                entry = stream.arrived.get(timeout=pause_s or None)  # 0: for as long as it takes
            except queue.Empty:
                pause_s = 0.0 if begun else min(2 * pause_s, _LOOK_S)
                yield from self._new(self._missed())
                continue
            if not begun or isinstance(entry, BaseException | _End):
                begun, pause_s = True, _SETTLE_S
                yield from self._new(self._missed())
            if isinstance(entry, BaseException | _End):
                yield entry
                return
            yield from self._streamed(entry)

    def _missed(self) -> list[Any]:
        since = (self._newest - _OVERLAP).isoformat()
        try:
            return _past(self._line, self._app, None, since)
        except ModalFailed:
            return []  # the stream will tell

    def _new(self, entries: list[Any]) -> Iterator[Any]:
        """Those not told yet. Two of the same moment and words are two, as often as one answer has them."""
        here: Counter[tuple[Any, ...]] = Counter()
        for entry in entries:
            key = _key(entry)
            here[key] += 1
            if here[key] > self._told[key]:
                self._owed[key] += 1
                self._remember(entry)
                yield entry

    def _streamed(self, entry: Any) -> Iterator[Any]:
        key = _key(entry)
        if self._owed[key] > 0:
            self._owed[key] -= 1
            return
        self._remember(entry)
        yield entry

    def _remember(self, entry: Any) -> None:
        key = _key(entry)
        self._newest = max(self._newest, entry.timestamp)
        self._told[key] += 1
        self._order.append(key)
        if len(self._order) > _REMEMBERED:
            old = self._order.popleft()
            self._told[old] -= 1
            if self._told[old] <= 0:
                del self._told[old], self._owed[old]


def _key(entry: Any) -> tuple[Any, ...]:
    return (entry.timestamp, entry.source, entry.message, *entry.context_ids[-1:])


class _End:
    """The app has stopped: there will be no more lines."""


class _Stream:
    """One stream of the SDK's, in a thread with an event loop: it can be ended from outside, whatever it waits for."""

    def __init__(self, environment: str, app: str) -> None:
        self.arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Entries, and at the end an exception or _End."""
        self._environment, self._app = environment, app
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if not self._begun.wait(_CLOSE_S):
            return  # it never started
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_CLOSE_S)

    async def _follow(self) -> None:
        import modal
        from grpclib.exceptions import GRPCError, StreamTerminatedError

        task = asyncio.current_task()
        assert task is not None  # noqa: S101  we are in one
        self._loop, self._task = asyncio.get_running_loop(), task
        self._begun.set()
        try:
            app = await modal.App.lookup.aio(self._app, environment_name=self._environment)
            async for entry in app.logs.stream.aio():
                self.arrived.put(entry)
            self.arrived.put(_End())
        except asyncio.CancelledError:
            return  # closed
        except (modal.exception.Error, GRPCError, StreamTerminatedError, OSError) as exc:
            self.arrived.put(exc)


def _whole_lines(entries: Iterator[Any]) -> Iterator[LogLine]:
    """Entries are pieces of what a container wrote: a line may come in several, several in one."""
    begun: dict[tuple[str, ...], tuple[Any, str]] = {}
    for entry in entries:
        key = (entry.source, *entry.context_ids[-1:])
        first, text = begun.pop(key, (entry, ""))
        *whole, rest = (text + entry.message).split("\n")
        for each in whole:
            yield _line(first, each)
            first = entry
        if rest:
            begun[key] = (first, rest)
    for first, rest in begun.values():
        yield _line(first, rest)


def _line(entry: Any, text: str) -> LogLine:
    ts = entry.timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return LogLine(ts, "stdout" if entry.source == "stdout" else "stderr", text.rstrip("\r"))
