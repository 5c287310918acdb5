"""What a handler does to itself or to its machine: its own error, in time, and nothing to anybody else.

Through the commands, on both engines; tests/runtime/test_crash.py looks at the runtime alone.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processors import add_processor
from tests.shell import Outcome, Shell, copy_checkout

REF = "test/crash@1"
ENDS_WITHIN_S = 10.0
LIMITS = {"memory_gb": 0.2, "scratch_gb": 0.02, "timeout_s": 60, "concurrency": 3}
HANDLER = """
    import ctypes, mmap, os, signal, tempfile, time

    RELEASED = os.path.join(os.environ["THEORY_SCRATCH"], "released")  # outside every execution's own folder
    MIB = 2**20

    def run(context):
        globals()[context.inputs["do"]](context)

    def wait(context):
        while not os.path.exists(RELEASED):
            context.token("waiting ")
            time.sleep(0.02)
        os.unlink(RELEASED)
        context.write("waited.txt", "to the end")

    def release(context):
        open(RELEASED, "w").close()

    def fits(context):  # whatever ran before left room
        for folder in ("/tmp", "."):
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.write(bytes(8 * MIB))

    def raises(context):
        raise ValueError("no such luck")

    def exits(context):
        os._exit(3)

    def faults(context):
        ctypes.string_at(0)

    def hoards(context):
        hoard = []
        while True:
            hoard.append(bytearray(b"x" * 8 * MIB))

    def takes_at_once(context):
        bytearray(2**40)

    def hoards_shared_memory(context):  # which no limit of a process counts, only the container's
        hoard = []
        while True:
            block = mmap.mmap(-1, 8 * MIB)
            block.write(b"x" * len(block))
            hoard.append(block)

    def fills_slash_tmp(context):
        for number in range(99):
            with open(f"/tmp/{context.execution_id}-{number}", "wb") as file:
                file.write(bytes(15 * MIB))

    def writes_one_file_in_slash_tmp(context):
        with open(f"/tmp/{context.execution_id}-0", "wb") as file:
            while True:
                file.write(bytes(MIB))

    def fills_tempfile(context):
        while True:
            with tempfile.NamedTemporaryFile(delete=False) as file:
                file.write(bytes(MIB))

    def writes_one_file(context):
        with open("here.bin", "wb") as file:
            while True:
                file.write(bytes(MIB))

    def writes_many_files(context):
        number = 0
        while True:
            number += 1
            with open(f"{number}.bin", "wb") as file:
                file.write(bytes(MIB))

    def outputs_one(context):
        context.write("big.bin", (bytes(MIB) for _ in iter(int, 1)))

    def outputs_many(context):
        number = 0
        while True:
            number += 1
            context.write(f"{number}.bin", bytes(15 * MIB))

    def loops(context):
        while True:
            pass

    def loops_in_c(context):  # no signal is looked at before it ends
        sum(range(10**12))

    def loops_deaf(context):
        for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        while True:
            pass
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A started processor, and a terminal."""

    cli: Shell
    engine: str

    def line(self, do: str, *words: str) -> list[str]:
        document = json.dumps({"do": do})
        return ["localctl", "run", "--ref", REF, "--inputs-json", document, "--json", *words]

    def run(self, do: str, *words: str) -> Outcome:
        return self.cli(*self.line(do, *words), timeout_s=30)

    def supervisor(self) -> dict[str, Any]:
        """Which process serves, and since when."""
        (row,) = self.cli("localctl", "status", "--ref", REF, "--json").document["containers"]
        if self.engine == "docker":
            form = '{"pid":{{json .State.Pid}},"since":{{json .State.StartedAt}}}'
            argv = ["docker", "inspect", "--format", form, row["id"]]
            return dict(json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=30).stdout))
        record = self.cli.root / "code" / ".theory" / "processes" / row["name"] / "process.json"
        pid = json.loads(record.read_text())["pid"]
        return {"pid": pid, "since": Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]}


DOCKER = pytest.param("docker", marks=pytest.mark.docker)


@pytest.fixture(scope="module", params=["process", DOCKER])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("crash")
    root = copy_checkout(folder / "checkout")
    add_processor(root, REF, HANDLER, outputs=("*.bin", "*.txt"), runtime=LIMITS)
    cli = Shell(root, home=folder, variables={"LOCAL_ENGINE": request.param})
    try:
        for words in (("processorctl", "build"), ("localctl", "start")):
            done = cli(*words, "--ref", REF, "--json", timeout_s=600)
            assert done.status == 0, done
        yield Place(cli, request.param)
    finally:
        cli.close()


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of the handler, and what must come of it."""

    do: str
    code: str
    details: dict[str, Any]
    words: tuple[str, ...] = ()


OUT_OF_MEMORY = {"reason": "out of memory"}
SCRATCH_FULL = {"limit": "scratch"}
SHORT = ("--timeout", "0.5")
CASES = [
    Case("raises", "ERR_RUNTIME", {}),
    Case("exits", "ERR_RUNTIME", {"exit_status": 3}),
    Case("faults", "ERR_RUNTIME", {"exit_status": -11}),
    Case("hoards", "ERR_RUNTIME", OUT_OF_MEMORY),
    Case("takes_at_once", "ERR_RUNTIME", OUT_OF_MEMORY),
    Case("fills_tempfile", "ERR_LIMIT", SCRATCH_FULL),
    Case("writes_one_file", "ERR_LIMIT", SCRATCH_FULL),
    Case("writes_many_files", "ERR_LIMIT", SCRATCH_FULL),
    Case("outputs_one", "ERR_LIMIT", SCRATCH_FULL),
    Case("outputs_many", "ERR_LIMIT", SCRATCH_FULL),
    Case("writes_one_file_in_slash_tmp", "ERR_LIMIT", {}),
    Case("loops", "ERR_TIMEOUT", {"timeout_s": 0.5, "step": "interrupt"}, SHORT),
    Case("loops_in_c", "ERR_TIMEOUT", {"timeout_s": 0.5, "step": "terminate"}, SHORT),
    Case("loops_deaf", "ERR_TIMEOUT", {"timeout_s": 0.5, "step": "kill"}, SHORT),
]
# What only a container bounds: a host's /tmp is the host's, and no limit of a process counts shared memory.
CONTAINER_CASES = [
    Case("fills_slash_tmp", "ERR_LIMIT", {"limit": "tmp"}),
    Case("hoards_shared_memory", "ERR_RUNTIME", {**OUT_OF_MEMORY, "exit_status": -9}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.do)
def test_a_crash_has_its_own_error_in_time_and_touches_nothing_else(place: Place, case: Case) -> None:
    crash(place, case)


@pytest.mark.parametrize("case", CONTAINER_CASES, ids=lambda case: case.do)
@pytest.mark.parametrize("place", [DOCKER], indirect=True)
def test_what_no_limit_of_a_process_bounds_is_bounded_in_a_container(place: Place, case: Case) -> None:
    crash(place, case)


def crash(place: Place, case: Case) -> None:
    """One execution that ends badly, beside one that must not notice."""
    before = place.supervisor()
    good = place.cli.spawn(*place.line("wait", "--stream"))
    assert good.stdout is not None
    while '"token"' not in good.stdout.readline():
        assert good.poll() is None, good.communicate()
    began = time.monotonic()

    bad = place.run(case.do, *case.words)

    took_s = time.monotonic() - began
    envelope = bad.document
    for leftover in Path("/tmp").glob(f"{envelope['execution_id']}-*"):
        leftover.unlink()
    assert envelope["error"]["code"] == case.code, bad
    assert case.details.items() <= envelope["error"]["details"].items(), envelope
    assert bad.status == (75 if case.code == "ERR_TIMEOUT" else 1)
    assert envelope["meta"]["started_at"]
    assert took_s < ENDS_WITHIN_S

    assert good.poll() is None
    assert place.run("release").status == 0
    assert json.loads(good.communicate(timeout=10)[0].splitlines()[-1])["status"] == "success"
    assert place.run("fits").status == 0
    assert place.supervisor() == before
