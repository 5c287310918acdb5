"""The pool of workers by itself: what no runtime can be brought to at will."""

import asyncio
import json
import socket
from pathlib import Path

from processor_runtime.environment import Environment
from processor_runtime.failures import process_ended
from processor_runtime.pool import Pool
from processor_runtime.workers import Worker

from tests.runtime.conftest import spec


async def lose_a_worker_after_the_end(environment: Environment) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        pool = Pool(environment, {}, ours, changed=lambda: None, stillborn=lambda *_: None, fatal=lambda _: None)
        pool.close()
        await asyncio.get_running_loop().shutdown_default_executor()
        pool.lost(Worker(pool, 1, "mock"), process_ended(0))


def test_a_worker_that_ends_after_the_runtime_is_no_error(tmp_path: Path) -> None:
    variables = {
        "PORT": "0",
        "THEORY_BIND": "127.0.0.1",
        "THEORY_SCRATCH": str(tmp_path),
        "THEORY_SPEC": json.dumps(spec()),
    }

    asyncio.run(lose_a_worker_after_the_end(Environment.read({**variables, "THEORY_IMAGE_DIGEST": "sha256:0"})))
