"""`make bench`: every figure of docs/benchmarks.md, as Markdown on stdout. `make bench BENCH=short`: under a minute.

Nothing here asserts a time. The exit status is 1 when something could not be measured at all.
"""

import os
import platform
import sys
import time
import traceback

from bench import commands, images, pushing, remote, serving, uploads
from bench.measure import say, table


def main() -> int:
    began = time.monotonic()
    load = os.getloadavg()[0]
    failed = 0
    for section in (commands.main, serving.main, images.main, pushing.main, uploads.main, remote.main):
        try:
            section()
        except Exception:  # the other figures are worth having
            traceback.print_exc()
            failed = 1
    cores, python = os.cpu_count(), platform.python_version()
    machine = f"{cores} cores, {platform.machine()}, Linux {platform.release()}, Python {python}"
    loads = f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    rows = [("machine", machine), ("date", time.strftime("%Y-%m-%d")), ("load", loads)]
    table("Where", ("", ""), rows)
    say(f"done in {time.monotonic() - began:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
