"""Following logs: what a stream leaves out, and where it is given up while it begins."""

import asyncio
import queue
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import modal
import pytest

from apps.processors.adapters import modal_logs
from apps.processors.adapters.modal_line import Line


def test_ctrl_c_while_a_stream_begins_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start, before = threading.Thread.start, set(threading.enumerate())

    async def nothing(*_: Any, **__: Any) -> None:
        await asyncio.sleep(60)

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(modal.App, "lookup", SimpleNamespace(aio=nothing))
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(modal_logs.logs(Line("dev"), "app", follow=True, tail=0, since=None))

    assert set(threading.enumerate()) == before


def entry(words: str, second: int) -> Any:
    moment = datetime(2026, 11, 28, tzinfo=UTC) + timedelta(seconds=second)
    return SimpleNamespace(timestamp=moment, source="stdout", message=f"{words}\n", context_ids=["ta-1"])


def test_a_line_written_while_the_sdk_opens_its_stream_again_is_told_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost, later = entry("lost", 1), entry("later", 2)
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    written: list[Any] = []
    looks = 0

    def past(*_: Any) -> list[Any]:
        nonlocal looks
        looks, found = looks + 1, list(written)
        if looks == 2:  # the first is the tail, the second is when the stream has settled
            written.extend((lost, later))
            arrived.put(later)
            arrived.put(modal_logs._End())
        return found

    stream = SimpleNamespace(arrived=arrived, start=lambda: None, close=lambda: None)
    monkeypatch.setattr(modal_logs, "_Stream", lambda *_: stream)
    monkeypatch.setattr(modal_logs, "_past", past)
    monkeypatch.setattr(modal_logs, "_SETTLE_S", 0.01)

    lines = modal_logs.logs(Line("dev"), "app", follow=True, tail=None, since=None)

    assert [each.line for each in lines] == ["lost", "later"]
