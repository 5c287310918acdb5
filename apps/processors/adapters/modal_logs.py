"""Logs of a Modal app as lines: a range, the last ones, or followed over lost connections, each line once."""

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator
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
_REMEMBERED: Final = 20_000
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
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def entries(self, tail: int | None, since: str | None) -> Iterator[Any]:
        self._line.look()
        yield from self._new(_past(self._line, self._app, tail, since))
        failures = 0
        while True:
            self._begin()
            got, end = False, None
            for entry in self._until_it_ends():
                if isinstance(entry, BaseException | _End):
                    end = entry
                    break
                got = True
                yield entry
            if isinstance(end, _End):
                return
            failures = 0 if got else failures + 1
            if failures >= _PATIENCE and isinstance(end, BaseException):
                with translated(f"go on with the logs of {self._app}"):
                    raise end

    def _begin(self) -> None:
        """Open a stream. In a thread that may be left behind: it waits in the SDK, and Ctrl-C must not wait for it."""
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._arrived, self._owed = arrived, self._told.copy()
        threading.Thread(target=_stream, args=(self._line.environment, self._app, arrived), daemon=True).start()

    def _until_it_ends(self) -> Iterator[Any]:
        """New entries of the stream, and of a look at what was written while it was being opened."""
        looked = False
        while True:
            try:
                entry = self._arrived.get(timeout=None if looked else _SETTLE_S)
            except queue.Empty:
                looked = True
                yield from self._new(self._missed())
                continue
            if isinstance(entry, BaseException | _End):
                if not looked:
                    yield from self._new(self._missed())
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


def _stream(environment: str, app: str, arrived: "queue.SimpleQueue[Any]") -> None:
    import modal
    from grpclib.exceptions import GRPCError, StreamTerminatedError

    try:
        for entry in modal.App.lookup(app, environment_name=environment).logs.stream():
            arrived.put(entry)
        arrived.put(_End())
    except (modal.exception.Error, GRPCError, StreamTerminatedError, OSError) as exc:
        arrived.put(exc)


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
