"""What a handler may write, and what is left of it."""

import time
from collections.abc import Callable

from tests.runtime.conftest import Runtime

# 50 MiB a second: past 20 MiB after 0.4 s.
STEADY_WRITER = """
    import time

    def run(context):
        for number in range(10_000):
            with open(f"{number}.bin", "wb") as file:
                file.write(bytes(2**20))
            time.sleep(0.02)
"""


def test_a_handler_past_its_space_is_ended_at_once(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(STEADY_WRITER, runtime={"scratch_gb": 0.02})
    began = time.monotonic()

    error = runtime.run().error

    assert (error["code"], error["details"]["limit"]) == ("ERR_LIMIT", "scratch")
    assert time.monotonic() - began < 2.5  # no grace: it would go on writing
