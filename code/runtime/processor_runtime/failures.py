"""How an execution may fail, in words: what ends up under `error` of `completed`."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from processor_runtime import codes

MAX_MESSAGE_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Failure:
    """One error: a code, what happened, what to do about it, and facts for programs."""

    code: str
    message: str
    hint: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> dict[str, Any]:
        """The `error` object of the protocol."""
        message = self.message
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
        return {"code": self.code, "message": message, "hint": self.hint, "details": dict(self.details)}


def from_words(error: Mapping[str, Any]) -> Failure:
    """The Failure for an `error` object that another process sent."""
    details = error.get("details")
    return Failure(
        str(error.get("code", codes.INTERNAL)),
        str(error.get("message", "")),
        str(error.get("hint", "")),
        details if isinstance(details, dict) else {},
    )


def out_of_memory(exit_status: int | None) -> Failure:
    """The handler asked for more memory than it may have; `exit_status` is None when its process lives on."""
    return Failure(
        codes.RUNTIME,
        "the handler ran out of memory",
        "raise runtime.memory_gb in registry.yaml, or give the handler less to do",
        {"reason": "out of memory", "exit_status": exit_status},
    )


def process_ended(exit_status: int | None) -> Failure:
    """The handler's process ended in the middle of an execution, by itself."""
    if exit_status is None:
        return Failure(codes.RUNTIME, "the handler's process is gone", "see the logs", {"exit_status": None})
    if exit_status >= 0:
        how = f"the handler's process ended with exit status {exit_status}"
    else:
        how = f"the handler's process was ended by {signal_name(-exit_status)}"
    return Failure(codes.RUNTIME, how, "see the logs", {"exit_status": exit_status})


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11; `signal 64` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def timed_out(timeout_s: float) -> Failure:
    return Failure(
        codes.TIMEOUT,
        f"the execution took longer than {timeout_s:g} s",
        "give it more time: --timeout, or runtime.timeout_s in registry.yaml",
        {"timeout_s": timeout_s},
    )


def cancelled(by: str) -> Failure:
    """`by` is user, client or shutdown."""
    whom = {"user": "by the user", "client": "because its client went away", "shutdown": "because the runtime stops"}
    return Failure(codes.CANCELLED, f"the execution was cancelled {whom.get(by, 'by ' + by)}", "", {"by": by})


def limit(which: str, message: str, hint: str = "", **facts: Any) -> Failure:
    return Failure(codes.LIMIT, message, hint, {"limit": which, **facts})


def scratch_full(scratch_bytes: int) -> Failure:
    return limit(
        "scratch",
        f"scratch space is full: more than {scratch_bytes / 1024**3:g} GiB",
        "raise runtime.scratch_gb in registry.yaml, or write less",
        limit_bytes=scratch_bytes,
    )
