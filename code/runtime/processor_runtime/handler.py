"""What a processor's author sees: the context that `run(context)` gets, and the errors to raise.

`docs/writing-a-processor.md` is its prose.
"""

import math
import random
from collections.abc import Callable, Iterable
from os import PathLike
from typing import IO, Any, Final, NoReturn

from processor_runtime import codes
from processor_runtime.events import fragment
from processor_runtime.failures import Failure

TOKEN_CHARACTERS: Final = 64 * 1024  # a longer text becomes several events
LOG_CHARACTERS: Final = 32 * 1024
LEVELS: Final = frozenset(("debug", "info", "warning", "error"))

Content = bytes | bytearray | memoryview | str | PathLike[str] | IO[bytes] | IO[str] | Iterable[bytes] | Iterable[str]


class Cancelled(BaseException):
    """Raised inside a sync handler when the execution is cancelled or its time is over.

    Clean up and let it go on: the process is ended 2 s later. Async handlers get asyncio.CancelledError.
    """


class ProcessorError(Exception):
    """An error that says by itself what the envelope shall say."""

    code = codes.RUNTIME

    def __init__(self, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.details = message, hint, details or {}

    def failure(self) -> Failure:
        return Failure(self.code, self.message, self.hint, self.details)


class ProviderError(ProcessorError):
    """A provider refused or failed: ERR_PROVIDER.

    Args:
        message: what the provider said; secret values in it are blanked.
        status: its HTTP status, None when there was no answer.
        provider: its name, e.g. openai.
        retryable: whether the same call may succeed later.
    """

    code = codes.PROVIDER

    def __init__(
        self, message: str, *, status: int | None = None, provider: str | None = None, retryable: bool = False
    ) -> None:
        hint = "try again later" if retryable else ""
        super().__init__(
            message, hint=hint, details={"status": status, "provider": provider, "retryable": bool(retryable)}
        )


class OutputInvalid(ProcessorError):
    """`write` was given a path that the spec does not allow: ERR_OUTPUT_INVALID."""

    code = codes.OUTPUT_INVALID


class InputsInvalid(ProcessorError):
    """The inputs are wrong in a way that no schema can say: ERR_INPUTS.

    Args:
        message: what is wrong with what.
        pointer: where in the inputs, as a JSON pointer (RFC 6901), e.g. /params/image.
        details: further facts for programs.
    """

    code = codes.INPUTS

    def __init__(
        self, message: str, *, pointer: str = "", hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint=hint, details={"pointer": pointer, **(details or {})})


class Context:
    """One execution, as its handler sees it."""

    inputs: dict[str, Any]
    """The whole document, `{"schema": "v1", "params": {…}}`, checked against the spec's schema."""
    mode: str
    """mock or real."""
    execution_id: str
    cancelled: bool
    """Whether the execution was asked to end: for loops in threads, which no exception reaches."""

    def __init__(
        self,
        request: dict[str, Any],
        *,
        emit: Callable[[bytes], None],
        write: Callable[[str, Content], None],
        redact: Callable[[str], str],
    ) -> None:
        self.inputs, self.mode, self.execution_id = request["inputs"], request["mode"], request["execution_id"]
        self.cancelled = False
        self._digest: str = request["inputs_digest"]
        self._emit, self._write, self._redact = emit, write, redact
        self._random: random.Random | None = None

    def end(self) -> None:
        """The runtime's: nothing more comes from this execution, whoever kept its context."""
        self._emit = self._write = _ended

    @property
    def random(self) -> random.Random:
        """A random number generator whose numbers follow from the inputs alone."""
        if self._random is None:
            self._random = random.Random(self._digest)  # noqa: S311
        return self._random

    def token(self, text: str) -> None:
        """Send a piece of text to the client, at once. Secret values are blanked."""
        if not isinstance(text, str):
            raise TypeError(f"token() takes a str, not {type(text).__name__}")
        text = self._redact(text)
        for at in range(0, len(text), TOKEN_CHARACTERS):
            self._emit(fragment("token", {"text": text[at : at + TOKEN_CHARACTERS]}))

    def log(self, message: str, level: str = "info") -> None:
        """Send a line to the client: level debug, info, warning or error. Secret values are blanked."""
        if level not in LEVELS:
            raise ValueError(f"log level {level!r} is none of {', '.join(sorted(LEVELS))}")
        message = self._redact(str(message))
        if len(message) > LOG_CHARACTERS:
            message = message[: LOG_CHARACTERS - 1] + "…"
        self._emit(fragment("log", {"level": level, "message": message}))

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        """Say how far the execution is: `done` of `total` (None: unknown) in `unit`."""
        unit = self._redact(str(unit))
        data = {"done": _number(done), "total": None if total is None else _number(total), "unit": unit}
        self._emit(fragment("progress", data))

    def metric(self, name: str, value: float, unit: str = "") -> None:
        """Report a figure, e.g. metric("tokens_out", 128, "token"). Secret values in its words are blanked."""
        name, unit = self._redact(str(name)), self._redact(str(unit))
        self._emit(fragment("metric", {"name": name, "value": _number(value), "unit": unit}))

    def write(self, path: str, content: Content) -> None:
        """Write one output: spooled to disk now, on its way to the store while the handler goes on.

        Args:
            path: relative, with "/"; an entry of `outputs` in registry.yaml must match it.
            content: bytes, str (as UTF-8), a path object, an open file, or an iterator of bytes or str.

        Raises:
            OutputInvalid: the path is malformed, holds a secret's value, matches no entry, or was written before.
        """
        if isinstance(path, str) and (shown := self._redact(path)) != path:
            raise OutputInvalid(f"output path {shown!r} holds a secret's value")
        self._write(path, content)


def _ended(*_: object) -> NoReturn:
    raise RuntimeError("this execution has ended: a context serves one run(context) only")


def _number(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return value
