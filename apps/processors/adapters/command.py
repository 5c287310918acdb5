"""The one door to other programs: run to the end (`run`), or line by line (`spawn`)."""

import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.errors import ConfigurationError, TimedOut

TAIL_LINES: Final = 50
"""Lines of output that CommandFailed keeps."""
GRACE_S: Final = 5.0
"""What a child gets between SIGTERM and SIGKILL."""

_LONGEST_LINE: Final = 65536  # characters; a longer line comes in pieces, so that memory stays flat
# A password or a token in a URL; the digest of docker-image://python@sha256:… is none.
_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@(?!sha256:))")


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program that ended left: its output, and its status (minus the number of the signal that ended it)."""

    stdout: str
    stderr: str
    status: int


class CommandFailed(Exception):
    """`spawn`: the program ended with a status other than 0. An adapter says what that means."""

    def __init__(self, argv: Sequence[str], status: int, lines: Sequence[str]) -> None:
        super().__init__(f"{Path(argv[0]).name} ended with status {status}")
        self.status, self.lines = status, list(lines)
        """The last lines that it wrote, at most TAIL_LINES."""


class CommandMissing(ConfigurationError):
    """The program is not installed, or may not be executed."""


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    redact: Sequence[str] = (),
    input: str | None = None,
) -> Completed:
    """Run `argv` to its end, whatever its status; without `input` its stdin is empty.

    `env` is the whole environment of the program (None: ours). Values in `redact`, and what stands before the @
    of a URL, appear in neither output.
    Raises CommandMissing, and TimedOut when it is still at work after `timeout_s`; it is ended then.
    """
    with _child(argv, env=env, cwd=cwd, stdin=input is not None, merged=False) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise _slow(argv, timeout_s) from exc
    return Completed(_redacted(stdout, redact), _redacted(stderr, redact), process.returncode)


def spawn(
    argv: Sequence[str],
    *,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    redact: Sequence[str] = (),
) -> Generator[str, None, None]:
    """Run `argv` and yield each line as it comes, stdout and stderr in one stream, without line ends.

    Ends with the program; whoever stops iterating (close, Ctrl-C, SIGTERM) ends it. `timeout_s` None: no limit.
    Raises CommandMissing, CommandFailed (any status but 0), TimedOut.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with _child(argv, env=env, cwd=cwd, stdin=False, merged=True) as process, _limit(process, timeout_s) as expired:
        assert process.stdout is not None  # noqa: S101  a pipe was asked for
        while line := process.stdout.readline(_LONGEST_LINE):
            tail.append(_redacted(line.rstrip("\n"), redact))
            yield tail[-1]
        process.wait()
    if expired.is_set():
        raise _slow(argv, timeout_s or 0)
    if process.returncode:
        raise CommandFailed(argv, process.returncode, tail)


@contextmanager
def _child(
    argv: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path | None, stdin: bool, merged: bool
) -> Iterator["subprocess.Popen[str]"]:
    try:
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape" if not merged else "replace",  # file names come back whole from `run`
            # A terminal's Ctrl-C reaches us alone: we end the child in order, and then clean up after it.
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as exc:
        if exc.filename != argv[0]:  # the folder to run in, not the program
            raise
        raise CommandMissing(f"{argv[0]} can't be run: {exc.strerror}", hint=f"install {argv[0]}") from exc
    with process:  # closes the pipes
        try:
            yield process
        finally:
            if process.returncode is None:
                _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """End the child and what it started: SIGTERM, and SIGKILL after a grace or a second Ctrl-C."""
    try:
        _signal(process, signal.SIGTERM)
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; or (macOS) only zombies are left
        os.killpg(process.pid, number)


@contextmanager
def _limit(process: "subprocess.Popen[str]", timeout_s: float | None) -> Iterator[threading.Event]:
    """An event that is set when `timeout_s` passed and the child was told to end."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _signal(process, signal.SIGKILL)

    timer = threading.Timer(timeout_s or 0, expire)
    timer.daemon = True
    if timeout_s is not None:
        timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def _slow(argv: Sequence[str], timeout_s: float) -> TimedOut:
    return TimedOut(f"{Path(argv[0]).name} did not end within {timeout_s:g} s", hint="try again")


def _redacted(text: str, secrets: Sequence[str]) -> str:
    """`text` without secret values, and without the user and password of any URL."""
    for value in sorted(filter(None, secrets), key=len, reverse=True):  # a value may hold a shorter one
        text = text.replace(value, "***")
    return _USERINFO.sub("***", text)
