"""`python -m processor_runtime`: fork the template, then serve."""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from processor_runtime import scratch, system, template
from processor_runtime.environment import BadEnvironment, Environment, take_secrets


def main() -> int:
    """The exit status: 0 after a stop, 1 when the handler can't be imported, 69 for a taken port, 78 for a bad
    environment."""
    _log_to_stderr()
    try:
        environment = Environment.read(os.environ)
        scratch.prepare(environment.scratch)
    except BadEnvironment as exc:
        sys.stderr.write(f"processor_runtime: {exc}\n")
        return 78
    except OSError as exc:
        sys.stderr.write(f"processor_runtime: THEORY_SCRATCH is not usable: {exc}\n")
        return 78
    secrets = take_secrets(environment.spec)
    control = _fork_template(environment, secrets)
    return _serve(environment, secrets, control)


def _fork_template(environment: Environment, secrets: dict[str, str]) -> socket.socket:
    """Before any socket or thread exists, so that no worker inherits one; our end of its control channel."""
    ours, theirs = socket.socketpair()
    supervisor = os.getpid()
    system.adopt_orphans()
    if os.fork() == 0:
        ours.close()
        secrets.clear()
        template.main(theirs, replace(environment, token=""), supervisor)  # nor shall a handler have the token
    theirs.close()
    return ours


def _serve(environment: Environment, secrets: dict[str, str], control: socket.socket) -> int:
    system.raise_open_files()
    from processor_runtime.server import Runtime  # after the fork: the template needs none of it

    async def run() -> int:
        return await Runtime(environment, secrets, control).run()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: a third less work for many small messages."""
    try:
        import uvloop
    except ImportError:
        return None
    new: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ runtime: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log = logging.getLogger("processor_runtime")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
