"""The interpreter's guard: what refuses the network inside a mock handler, and says who asked for it.

It is a message, not a barrier: native code and subprocesses get past it. `meta.isolation` says "interpreter".
"""

import os
import socket
import sys
import sysconfig
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

ISOLATION: Final = {"mock": "interpreter", "real": "none"}

_LOOKUPS: Final = frozenset(
    ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
)
_WATCHED: Final = _LOOKUPS | {"socket.__new__"}
_ALLOWED_FAMILIES: Final = (int(getattr(socket, "AF_UNIX", -1)), -1)  # -1: the wrapper of a socket that is there
# the last one: what pip installed beside this package, wherever an image keeps it
_LIBRARIES: Final = (
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
)


class NetworkRefused(RuntimeError):
    """Raised in place of the network. No OSError: HTTP clients would retry it and hide its words."""


class _Guard:
    def __init__(self) -> None:
        self.what: str | None = None
        self.report: Callable[[str], None] | None = None


_guard = _Guard()


def install() -> None:
    """Put the guard into this process and all that it forks, open. It can't be taken out again."""
    sys.addaudithook(_hook)


def close(what: str, report: Callable[[str], None] | None = None) -> None:
    """Refuse the network from now on. `what` has none ("mock mode"); `report` is told of every attempt."""
    _guard.what, _guard.report = what, report


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
    """The innermost line outside Python's own and installed libraries: the author's, nearly always."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(("<", *_LIBRARIES)):
            return f"from {os.path.basename(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return "from a library"
