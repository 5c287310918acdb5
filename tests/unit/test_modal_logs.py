"""Following logs, where it is given up while it begins."""

import asyncio
import threading
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
