"""RPCs about logs, and the lines themselves: what containers wrote, and what the service says about them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import groupby

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.faults import Faults
from tests.modal_service.workspace import Caller, Workspace, refuse

STDOUT, STDERR = pb.FILE_DESCRIPTOR_STDOUT, pb.FILE_DESCRIPTOR_STDERR
SYSTEM = pb.FILE_DESCRIPTOR_INFO
_SECOND = 10**9


@dataclass(frozen=True)
class Line:
    number: int
    """Over all apps, counted from 1."""
    time_ns: int
    app_id: str
    function_id: str
    task_id: str
    source: pb.FileDescriptor.ValueType
    text: str
    """With its line feed."""


class Logs:
    def __init__(self, workspace: Workspace, faults: Faults) -> None:
        self._workspace, self._faults = workspace, faults
        self._lines: list[Line] = []
        self._grown = asyncio.Event()
        self.closed: set[str] = set()
        """Apps of which no more will come."""
        self.builders: set[str] = set()
        """Apps that only build images."""

    def add(
        self, text: str, *, app_id: str, function_id: str, task_id: str, source: pb.FileDescriptor.ValueType
    ) -> None:
        number = len(self._lines) + 1
        self._lines.append(Line(number, time.time_ns(), app_id, function_id, task_id, source, text))
        self.changed()

    def close(self, app_id: str) -> None:
        self.closed.add(app_id)
        self.changed()

    def changed(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def app_fetch_logs(self, request: pb.AppFetchLogsRequest, caller: Caller) -> pb.AppFetchLogsResponse:
        """The newest `limit` lines of the time range, oldest first."""
        lines = self._within(request)
        return pb.AppFetchLogsResponse(batches=_batches(lines[-request.limit :] if request.limit else lines))

    async def app_count_logs(self, request: pb.AppCountLogsRequest, caller: Caller) -> pb.AppCountLogsResponse:
        """Buckets that begin at multiples of their length, from the first to the last that the range touches."""
        size, since, until = request.bucket_secs, _ns(request.since), _ns(request.until)
        first, last = since // _SECOND // size, max(since, until - 1) // _SECOND // size
        buckets = {n: pb.AppCountLogsResponse.LogBucket() for n in range(first, last + 1)}
        for number, bucket in buckets.items():
            bucket.bucket_start_at.FromSeconds(number * size)
        for line in self._within(request):
            bucket = buckets[line.time_ns // _SECOND // size]
            bucket.stdout_logs += line.source == STDOUT
            bucket.stderr_logs += line.source == STDERR
            bucket.system_logs += line.source == SYSTEM
        return pb.AppCountLogsResponse(app_id=request.app_id, buckets=list(buckets.values()))

    async def app_get_logs(self, request: pb.AppGetLogsRequest, caller: Caller) -> AsyncIterator[pb.TaskLogsBatch]:
        """New lines as they come; after `last_entry_id`, those since."""
        self._check(request.app_id)
        position = 0 if self._faults.log_backlog else len(self._lines)
        if request.last_entry_id:
            position = int(request.last_entry_id)
        timeout_s = min(request.timeout, self._faults.log_stream_s)
        deadline = time.monotonic() + timeout_s
        while True:
            grown = self._grown
            fresh = [line for line in self._lines[position:] if _wanted(line, request)]
            position = len(self._lines)
            for batch in _batches(fresh):
                yield batch
            if request.app_id in self.closed:
                yield pb.TaskLogsBatch(app_done=True, entry_id=str(position))
                return
            try:
                await asyncio.wait_for(grown.wait(), max(deadline - time.monotonic(), 0))
            except TimeoutError:
                break
        if self._faults.log_stream_breaks and timeout_s < request.timeout:
            refuse(Status.UNAVAILABLE, "the stream of logs broke")
        # As the service does: a stream without news ends with where it is.
        yield pb.TaskLogsBatch(entry_id=str(position))

    def _check(self, app_id: str) -> None:
        if app_id not in self.builders:
            self._workspace.app(app_id)

    def _within(self, request: pb.AppFetchLogsRequest | pb.AppCountLogsRequest) -> list[Line]:
        self._check(request.app_id)
        since, until = _ns(request.since), _ns(request.until)
        return [line for line in self._lines if since <= line.time_ns < until and _wanted(line, request)]


def _wanted(line: Line, request: pb.AppFetchLogsRequest | pb.AppCountLogsRequest | pb.AppGetLogsRequest) -> bool:
    source = request.file_descriptor if isinstance(request, pb.AppGetLogsRequest) else request.source
    return (
        line.app_id == request.app_id
        and source in (pb.FILE_DESCRIPTOR_UNSPECIFIED, line.source)
        and request.function_id in ("", line.function_id)
        and request.task_id in ("", line.task_id)
        and request.search_text in line.text
    )


def _batches(lines: Iterable[Line]) -> list[pb.TaskLogsBatch]:
    """In order; a batch holds neighbours of one container, and its entry id is its last line's number."""
    found = [list(group) for _, group in groupby(lines, key=lambda line: (line.task_id, line.function_id))]
    return [
        pb.TaskLogsBatch(
            task_id=group[0].task_id,
            function_id=group[0].function_id,
            entry_id=str(group[-1].number),
            items=[_item(line) for line in group],
        )
        for group in found
    ]


def _item(line: Line) -> pb.TaskLogs:
    return pb.TaskLogs(
        data=line.text,
        file_descriptor=line.source,
        timestamp=line.time_ns / _SECOND,
        timestamp_ns=line.time_ns,
        container_id=line.task_id,
    )


def _ns(moment: Timestamp) -> int:
    return moment.ToNanoseconds()
