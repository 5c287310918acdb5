"""How a handler ended, as its worker sees it: exceptions in the words of the envelope."""

import errno
import os
import tempfile
import traceback
from types import TracebackType
from typing import Final

from processor_runtime import codes
from processor_runtime.failures import Failure, limit, out_of_memory
from processor_runtime.handler import ProcessorError

TRACEBACK_LINES: Final = 20
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL: Final = {
    "scratch": ("scratch space is full", "raise runtime.scratch_gb in registry.yaml, or write less"),
    "tmp": ("/tmp is full", "write to the working folder, or by tempfile, which follows TMPDIR"),  # noqa: S108
    "disk": ("the disk is full", ""),
}
_HERE: Final = os.path.dirname(os.path.abspath(__file__))


def of_exception(exc: BaseException, *, scratch: str) -> Failure:
    """The failure that an exception which left the handler stands for. May hold secret values still."""
    if isinstance(exc, ProcessorError):
        return exc.failure()
    if isinstance(exc, MemoryError):
        return out_of_memory(None)
    if isinstance(exc, OSError) and exc.errno in _NO_SPACE:
        return _disk_full(exc, scratch)
    words = "".join(traceback.format_exception_only(exc)).strip()
    return Failure(codes.RUNTIME, words, "see the traceback in details", {"traceback": trace(exc)})


def trace(exc: BaseException) -> str:
    """The traceback's last lines, from the handler's own frames on."""
    lines = "".join(traceback.format_exception(type(exc), exc, _skip_ours(exc.__traceback__))).splitlines()
    return "\n".join(lines[-TRACEBACK_LINES:])


def _skip_ours(at: TracebackType | None) -> TracebackType | None:
    while at is not None and at.tb_frame.f_code.co_filename.startswith((_HERE, "<")):
        at = at.tb_next
    return at


def _disk_full(exc: OSError, scratch: str) -> Failure:
    which = _full_space(exc, scratch)
    message, hint = _FULL[which]
    return limit(which, message, hint, traceback=trace(exc))


def _full_space(exc: OSError, scratch: str) -> str:
    """scratch, tmp or disk: by the path where the error names one, else by which of them is full."""
    for name in (exc.filename, exc.filename2):
        if isinstance(name, str | os.PathLike):
            path = os.path.abspath(os.fspath(name))
            if path.startswith(scratch):
                return "scratch"
            if path.startswith("/tmp/"):  # noqa: S108
                return "tmp"
    if exc.errno == errno.EFBIG:  # our own limit on the size of one file
        return "scratch"
    for which, folder in (("tmp", "/tmp"), ("scratch", scratch), ("scratch", tempfile.gettempdir())):  # noqa: S108
        if _is_full(folder):
            return which
    return "disk"


def _is_full(folder: str) -> bool:
    try:
        space = os.statvfs(folder)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < 64 * 1024 or (space.f_files > 0 and space.f_favail == 0)
