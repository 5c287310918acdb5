"""The process engine with real processes: a stand-in runtime that does what the test says, killed at every point."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from apps.errors import BuildFailed, EngineFailed, ImageNotFound, ImagePullFailed
from apps.processors.adapters import host
from apps.processors.adapters.base import BuildRequest, BuiltImage, Container, Launch, Limits, NameTaken, PortTaken
from apps.processors.adapters.host import HostEngine, own_platform
from apps.processors.adapters.host_build import HostBuilder
from apps.processors.adapters.host_process import Record
from apps.processors.adapters.host_shim import start_time
from apps.processors.reference import ImageReference, ProcessorRef

REF = ProcessorRef.parse("test/stub@1")
ROOT_ID = "0123abcd"
NAME = f"processor-{REF.slug}-{ROOT_ID}"
SECRET = "sk-very-secret"
# A runtime's stand-in: a template of its own session that outlives it unless somebody ends it, and a daemon of that.
FAMILY = """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
        time.sleep(600)
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
    print("ready", flush=True)
    time.sleep(600)
"""


def waited(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes_in(folder: Path) -> list[int]:
    """Every process that works in `folder` or was told of it; the shim hides, unless root looks."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            place, told = os.readlink(entry / "cwd"), (entry / "environ").read_bytes()
        except OSError:
            continue
        if start_time(int(entry.name)) and (place.startswith(str(folder)) or str(folder).encode() in told):
            found.append(int(entry.name))
    return found


class Place:
    """A checkout with one processor, whose runtime runs the Python text in the variable STUB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "code" / ".theory"
        self.source = root / "code" / "processors" / "test" / "stub" / "1"
        self.engine = HostEngine(self.state, ROOT_ID)

    def write(self) -> "Place":
        package = self.root / "code" / "runtime" / "processor_runtime"
        for folder in (package, self.source):
            folder.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text("import os, signal, sys, time\nexec(os.environ['STUB'])\n")
        (self.source / "handler.py").write_text("WHAT = 'as built'\n")
        (self.source / "Dockerfile").write_text("FROM scratch\n")
        (self.source / "requirements.lock").touch()
        return self

    def build(
        self, digest: str = "a" * 64, environment: Mapping[str, str] | None = None, said: list[str] | None = None
    ) -> BuiltImage:
        builder = HostBuilder(self.state, self.root, environment if environment is not None else os.environ)
        request = BuildRequest(
            ref=REF,
            root=self.root,
            context=self.root / "code",
            dockerfile=self.source / "Dockerfile",
            repository="localhost/test-stub",
            tag="1-aaaaaaaaaaaa",
            source_digest=f"sha256:{digest}",
            platforms=(own_platform(),),
            base=None,
            revision=None,
            created_epoch_s=0,
        )
        (image,) = builder.build(request, progress=(said if said is not None else []).append)
        return image

    def launch(self, stub: str = "time.sleep(600)", *, name: str = NAME, port: int | None = None) -> Launch:
        return Launch(
            name=name,
            ref=REF,
            image=f"images/{REF.slug}/{'a' * 12}",
            platform=own_platform(),
            container_port=8000,
            host_port=port or free_port(),
            environment={"STUB": textwrap.dedent(stub), "OPENAI_API_KEY": SECRET},
            labels={"theory.ref": str(REF), "theory.root": ROOT_ID},
            limits=Limits(cpu=1, memory_bytes=1 << 30, scratch_bytes=1 << 30, gpu=None),
        )

    def start(self, stub: str = "time.sleep(600)") -> Container:
        return self.engine.launch(self.launch(stub))

    def lines(self, container: Container) -> list[str]:
        return [line.line for line in self.engine.logs(container)]

    def after(self, container: Container) -> Container:
        """The container once it ended."""
        assert waited(lambda: self.now(container).state != "running"), "it still runs"
        return self.now(container)

    def now(self, container: Container) -> Container:
        (found,) = [each for each in self.engine.containers() if each.id == container.id]
        return found

    def record(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.state / "processes" / NAME / "process.json").read_text())
        return document

    def clear(self) -> None:
        for container in self.engine.containers():
            self.engine.remove(container)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A build that the tests share: an empty virtual environment takes a second."""
    place = Place(tmp_path_factory.mktemp("built")).write()
    place.build()
    return place


@pytest.fixture
def place(tmp_path: Path, built: Place) -> Iterator[Place]:
    """A checkout of the test's own, with the shared build in it; no process of it is left at the end."""
    place = Place(tmp_path / "checkout").write()
    place.state.mkdir()
    for name in ("venvs", "images"):
        (place.state / name).symlink_to(built.state / name)
    yield place
    place.clear()
    assert waited(lambda: not processes_in(place.state)), processes_in(place.state)


# launch


def test_a_launched_processor_is_found_while_it_runs(place: Place) -> None:
    container = place.start()

    assert place.engine.containers() == [container]
    assert (container.state, container.name, container.exit_status) == ("running", NAME, None)
    assert container.labels["theory.ref"] == str(REF)


def test_another_checkout_does_not_see_it(place: Place) -> None:
    place.start()

    assert HostEngine(place.state, "ffffffff").containers() == []


def test_the_process_gets_its_own_variables_and_none_of_the_callers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY", "PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD_", "TZ"):
        monkeypatch.setenv(name, "the caller's")

    container = place.start("import json; print(json.dumps(dict(os.environ)))")

    place.after(container)
    variables = json.loads(place.lines(container)[0])
    given = {"STUB", "OPENAI_API_KEY", "PORT", "THEORY_BIND", "THEORY_SCRATCH"}
    fixed = {"PATH", "HOME", "LC_ALL", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONUNBUFFERED"}
    fixed |= {"PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH", "OMP_NUM_THREADS"}
    assert set(variables) == given | fixed
    assert "the caller's" not in variables.values()
    assert variables["PORT"] == str(container.host_port)
    assert variables["THEORY_BIND"] == "127.0.0.1"


def test_the_process_has_private_scratch_space_and_works_in_its_snapshot(place: Place) -> None:
    container = place.start(
        "print(oct(os.stat(os.environ['THEORY_SCRATCH']).st_mode)[-3:], os.getcwd(), __import__('handler').WHAT)"
    )

    place.after(container)
    snapshot = (place.state / "images" / REF.slug / ("a" * 12) / "app").resolve()
    assert place.lines(container) == [f"700 {snapshot} as built"]


def test_a_secret_is_in_no_file_and_on_no_command_line(place: Place) -> None:
    container = place.start()
    shim = Path("/proc", str(place.record()["shim_pid"]))

    told = [(shim / "cmdline").read_bytes(), Path("/proc", str(place.record()["pid"]), "cmdline").read_bytes()]
    with contextlib.suppress(PermissionError):  # only root may look
        told.append((shim / "environ").read_bytes())
    written = [each.read_bytes() for each in place.state.glob("processes/*/*")]
    assert container.state == "running"
    assert not [each for each in told + written if SECRET.encode() in each]


def test_no_core_file_can_hold_a_secret(place: Place) -> None:
    container = place.start("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")

    place.after(container)
    assert place.lines(container) == ["(0, 0)"]


def test_the_process_outlives_the_command_and_its_terminal(place: Place) -> None:
    container = place.start()

    pid, shim = place.record()["pid"], place.record()["shim_pid"]
    assert os.getsid(shim) == shim == os.getsid(pid)
    assert os.getsid(shim) != os.getsid(0)
    assert container.state == "running"


def test_a_port_that_something_listens_on_is_taken(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        with pytest.raises(PortTaken):
            place.engine.launch(place.launch(port=other.getsockname()[1]))

    assert place.engine.containers() == []


def test_a_port_with_the_last_processors_closing_connections_is_free(place: Place) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            server.close()  # the side that closes first is the one in TIME_WAIT
            assert client.recv(1) == b""
        port = listener.getsockname()[1]

    assert place.engine.launch(place.launch(port=port)).state == "running"


@pytest.mark.parametrize("stub", ["time.sleep(600)", "sys.exit(1)"], ids=["running", "exited"])
def test_a_name_in_use_is_taken_until_it_is_removed(place: Place, stub: str) -> None:
    container = place.start(stub)

    with pytest.raises(NameTaken):
        place.start()

    place.engine.remove(container)
    assert place.start().id != container.id


def test_an_image_that_was_not_built_is_not_found(place: Place) -> None:
    launch = place.launch()
    images = {"absent": f"images/{REF.slug}/{'b' * 12}", "outside": "../../etc", "none": ""}

    for image in images.values():
        with pytest.raises(ImageNotFound):
            place.engine.launch(Launch(**{**_fields(launch), "image": image}))

    assert not (place.state / "processes").exists()


def test_a_pinned_image_can_not_be_pulled(place: Place) -> None:
    image = ImageReference.parse("localhost:5000/a@sha256:" + "0" * 64)

    with pytest.raises(ImagePullFailed, match="process engine"):
        place.engine.pull(image, own_platform(), progress=print)


def test_a_launch_that_fails_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SHIM", place.root / "absent.py")

    with pytest.raises(EngineFailed, match="can't open file"):
        place.start()

    assert list((place.state / "processes").iterdir()) == []
    assert list((place.state / "scratch").iterdir()) == []


def test_two_launches_under_one_name_give_one_process(place: Place) -> None:
    driver = _driver("engine.launch(launch)", place, before=0)
    both = [subprocess.Popen(driver, stderr=subprocess.PIPE, text=True) for _ in range(2)]

    errors = [process.communicate(timeout=30)[1] for process in both]

    assert sorted(process.returncode for process in both) == [0, 1]
    assert "NameTaken" in "".join(errors)
    assert len(place.engine.containers()) == 1


# the end


@pytest.mark.parametrize(
    ("stub", "status"),
    [
        ("sys.exit(0)", 0),
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
    ids=["quietly", "with a status", "by a fault", "killed"],
)
def test_the_exit_status_is_kept(place: Place, stub: str, status: int) -> None:
    ended = place.after(place.start(stub))

    assert (ended.state, ended.exit_status) == ("exited", status)


def test_stop_asks_first(place: Place) -> None:
    container = place.start("signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); time.sleep(600)")
    waited(lambda: place.lines(container))

    place.engine.stop(container, grace_s=10)

    assert place.now(container).exit_status == 7


def test_stop_ends_what_does_not_listen_after_the_grace(place: Place) -> None:
    container = place.start("signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)")
    waited(lambda: place.lines(container))
    began = time.monotonic()

    place.engine.stop(container, grace_s=0.3)

    assert 0.3 <= time.monotonic() - began < 5
    assert place.now(container).exit_status == -signal.SIGKILL


def test_stop_of_a_container_that_is_gone_is_no_error(place: Place) -> None:
    container = place.start()
    place.engine.remove(container)

    place.engine.stop(container, grace_s=1)
    place.engine.remove(container)


def test_stop_and_remove_leave_a_later_container_of_the_same_name_alone(place: Place) -> None:
    first = place.start()
    place.engine.remove(first)
    second = place.start()

    place.engine.stop(first, grace_s=0)
    place.engine.remove(first)

    assert place.engine.containers() == [second]


def test_remove_takes_the_scratch_space_and_the_logs_along(place: Place) -> None:
    container = place.start(
        """
        os.chdir(os.environ["THEORY_SCRATCH"])
        os.makedirs("a/b"); os.symlink("/etc", "a/link"); open("a/b/c", "w").close(); os.chmod("a", 0)
        """
    )
    place.after(container)

    place.engine.remove(container)

    assert place.engine.containers() == []
    assert list(place.state.glob("processes/*")) + list(place.state.glob("scratch/*")) == []
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize("victims", [["pid"], ["shim_pid"], ["shim_pid", "pid"]], ids=["process", "shim", "both"])
def test_a_kill_leaves_nothing_that_a_start_trips_over(place: Place, victims: list[str]) -> None:
    container = place.start(FAMILY)
    assert waited(lambda: "ready" in place.lines(container))
    assert waited(lambda: len(processes_in(place.state)) >= 3), "the process, its template, the daemon of that"

    for victim in victims:
        os.kill(place.record()[victim], signal.SIGKILL)

    ended = place.after(container)
    assert (ended.state, ended.exit_status) == (("exited", -9) if victims == ["pid"] else ("dead", None))
    place.engine.remove(ended)
    assert waited(lambda: not processes_in(place.state)), "something is left"
    assert place.start().state == "running"


def test_the_shim_ends_what_the_process_left_behind(place: Place) -> None:
    container = place.start(FAMILY)
    assert waited(lambda: "ready" in place.lines(container) and len(processes_in(place.state)) >= 3)

    os.kill(place.record()["pid"], signal.SIGUSR1)

    assert place.after(container).state == "exited"
    assert waited(lambda: not processes_in(place.state))


def test_a_process_that_ends_leaves_no_zombie(place: Place) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())  # of other tests

    place.after(place.start("sys.exit(0)"))

    waited(lambda: start_time(place.record()["shim_pid"]) is None)
    assert set(children.read_text().split()) <= before


def test_a_torn_record_is_no_container_and_no_obstacle(place: Place) -> None:
    folder = place.state / "processes" / NAME
    folder.mkdir(parents=True)
    (folder / "process.json").write_text("")

    assert place.engine.containers() == []
    assert place.start().state == "running"


# logs


def test_both_streams_are_kept_in_order(place: Place) -> None:
    container = place.start(
        """
        for number in range(3):
            print(number, flush=True); time.sleep(0.05)
            print(number, file=sys.stderr, flush=True); time.sleep(0.05)
        """
    )

    place.after(container)
    found = [(line.stream, line.line) for line in place.engine.logs(container)]
    assert found == [(stream, str(number)) for number in range(3) for stream in ("stdout", "stderr")]


def test_followed_logs_come_as_they_are_written_and_end_with_the_process(place: Place) -> None:
    container = place.start("print('first', flush=True); time.sleep(0.5); print('last')")

    arrived = [(line.line, time.monotonic()) for line in place.engine.logs(container, follow=True)]

    assert [text for text, _ in arrived] == ["first", "last"]
    assert arrived[1][1] - arrived[0][1] > 0.3


def test_the_last_words_of_a_process_that_was_killed_are_kept(place: Place) -> None:
    container = place.start("print('x' * 100_000 + '!', flush=True); os.kill(os.getpid(), 9)")

    place.after(container)
    assert "".join(place.lines(container))[-2:] == "x!"


def test_a_flood_of_lines_does_not_hold_the_process_up(place: Place) -> None:
    container = place.start("for number in range(150_000): print('flood', number)\nprint('end', file=sys.stderr)")

    assert waited(lambda: place.now(container).state == "exited", 60)
    assert place.lines(container)[-1] in ("end", "flood 149999")
    assert (place.state / "processes" / NAME / "log.jsonl.1").exists()


# killed at every point

FAULTS = """
import os, signal, subprocess

left = {before}

def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in {names}:
    setattr(os, name, counted(getattr(os, name)))
subprocess._fork_exec = counted(subprocess._fork_exec)
"""
CHANGES = ["mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "chmod"]
SHIM_CALLS = [*CHANGES, "pipe", "fork", "setsid", "dup2", "close", "chdir", "umask"]


def _fields(launch: Launch) -> dict[str, Any]:
    return {name: getattr(launch, name) for name in launch.__slots__}


def _driver(statement: str, place: Place, *, before: int, stub: str = "time.sleep(600)") -> list[str]:
    """The command line of a program that does `statement`, killed at its `before`th change to the system; 0: never."""
    fields = {name: value for name, value in _fields(place.launch(stub)).items() if name not in ("ref", "platform")}
    script = f"""
import sys
sys.path[:0] = {[str(each) for each in (Path.cwd(), Path.cwd() / "code" / "runtime")]}
from pathlib import Path
from apps.processors.adapters.base import Launch, Limits
from apps.processors.adapters.host import HostEngine, own_platform
from apps.processors.reference import ProcessorRef
launch = Launch(ref=ProcessorRef.parse({str(REF)!r}), platform=own_platform(), **{fields!r})
engine = HostEngine(Path({str(place.state)!r}), {ROOT_ID!r})
{FAULTS.format(before=before, names=CHANGES) if before else ""}
{statement}
"""
    return [sys.executable, "-c", script]


def _every_point(argv: Callable[[int], list[str]]) -> Iterator[int]:
    """Run a program again and again, killed at its first change, its second, until it comes through."""
    for before in range(1, 200):
        status = subprocess.run(argv(before), timeout=30).returncode
        assert status in (0, -signal.SIGKILL)
        yield before
        if status == 0:
            assert before > 4, "hardly a fault was injected"
            return
    pytest.fail("it never came through")


def _assert_startable(place: Place) -> None:
    """Whatever is left is found by its label; without it nothing runs, and a start works."""
    place.clear()
    assert waited(lambda: not processes_in(place.state)), processes_in(place.state)
    container = place.start()
    assert place.engine.containers() == [container]
    place.engine.remove(container)
    left = [str(each) for name in ("processes", "scratch") for each in (place.state / name).iterdir()]
    assert left == []


def test_a_launch_killed_at_any_point_leaves_nothing_in_the_way(place: Place) -> None:
    for _ in _every_point(lambda before: _driver("engine.launch(launch)", place, before=before)):
        _assert_startable(place)


def test_a_removal_killed_at_any_point_can_be_done_again(place: Place) -> None:
    def remove(before: int) -> list[str]:
        place.clear()
        place.start("open(os.environ['THEORY_SCRATCH'] + '/output', 'w').close(); time.sleep(600)")
        return _driver("engine.remove(engine.containers()[0])", place, before=before)

    for _ in _every_point(remove):
        _assert_startable(place)


def test_a_shim_killed_at_any_point_is_an_error_or_a_dead_container(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faulty = host.SHIM, place.root / "shim.py"
    run = f"import runpy\nrunpy.run_path({str(real)!r}, run_name='__main__')\n"
    states = []
    for before in range(1, 200):
        faulty.write_text(FAULTS.format(before=before, names=SHIM_CALLS) + run)
        monkeypatch.setattr(host, "SHIM", faulty)
        try:
            states.append(place.after(place.start("time.sleep(0.1)")).state)
        except EngineFailed:
            states.append("failed")
        monkeypatch.setattr(host, "SHIM", real)
        _assert_startable(place)
        if states[-1] == "exited":
            break

    assert states[-1] == "exited"
    assert {"failed", "dead"} <= set(states)


def test_ctrl_c_during_a_launch_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        asked(_)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    asked = host._ask_shim
    monkeypatch.setattr(host, "_ask_shim", interrupted)

    with pytest.raises(KeyboardInterrupt):
        place.start(FAMILY)

    assert place.engine.containers() == []
    assert waited(lambda: not processes_in(place.state))


def _shim(place: Place, script: Path = host.SHIM) -> tuple["subprocess.Popen[bytes]", bytes]:
    """A shim and what it is to be told."""
    staging = place.state / "processes" / ".staging"
    staging.mkdir(parents=True)
    config = place.engine._config(place.launch(FAMILY), Path(sys.executable), staging)
    argv = [sys.executable, "-I", "-S", str(script)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL), json.dumps(config).encode()


def test_a_shim_that_was_told_half_starts_nothing(place: Place) -> None:
    shim, told = _shim(place)

    shim.communicate(told[:-1], timeout=10)

    assert shim.returncode == 1
    assert not processes_in(place.state)
    assert place.engine.containers() == []


def test_a_process_that_nobody_waits_for_any_more_is_not_kept(place: Place) -> None:
    impatient = place.root / "shim.py"
    impatient.write_text(
        f"import os, runpy\nfork = os.fork\nos.fork = lambda: fork() and os._exit(0)\n"
        f"runpy.run_path({str(host.SHIM)!r}, run_name='__main__')\n"
    )
    shim, told = _shim(place, impatient)

    shim.communicate(told, timeout=10)

    assert waited(lambda: list((place.state / "processes").iterdir()) == [])
    assert waited(lambda: not processes_in(place.state))


# build


def _wheel(folder: Path) -> str:
    """A wheel in `folder`; returns its requirement with its hash."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny.py", "SIZE = 'tiny'\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tiny-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return f"tiny==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Place]:
    """A checkout in which nothing is built."""
    place = Place(tmp_path / "checkout").write()
    yield place
    place.clear()


def _offline(folder: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


def test_a_build_installs_the_lock_file_and_says_what_it_does(source: Place, tmp_path: Path) -> None:
    (source.source / "requirements.lock").write_text(_wheel(tmp_path))
    said: list[str] = []

    source.build(environment=_offline(tmp_path), said=said)

    container = source.start("import tiny; print(tiny.SIZE, tiny.__cached__.endswith('.pyc'))")
    source.after(container)
    assert source.lines(container) == ["tiny True"]
    assert any("tiny" in line for line in said)


def test_a_built_processor_does_not_change_with_its_source(place: Place) -> None:
    (place.source / "handler.py").write_text("WHAT = 'edited'\n")

    container = place.start("import handler; print(handler.WHAT)")

    place.after(container)
    assert place.lines(container) == ["as built"]


def test_a_snapshot_holds_the_source_without_what_builds_it(source: Place) -> None:
    (source.source / "templates").mkdir()
    (source.source / "templates" / "a.txt").write_text("a")
    (source.source / "requirements.in").touch()

    image = source.build()

    app = source.state / image.image / "app"
    assert {each.name for each in app.iterdir()} == {"handler.py", "templates", "__pycache__"}
    assert image.size_bytes == sum(
        each.stat().st_size
        for each in [app / "handler.py", app / "templates" / "a.txt", *source.root.glob("code/runtime/*/*.py")]
    )


def test_an_unchanged_build_is_the_same_and_quick(source: Place) -> None:
    first = source.build()
    began = time.monotonic()

    second = source.build()

    assert second == first
    assert second.image_id == "sha256:" + "a" * 64
    assert time.monotonic() - began < 1.5  # a virtual environment takes longer


def test_builds_of_one_lock_file_share_a_virtual_environment(source: Place) -> None:
    source.build("a" * 64)
    source.build("b" * 64)

    assert len(list((source.state / "venvs").iterdir())) == 1


def test_the_newest_builds_and_those_that_run_are_kept(source: Place) -> None:
    source.build("a" * 64)
    source.start()
    for digit in "bcdef":
        source.build(digit * 64)
        time.sleep(0.01)

    kept = {each.name for each in (source.state / "images" / REF.slug).iterdir()}

    assert kept == {digit * 12 for digit in "adef"}


def test_a_virtual_environment_that_no_build_needs_is_removed(source: Place) -> None:
    for digit in "abcd":
        (source.source / "requirements.lock").write_text("# first\n" if digit == "a" else "# second\n")
        source.build(digit * 64)
        time.sleep(0.01)

    assert len(list((source.state / "venvs").iterdir())) == 1


def test_an_image_whose_python_is_gone_is_not_there_and_is_built_again(source: Place) -> None:
    image = source.build()
    (python,) = source.state.glob("venvs/*/bin/python")
    python.unlink()
    python.symlink_to("/nowhere/python3")

    assert not source.engine.has_image(image.image)
    assert source.engine.has_image(source.build().image)


@pytest.mark.parametrize("name", ["requirements.lock", "handler.py"])
def test_a_missing_file_is_named(source: Place, name: str) -> None:
    (source.source / name).unlink()

    with pytest.raises(BuildFailed, match=rf"test/stub@1 has no code/processors/test/stub/1/{re.escape(name)}"):
        source.build()


@pytest.mark.parametrize("lock", ["absent==1.0 --hash=sha256:" + "0" * 64, "tiny==1.0"], ids=["absent", "no hash"])
def test_a_failed_install_says_pips_last_words_and_leaves_nothing(source: Place, tmp_path: Path, lock: str) -> None:
    _wheel(tmp_path)
    (source.source / "requirements.lock").write_text(lock)

    with pytest.raises(BuildFailed) as raised:
        source.build(environment=_offline(tmp_path))

    assert "ERROR" in "\n".join(raised.value.details["log"])
    assert list((source.state / "venvs").iterdir()) == []


def test_a_build_killed_at_any_point_is_done_by_the_next(source: Place) -> None:
    (source.source / "requirements.lock").write_text("# nothing\n")
    image = f"images/{REF.slug}/{'b' * 12}"
    for before in _every_point(lambda before: [*_building(source, os.environ), str(before)]):
        whole = source.engine.has_image(image)
        if before % 5 == 0 and not whole:  # a build takes a second: not after each
            assert source.engine.has_image(source.build("b" * 64).image)
        snapshot = source.state / image
        assert whole <= (snapshot / "runtime" / "processor_runtime" / "__main__.py").exists()
        subprocess.run(["rm", "-rf", str(snapshot)], check=True)


def test_a_build_whose_pip_outlives_it_does_not_spoil_the_next(source: Place, tmp_path: Path) -> None:
    (source.source / "requirements.lock").write_text(_wheel(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple", "PIP_RETRIES": "0"}
        first = subprocess.Popen(_building(source, {**hanging, "PIP_CONFIG_FILE": os.devnull}))
        asked, _ = silent.accept()
        first.kill()
        first.wait()

        image = source.build("b" * 64, environment=_offline(tmp_path))
        asked.close()

    assert waited(lambda: not processes_in(source.state), 20)
    assert source.engine.has_image(image.image)
    assert source.build("c" * 64, environment=_offline(tmp_path))
    assert len(list((source.state / "venvs").iterdir())) == 1


def _building(place: Place, environment: Mapping[str, str]) -> list[str]:
    script = f"""
import sys
sys.path[:0] = {[str(each) for each in (Path.cwd(), Path.cwd() / "code" / "runtime")]}
from pathlib import Path
from tests.integration.test_host_engine import Place, FAULTS, CHANGES
place = Place(Path({str(place.root)!r}))
if len(sys.argv) > 1:
    exec(FAULTS.format(before=int(sys.argv[1]), names=CHANGES))
place.build("b" * 64, environment={dict(environment)!r})
"""
    return [sys.executable, "-c", script]


def test_record_survives_only_with_all_its_keys(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text('{"schema": 1, "pid": 1}')

    assert Record.read(tmp_path) is None
