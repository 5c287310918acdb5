"""An output of 1 GiB over the socket: memory stays flat at both ends, and a cancel is immediate."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processors import add_processor
from tests.shell import Shell, copy_checkout

REF = "test/large@1"
MIB = 2**20
SIZE_BYTES = 1024 * MIB
MAY_GROW_BYTES = 48 * MIB
HANDLER = """
    def run(context):
        pieces = context.inputs.get("mib", 1)
        context.write("large.bin", (number.to_bytes(8, "big") * 2**17 for number in range(pieces)))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A started processor on the process engine, and a terminal."""

    cli: Shell

    @property
    def state(self) -> Path:
        return self.cli.root / "code" / ".theory"

    @property
    def uploads(self) -> Path:
        """Where files are while they arrive."""
        return self.state / "artifacts" / ".tmp"

    def spawn(self, mib: int) -> subprocess.Popen[str]:
        return self.cli.spawn("localctl", "run", "--ref", REF, "--inputs-json", json.dumps({"mib": mib}), "--json")

    def runtime(self) -> list[int]:
        """The pids of the supervisor and of all that descends from it."""
        (record,) = self.state.glob("processes/*/process.json")
        found = [json.loads(record.read_text())["pid"]]
        for pid in found:  # which grows meanwhile
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def arriving_bytes(self) -> int:
        total = 0
        for each in self.uploads.iterdir():
            with suppress(FileNotFoundError):  # stored meanwhile
                total += each.stat().st_size
        return total

    def scratch_bytes(self) -> int:
        return sum(each.stat().st_size for each in self.state.glob("scratch/*/*/*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 3 * SIZE_BYTES:
        pytest.fail(f"needs 3 GiB on the disk of {folder}")
    root = copy_checkout(folder / "checkout")
    add_processor(root, REF, HANDLER, outputs=("*.bin",), runtime={"scratch_gb": 2, "memory_gb": 0.5})
    cli = Shell(root, home=folder, variables={"LOCAL_ENGINE": "process"})
    try:
        for words in (("processorctl", "build"), ("localctl", "start")):
            done = cli(*words, "--ref", REF, "--json", timeout_s=600)
            assert done.status == 0, done
        yield Place(cli)
    finally:
        cli.close()
        shutil.rmtree(root / "code" / ".theory" / "artifacts", ignore_errors=True)


def peak_bytes(pid: int) -> int:
    """The most memory that the process has ever held at once; 0 when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def watched(process: subprocess.Popen[str]) -> tuple[dict[str, Any], int]:
    """The envelope of a run, and the most memory that its command held.

    Not the resource usage of wait4(2): that counts what the parent held when it forked.
    """
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process.pid))
        time.sleep(0.02)
    stdout, _ = process.communicate()
    return json.loads(stdout), peak


def wait_until(condition: Callable[[], object], *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_gibibyte_goes_through_in_flat_memory(place: Place) -> None:
    envelope, command = watched(place.spawn(1))
    assert envelope["status"] == "success", envelope
    before = {pid: peak_bytes(pid) for pid in place.runtime()}

    envelope, command_with_much = watched(place.spawn(SIZE_BYTES // MIB))

    assert [each["size_bytes"] for each in envelope["outputs"]] == [SIZE_BYTES], envelope
    grown = {pid: peak_bytes(pid) - before.get(pid, 0) for pid in place.runtime() if pid in before}
    assert command_with_much - command < MAY_GROW_BYTES
    assert grown
    assert max(grown.values()) < MAY_GROW_BYTES
    (place.state / "artifacts" / envelope["outputs"][0]["path"].lstrip("/")).unlink()


def test_a_cancel_in_the_middle_of_a_gibibyte_is_immediate(place: Place) -> None:
    process = place.spawn(SIZE_BYTES // MIB)
    wait_until(lambda: place.arriving_bytes() > 64 * MIB)
    began = time.monotonic()

    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)

    assert time.monotonic() - began < 3
    assert process.returncode == 130
    envelope = json.loads(stdout)
    assert envelope["error"]["code"] == "ERR_CANCELLED"
    assert envelope["partial_outputs"] == []
    assert list(place.uploads.iterdir()) == []
    wait_until(lambda: place.scratch_bytes() == 0, timeout_s=5)
    assert watched(place.spawn(1))[0]["status"] == "success"
