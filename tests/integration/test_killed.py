"""Commands that are killed at any moment: the next ones work, and no port, process or file is lost.

The moments are chosen by strace, which kills a command before one of its system calls. It follows the command
alone, never the processor that the command started.
"""

import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.processors import local, registry
from apps.processors.adapters.base import Container, Launch
from apps.processors.adapters.host import HostEngine
from apps.processors.adapters.host_process import Record
from apps.processors.envelope import new_execution_id
from apps.processors.reference import ProcessorRef
from apps.processors.state import LocalState
from tests.places import need_program, small_disk
from tests.processors import add_processor
from tests.shell import Outcome, Shell, copy_checkout

REF, NEIGHBOUR = "test/killed@1", "test/neighbour@1"
HANDLER = """
    import time
    from processor_runtime.handler import Cancelled

    def run(context):
        if context.inputs.get("wait"):
            context.token("waiting")
            try:
                time.sleep(600)
            except Cancelled:
                print("told to end", flush=True)
                raise
        context.write("a.bin", b"a")
        context.write("b.bin", b"b")
"""
SLOW, SLOW_HANDLER = (
    "test/slow@1",
    """
    import time
    time.sleep(600)
""",
)

# What changes a file, tells another process something, or waits for one: between two of these nothing happens
# that the next command could see.
CALLS = (
    "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "ftruncate,pidfd_send_signal,kill,wait4,poll"
)
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Moment:
    """Before the `number`th call of `call` that a command makes."""

    call: str
    number: int
    line: str

    def __str__(self) -> str:
        return f"before {self.call} number {self.number}, {self.line}"


@dataclass(frozen=True, slots=True)
class Place:
    """A terminal in a checkout with built processors."""

    cli: Shell
    engine: str
    others: int
    """How many runtimes besides REF's there are, all the time."""

    @property
    def state(self) -> Path:
        return self.cli.root / "code" / ".theory"

    @property
    def root_id(self) -> str:
        return hashlib.sha256(str(self.cli.root).encode()).hexdigest()[:8]

    def localctl(self, word: str, *words: str) -> Outcome:
        return self.cli("localctl", word, "--ref", REF, "--json", *words)

    def moments(self, *words: str, calls: str = CALLS) -> list[Moment]:
        """Each system call among `calls` of a command that is left to end by itself, and that had an effect."""
        log = self.cli.home / "strace.log"
        self._strace(["-o", str(log), "-e", f"trace={calls}"], *words)
        counts: dict[str, int] = {}
        found: list[Moment] = []
        for line in log.read_text().splitlines():
            if call := re.match(r"(\w+)\(", line):
                counts[call[1]] = counts.get(call[1], 0) + 1
                same = found and found[-1].line == line  # one of many looks whether it is ready
                if " = -1 E" not in line and not same:
                    found.append(Moment(call[1], counts[call[1]], line))
        return found

    def kill(self, moment: Moment, *words: str) -> bool:
        """Run a command that is killed at that moment; False when it ended before."""
        inject = f"inject={moment.call}:signal=SIGKILL:when={moment.number}"
        return self._strace(["-o", "/dev/null", "-e", f"trace={moment.call}", "-e", inject], *words) == -signal.SIGKILL

    def _strace(self, options: list[str], *words: str) -> int:
        argv = ["strace", "-qq", *options, *self.cli.argv(*words)]
        done = subprocess.run(argv, env=self.cli.environment(), cwd=self.cli.root, capture_output=True, timeout=60)
        assert done.returncode in (0, -signal.SIGKILL), done
        return done.returncode

    def change(self, *files: str) -> None:
        """Make the next build of REF one of new sources."""
        for file in files:
            path = self.cli.root / "code" / "processors" / REF.replace("@", "/") / file
            path.write_text(f"{path.read_text()}#\n")

    # what there is

    def read(self, name: str) -> Any:
        try:
            return json.loads((self.state / name).read_text())
        except FileNotFoundError:
            return {}

    def port(self) -> int | None:
        return self.read("local_ports.json").get(REF)

    def forget(self) -> None:
        """As if REF had never been started here."""
        ports = self.read("local_ports.json")
        ports.pop(REF, None)
        (self.state / "local_ports.json").write_text(json.dumps(ports))
        (self.state / "secrets.key").unlink(missing_ok=True)

    def of_neighbour(self) -> dict[str, Any]:
        """All that is known of the processor that nobody touches."""
        files = {"containers.json": "containers", "run_tokens.json": "tokens", "builds.json": "builds"}
        known = {name: self.read(name).get(key, {}).get(NEIGHBOUR) for name, key in files.items()}
        return {**known, "local_ports.json": self.read("local_ports.json").get(NEIGHBOUR)}

    def runtimes(self) -> set[str]:
        """All supervisors (pids) or containers (ids) of this checkout that run, known to a command or not."""
        if self.engine == "docker":
            return self.docker("ps", "--quiet", "--no-trunc", "--filter", f"label=theory.root={self.root_id}")
        mark = f"{self.state}/venvs/".encode()
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if (folder / "cmdline").read_bytes().startswith(mark):
                    parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        return {pid for pid, parent in parents.items() if parent not in parents}

    def known_runtimes(self) -> set[str]:
        """The same, as the state has them."""
        return {each["id"].partition("-")[0] for each in self.read("containers.json")["containers"].values()}

    def docker(self, *words: str) -> set[str]:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=30)
        return set(done.stdout.split())

    def leftovers(self) -> list[Path | str]:
        """What only a killed command would leave, once REF is stopped."""
        folders = (self.state, self.state / "logs", self.state / "processes", self.state / "scratch")
        hidden = [each for folder in folders for each in folder.glob(".*") if _LEFTOVER.fullmatch(each.name)]
        stopped = [each for folder in folders[2:] for each in folder.glob("*killed*")]
        mine = ("--quiet", "--filter", f"label=theory.root={self.root_id}")
        dockers = (
            self.docker("ps", "--all", *mine) | self.docker("volume", "ls", *mine) if self.engine == "docker" else ()
        )
        return [*hidden, *stopped, *dockers]


def prepared(folder: Path, engine: str, processors: dict[str, str]) -> Shell:
    need_program("strace")
    cli = Shell(copy_checkout(folder / "checkout"), home=folder, variables={"LOCAL_ENGINE": engine})
    for ref, handler in processors.items():
        add_processor(cli.root, ref, handler, outputs=("*.bin",), runtime={"concurrency": 1})
        built = cli("processorctl", "build", "--ref", ref, "--json", timeout_s=600)
        assert built.status == 0, built
    return cli


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """On the process engine, with a neighbour that runs all the time."""
    processors = {REF: HANDLER, NEIGHBOUR: HANDLER, SLOW: SLOW_HANDLER}
    cli = prepared(tmp_path_factory.mktemp("killed"), "process", processors)
    try:
        assert cli("localctl", "start", "--ref", NEIGHBOUR).status == 0
        yield Place(cli, "process", others=1)
    finally:
        cli.close()


@pytest.fixture(scope="module")
def docker_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    cli = prepared(tmp_path_factory.mktemp("killed"), "docker", {REF: HANDLER})
    try:
        yield Place(cli, "docker", others=0)
    finally:
        cli.close()


@contextmanager
def at(moment: Moment, follows: tuple[str, ...]) -> Iterator[None]:
    """Say in a failure which moment it is about."""
    try:
        yield
    except AssertionError as exc:
        exc.add_note(f"killed {moment}; then {', '.join(follows)}")
        raise


# What comes after a kill, so that each command in turn is the very next one. All end with `stop`.
FOLLOWS = (
    ("status", "start", "run", "stop"),
    ("start", "run", "status", "stop"),
    ("run", "start", "run", "stop"),
    ("stop", "start", "run", "stop"),
)
NOT_STARTED = 66


def follow(place: Place, words: tuple[str, ...], port: int | None) -> None:
    """The commands after a kill. Each does its own, and knows what the killed one did not tell."""
    started = False
    for word in words:
        done = place.localctl(word)
        assert done.status in ((0, NOT_STARTED) if word == "run" and not started else (0,)), (word, done)
        if word == "start":
            started = True
            rows = place.localctl("status").document["containers"]
            assert [(row["state"], row["health"]) for row in rows] == [("running", "ready")]
            assert port in (None, rows[0]["port"])
            assert place.port() == rows[0]["port"]
            assert place.runtimes() == place.known_runtimes()
            assert len(place.runtimes()) == place.others + 1
    assert place.localctl("status").document["containers"] == []
    assert place.leftovers() == []
    assert len(place.runtimes()) == place.others


def test_start_killed_before_any_system_call_loses_nothing(place: Place) -> None:
    words = ("localctl", "start", "--ref", REF, "--json")
    place.forget()
    moments = place.moments(*words)
    assert place.localctl("stop").status == 0
    neighbour = place.of_neighbour()
    assert {"write", "fsync", "rename", "mkdir"} <= {moment.call for moment in moments}

    for number, moment in enumerate(moments):
        follows = FOLLOWS[number % len(FOLLOWS)]
        with at(moment, follows):
            place.forget()
            place.kill(moment, *words)
            follow(place, follows, place.port())
            assert place.of_neighbour() == neighbour


def test_stop_killed_before_any_system_call_loses_nothing(place: Place) -> None:
    words = ("localctl", "stop", "--ref", REF, "--json")
    assert place.localctl("start").status == 0
    moments = place.moments(*words)
    port, neighbour = place.port(), place.of_neighbour()
    assert {"write", "fsync", "rename", "unlinkat", "rmdir"} <= {moment.call for moment in moments}

    for number, moment in enumerate(moments):
        follows = FOLLOWS[number % len(FOLLOWS)]
        with at(moment, follows):
            assert place.localctl("start").status == 0
            place.kill(moment, *words)
            follow(place, follows, port)
            assert place.of_neighbour() == neighbour


@pytest.mark.docker
@pytest.mark.parametrize("word", ["start", "stop"])
def test_a_command_killed_between_two_requests_to_docker_loses_nothing(docker_place: Place, word: str) -> None:
    words = ("localctl", word, "--ref", REF, "--json")
    before = ("start", "stop") if word == "start" else ("start",)
    assert [docker_place.localctl(each).status for each in before] == [0] * len(before)
    # What was asked for before is done, what was to be asked for is not.
    requests = [
        moment
        for moment in docker_place.moments(*words, calls="sendto,rename")
        if moment.call == "rename" or re.search(r'"(POST|PUT|DELETE) ', moment.line)
    ]
    port = docker_place.port()
    assert len(requests) > 4

    for number, moment in enumerate(requests):
        follows = FOLLOWS[number % len(FOLLOWS)]
        with at(moment, follows):
            assert docker_place.localctl(before[-1]).status == 0
            assert docker_place.kill(moment, *words)
            follow(docker_place, follows, port)


class Late(HostEngine):
    """An engine that carries out a launch of before just when the next one is asked for."""

    late = True

    def launch(self, launch: Launch) -> Container:
        if self.late:
            self.late = False
            super().launch(launch)
        return super().launch(launch)


def start(place: Place, engine: type[HostEngine]) -> local.Started:
    ref = ProcessorRef.parse(REF)
    return local.start(
        local.Starting(registry.load(place.cli.root, ref), {}),
        engine=engine(place.state, place.root_id),
        others=(),
        state=LocalState(place.state),
        root_id=place.root_id,
        progress=print,
        warn=print,
    )


def test_a_launch_that_is_carried_out_after_its_start_was_killed_is_replaced(place: Place) -> None:
    started = start(place, Late)

    (row,) = place.localctl("status").document["containers"]
    assert row["id"] == started.container.id
    assert place.runtimes() == place.known_runtimes()
    follow(place, ("run", "stop"), started.port)


def test_a_launch_that_the_next_start_does_not_see_can_not_be_carried_out_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"processor-test-killed-v1-{place.root_id}"
    under_way = place.state / "processes" / f".{name}.0123abcd"
    under_way.mkdir()
    (under_way / "process.json").write_text("{}")
    read, published = Record.read, []

    def look_and_publish(folder: Path) -> Record | None:
        found = read(folder)
        if folder.name == name:
            with suppress(OSError):
                published.append(under_way.rename(folder))
        return found

    monkeypatch.setattr(Record, "read", look_and_publish)

    started = start(place, HostEngine)

    assert published == []
    follow(place, ("run", "stop"), started.port)


@pytest.fixture
def started(place: Place) -> Iterator[Place]:
    assert place.localctl("start").status == 0
    yield place
    assert place.localctl("stop").status == 0


def wait_until(condition: Callable[[], object], *, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_start_leaves_nothing_running(place: Place, number: signal.Signals, status: int) -> None:
    process = place.cli.spawn("localctl", "start", "--ref", SLOW, "--json")
    wait_until(lambda: len(place.runtimes()) == 2)

    process.send_signal(number)
    stdout, _ = process.communicate(timeout=10)

    assert process.returncode == status
    assert json.loads(stdout)["error"]["code"] == "ERR_CANCELLED"
    assert len(place.runtimes()) == 1
    assert place.leftovers() == []
    assert place.cli("localctl", "status", "--ref", SLOW, "--json").document["containers"] == []


def test_a_killed_run_cancels_its_handler_after_a_while_and_the_container_goes_on(started: Place) -> None:
    wait = ("--inputs-json", '{"wait": true}', "--stream")
    process = started.cli.spawn("localctl", "run", "--ref", REF, "--json", *wait)
    printed = process.stdout
    assert printed is not None
    wait_until(lambda: '"token"' in printed.readline())
    before = started.runtimes()

    process.kill()

    wait_until(lambda: "told to end" in started.localctl("logs").stdout, timeout_s=40)
    assert started.localctl("run").status == 0
    assert started.runtimes() == before


def test_a_run_killed_before_any_output_receipt_or_index_appears_can_run_again(started: Place) -> None:
    words = ("localctl", "run", "--ref", REF, "--json", "--execution-id")
    links = [moment for moment in started.moments(*words, new_execution_id()) if moment.call == "linkat"]
    assert len(links) == 4

    for moment in links:
        with at(moment, ("run",)):
            again = new_execution_id()
            assert started.kill(moment, *words, again)

            envelope = started.cli(*words, again).document

            assert envelope["status"] == "success", envelope
            assert [Path(each["path"]).name for each in envelope["outputs"]] == ["a.bin", "b.bin"]
            folder = started.state / "artifacts" / envelope["index_path"].lstrip("/")
            index = json.loads(folder.read_text())
            assert index["outputs"] == envelope["outputs"]
            assert started.cli(*words, again).document == envelope


@pytest.mark.parametrize("step", ["collecting", "compiling", "taking a snapshot"])
def test_a_build_killed_in_any_step_does_not_disturb_the_next_one(place: Place, step: str) -> None:
    place.change("requirements.lock", "handler.py")
    process = place.cli.spawn("processorctl", "build", "--ref", REF)
    told = process.stderr
    assert told is not None
    wait_until(lambda: told.readline().startswith(step))

    process.kill()

    built = place.cli("processorctl", "build", "--ref", REF, "--json")
    assert built.status == 0, built
    for word in ("start", "run", "stop"):
        assert place.localctl(word).status == 0
    venvs = [json.loads(each.read_text())["venv"] for each in place.state.glob("images/*/*/image.json")]
    assert {each.name for each in place.state.glob("venvs/*")} == {Path(venv).name for venv in venvs}
    assert list(place.state.glob("images/*/.*")) == []


def test_what_a_killed_build_is_still_writing_is_left_to_a_later_one(place: Place) -> None:
    # Its pip outlives it for a while. A mounted disk is as hard to remove, and not by chance.
    abandoned = place.state / "venvs" / "abandoned"
    abandoned.mkdir()
    place.change("handler.py")

    for _ in small_disk(abandoned / "disk", size="64k"):
        assert place.cli("processorctl", "build", "--ref", REF).status == 0

    place.change("handler.py")
    assert place.cli("processorctl", "build", "--ref", REF).status == 0
    assert not abandoned.exists()
