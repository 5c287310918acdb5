"""What `modalctl` costs: words that need no SDK, and a run against a bare client. Needs Docker.

Modal is the peer of the tests (tests/modal_service), on this machine: what its service costs is not in here.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from bench.checkout import PROJECT, REF, Checkout, checkout
from bench.commands import PYTHON
from bench.images import absent, docker
from bench.measure import alternate, cpu_ms, median, rounds, say, table
from bench.pushing import registry

RUN: Final = ("run", "--ref", REF, "--env", "main", "--mode", "mock", "--json")
SDK: Final = {
    "MODAL_TOKEN_ID": "ak-of-the-tests",
    "MODAL_TOKEN_SECRET": "as-of-the-tests",
    "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",
    "MODAL_DISABLE_API_PROXY": "1",
}


def main() -> None:
    why = absent() or ("" if shutil.which("docker-registry") else "no docker-registry")
    if why:
        print(f"\nModal is left out: {why}")
        return
    with registry() as (address, _):
        prefix = f"{address}/theory-bench-{secrets.token_hex(4)}"
        try:
            with (
                _peer() as url,
                checkout("docker", PROCESSOR_REPOSITORY_PREFIX=prefix, MODAL_SERVER_URL=url, **SDK) as made,
            ):
                say("modalctl: building, pushing and deploying")
                made("processorctl", "build", "--ref", REF, "--platforms", "linux/amd64")
                image = made("processorctl", "push", "--ref", REF, "--platforms", "linux/amd64")["images"][0]["oci"]
                started = made("modalctl", "start", "--ref", REF, "--env", "main", "--oci", image)
                _report(made, started["url"])
        finally:
            if images := docker("image", "ls", "--quiet", "--filter", f"reference={prefix}/*").split():
                docker("image", "rm", "--force", *dict.fromkeys(images))


@contextmanager
def _peer() -> Iterator[str]:
    argv = [sys.executable, "-m", "tests.modal_service"]
    process = subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.stdin.close()
            process.wait(60)


def _report(made: Checkout, url: str) -> None:
    bare = [PYTHON, str(PROJECT / "bench/bare_client.py"), f"ws{url[4:]}/run", REF, os.fspath(made.root / "bare")]
    headers = json.dumps(_headers(made))
    measures = {
        "`localctl --help`": partial(cpu_ms, made.argv("localctl", "--help"), made.environment),
        "`modalctl --help`": partial(cpu_ms, made.argv("modalctl", "--help"), made.environment),
        "`modalctl start`, a usage error": partial(
            cpu_ms, made.argv("modalctl", "start", "--json"), made.environment, status=2
        ),
        "python -c 'import modal'": partial(cpu_ms, [PYTHON, "-c", "import modal"], made.environment),
        "bare client, same messages and files": partial(cpu_ms, bare, made.environment, headers),
        "`modalctl run --mode mock`": partial(cpu_ms, made.argv("modalctl", *RUN), made.environment),
    }
    for measure in measures.values():  # compiles what has no bytecode yet
        measure()
    say("modalctl: CPU")
    taken = alternate(measures, rounds(15, 3))
    base = median(taken["`localctl --help`"])
    client = median(taken["bare client, same messages and files"])
    rows = [
        (name, f"{median(times):.0f} ({min(times):.0f})", median(times) / base, median(times) / client)
        for name, times in taken.items()
    ]
    note = f"CPU is user + system; medians of {rounds(15, 3)} rounds."
    table("`modalctl`", ("", "CPU ms: median (least)", "x `localctl --help`", "x bare client"), rows, note)


def _headers(made: Checkout) -> dict[str, str]:
    """What opens the URL: the proxy credentials that `start` kept, and a session."""
    proxy: dict[str, Any] = made.state("modal_tokens.json")["tokens"]["proxy"]
    script = (
        "import modal\n"
        "print(modal.Server.from_name('llm-litellm-v1', 'Server', environment_name='main').sessions.start().token)"
    )
    done = subprocess.run([PYTHON, "-c", script], env=made.environment, capture_output=True, text=True, check=True)
    session = f"Bearer {done.stdout.strip()}"
    return {"Modal-Key": proxy["id"], "Modal-Secret": proxy["secret"], "Modal-Authorization": session}
