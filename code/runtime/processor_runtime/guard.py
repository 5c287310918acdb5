"""The interpreter's guard: what refuses the network inside a mock handler, and says who asked for it.

It is a message, not a barrier: native code and subprocesses get past it. `meta.isolation` says "interpreter".
"""

import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

ISOLATION: Final = {"mock": "interpreter", "real": "none"}

_LOOKUPS: Final = frozenset(
    ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
)
_WATCHED: Final = _LOOKUPS | {"socket.__new__"}
_ALLOWED_FAMILIES: Final = (int(getattr(socket, "AF_UNIX", -1)), -1)  # -1: the wrapper of a socket that is there
_HERE: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep


class NetworkRefused(RuntimeError):
    """Raised in place of the network. No OSError: HTTP clients would retry it and hide its words."""


class _Guard:
    def __init__(self) -> None:
        self.what: str | None = None
        self.home = os.sep
        self.report: Callable[[str], None] | None = None


_guard = _Guard()


def install() -> None:
    """Put the guard into this process and all that it forks, open. It can't be taken out again."""
    sys.addaudithook(_hook)


def close(what: str, home: str, report: Callable[[str], None] | None = None) -> None:
    """Refuse the network from now on.

    Args:
        what: has no network, in words ("mock mode").
        home: the folder of the author's files, one of which is to be blamed.
        report: is told of every attempt.
    """
    _guard.what, _guard.home, _guard.report = what, os.path.join(os.path.abspath(home), ""), report


def open_() -> None:
    """Let everything through."""
    _guard.what = _guard.report = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event not in _WATCHED or _guard.what is None:
        return
    if event == "socket.__new__" and int(args[1]) in _ALLOWED_FAMILIES:
        return
    name = "socket.socket" if event == "socket.__new__" else event
    message = f"{_guard.what} has no network: {name}() called {_caller(sys._getframe(1))}"
    if _guard.report is not None:
        _guard.report(message)
    raise NetworkRefused(message)


def _caller(frame: FrameType | None) -> str:
    """The innermost line of the author's own files: where they lie, an image may keep this package too."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_guard.home) and not file.startswith(_HERE):
            return f"from {os.path.relpath(file, _guard.home)}:{frame.f_lineno}"
        frame = frame.f_back
    return "from a library"
