"""SIGINT and SIGTERM while an execution runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_to(interrupt: Callable[[int], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM goes to `interrupt`, as its number; the second does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        interrupt(number)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
