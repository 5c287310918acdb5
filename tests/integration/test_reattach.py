"""A line to the processor that breaks at every kind of moment, and several terminals that follow one execution."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processor_runtime import protocol

from apps.processors import runs
from apps.processors.door import Door
from apps.processors.envelope import Envelope, Meta, Output, encode, new_execution_id
from apps.storage.artifacts import RECEIPT, Artifacts
from apps.storage.filesystem import FilesystemBackend
from tests.integration.buckets import Bucket
from tests.integration.middlemen import Line, line
from tests.processors import add_processor
from tests.runtime.conftest import TOKEN, launch
from tests.shell import Outcome, Shell, copy_checkout

REF = "test/reattach@1"
MIB = 2**20
MIDDLE = b"in the middle of a relayed chunk"
HANDLER = f"""
    import os, time

    def run(context):
        given = context.inputs
        context.log("ran")
        print("ran", context.execution_id, flush=True)
        if "file" in given:
            context.log(str(os.path.getsize(given["file"])))
        for number in range(given.get("count", 0)):
            context.token(f"{{number}} ")
            time.sleep(given.get("pause_s", 0.01))
        context.write("a.bin", (piece for piece in (b"a" * {MIB}, {MIDDLE!r}, b"a" * {MIB})))
        context.write("b.bin", b"b")
        context.token("up")
        while given.get("gate") and not os.path.exists(os.path.join(os.environ["THEORY_SCRATCH"], given["gate"])):
            time.sleep(0.01)
        if "open" in given:
            open(os.path.join(os.environ["THEORY_SCRATCH"], given["open"]), "w").close()
"""
OUTPUTS = {"a.bin": b"a" * MIB + MIDDLE + b"a" * MIB, "b.bin": b"b"}
DOCKER = pytest.param("docker", marks=pytest.mark.docker)
on_both = pytest.mark.parametrize("place", ["process", DOCKER], indirect=True)


@dataclass
class Place:
    """A started processor behind a line, and a terminal."""

    cli: Shell
    middle: Line

    @property
    def state(self) -> Path:
        return self.cli.root / "code" / ".theory"

    def words(self, *options: str, **given: Any) -> list[str]:
        return ["localctl", "run", "--ref", REF, "--inputs-json", json.dumps(given), "--json", *options]

    def run(self, *options: str, **given: Any) -> Outcome:
        return self.cli(*self.words(*options, **given), timeout_s=60)

    def spawn(self, *options: str, **given: Any) -> "subprocess.Popen[str]":
        return self.cli.spawn(*self.words(*options, **given))

    def open(self, gate: str) -> None:
        """Let what waits for it end."""
        assert self.run(open=gate).status == 0

    def times_run(self, execution_id: str) -> int:
        logs = self.cli("localctl", "logs", "--ref", REF).stdout
        return logs.count(f"ran {execution_id}")

    def direct_through_the_line(self) -> None:
        """`start` has recorded the processor's own port: runs shall go by the line."""
        file = self.state / "containers.json"
        document = json.loads(file.read_text())
        document["containers"][REF]["port"] = int(self.middle.address.rpartition(":")[2])
        file.write_text(json.dumps(document))

    def stored(self, envelope: dict[str, Any]) -> dict[str, bytes]:
        return held(envelope, lambda key: (self.state / "artifacts" / key).read_bytes())


def held(envelope: dict[str, Any], read: Callable[[str], bytes | None]) -> dict[str, bytes]:
    """The outputs of a success, by name, held against its index and receipt."""
    index_key = envelope["index_path"][1:]
    assert json.loads(read(index_key) or b"")["outputs"] == envelope["outputs"]
    assert json.loads(read(index_key.replace("outputs.json", "receipt.json")) or b"") == envelope
    found = {each["path"].rpartition("/")[2]: read(each["path"][1:]) or b"" for each in envelope["outputs"]}
    digests = ["sha256:" + hashlib.sha256(content).hexdigest() for content in found.values()]
    assert digests == [each["digest"] for each in envelope["outputs"]]
    return found


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shell]]:
    """Terminals in checkouts with the started processor, by engine; made when first asked for."""
    shells: dict[str, Shell] = {}
    yield shells
    for cli in shells.values():
        cli("localctl", "stop", "--ref", REF)
        cli.close()


@pytest.fixture
def place(
    request: pytest.FixtureRequest, started: dict[str, Shell], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    engine = getattr(request, "param", "process")
    if engine not in started:
        folder = tmp_path_factory.mktemp(f"reattach-{engine}")
        root = copy_checkout(folder / "checkout")
        add_processor(root, REF, HANDLER, outputs=("*.bin",), runtime={"timeout_s": 60, "concurrency": 4})
        cli = started[engine] = Shell(root, home=folder, variables={"LOCAL_ENGINE": engine})
        done = cli("processorctl", "build", "--ref", REF, "--json", timeout_s=600)
        assert done.status == 0, done
    cli = started[engine]
    done = cli("localctl", "start", "--ref", REF, "--json", timeout_s=120)
    assert done.status == 0, done
    with line(f"127.0.0.1:{done.document['port']}") as middle:
        here = Place(cli, middle)
        here.direct_through_the_line()
        yield here


def follow(process: "subprocess.Popen[str]", text: str) -> list[str]:
    """The lines that it prints, up to the first that has `text`."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    return lines


def ended(process: "subprocess.Popen[str]", before: list[str] | None = None) -> Outcome:
    stdout, stderr = process.communicate(timeout=60)
    return Outcome(process.returncode, "".join(before or []) + stdout, stderr)


def whole(done: Outcome) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Events, without a hole or a repetition, and the envelope of a success."""
    *events, envelope = done.documents
    assert (done.status, envelope["status"]) == (0, "success"), done
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["execution_id"] for event in events} <= {envelope["execution_id"]}
    return events, envelope


MOMENTS = [
    b"101 Switching Protocols",
    b'"type":"hello"',
    b'"type":"accepted"',
    b'"seq":4,',
    b'"seq":17,',
    b'"event":"reattached"',
    b'"type":"upload"',
    MIDDLE,
    b'"type":"uploaded"',
    b'"event":"output"',
    b'"type":"completed"',
]


@on_both
def test_a_run_whose_line_is_cut_at_every_moment_ends_as_if_it_had_not_been(place: Place) -> None:
    place.middle.cut_before(b"\x81", upward=True)  # the request
    place.middle.cut_before(*MOMENTS)

    done = place.run("--stream", count=40)

    events, envelope = whole(done)
    assert place.middle.cuts_to_come == []
    tokens = "".join(event["data"]["text"] for event in events if event["event"] == "token")
    assert tokens == "".join(f"{number} " for number in range(40)) + "up"
    assert place.times_run(envelope["execution_id"]) == 1
    assert place.stored(envelope) == OUTPUTS
    assert [event["event"] for event in events].count("output") == 2


@pytest.mark.parametrize("moment", [b'"type":"accepted"', b'"type":"upload"', MIDDLE, b'"type":"completed"'])
def test_a_run_whose_line_is_cut_once_needs_no_more_than_a_moment(place: Place, moment: bytes) -> None:
    place.middle.cut_before(moment)
    began = time.monotonic()

    done = place.run("--stream")

    _, envelope = whole(done)
    assert place.middle.cuts_to_come == []
    assert place.stored(envelope) == OUTPUTS
    assert time.monotonic() - began < 5


def test_a_request_that_never_came_is_sent_again(place: Place) -> None:
    place.middle.cut_before(b"\x81", upward=True)

    events, envelope = whole(place.run("--stream"))

    assert "reattached" not in [event["event"] for event in events]
    assert place.times_run(envelope["execution_id"]) == 1


def test_an_input_that_is_cut_on_its_way_comes_again(place: Place) -> None:
    file = place.state / "artifacts/artifacts/in/large.bin"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(9 * MIB))
    place.middle.cut_before(b'"type":"fetch"', b'"type":"pull"', b'"offset":4194304,', b'"type":"fetch"')

    done = place.run("--stream", file={"$artifact": "/artifacts/in/large.bin"})

    events, _ = whole(done)
    assert place.middle.cuts_to_come == []
    assert str(9 * MIB) in [event["data"].get("message") for event in events]


@pytest.mark.bucket
@pytest.mark.parametrize("backend", ["s3", "minio"])
def test_a_cut_line_loses_no_output_on_its_way_to_a_bucket(place: Place, bucket: Bucket, backend: str) -> None:
    place.middle.cut_before(*[b'"type":"upload"', b'"type":"uploaded"'] * 2, b'"event":"output"', b'"type":"completed"')

    done = place.cli(*place.words("--stream"), env=bucket.variables(backend), timeout_s=60)

    events, envelope = whole(done)
    assert place.middle.cuts_to_come == []
    assert envelope["meta"]["transfer"] == "direct"
    assert [event["event"] for event in events].count("output") == 2
    assert held(envelope, bucket.read) == OUTPUTS


@pytest.mark.bucket
def test_a_second_terminal_and_the_first_agree_on_what_is_in_a_bucket(place: Place, bucket: Bucket) -> None:
    gate, options = f"gate-{new_execution_id()}", ("--execution-id", new_execution_id(), "--stream")
    words, env = place.words(*options, gate=gate), bucket.variables("s3")
    first = place.cli.spawn(*words, env=env)
    seen_first = follow(first, '"output"')
    second = place.cli.spawn(*words, env=env)
    seen_second = follow(second, '"reattached"')

    place.open(gate)

    one, two = ended(first, seen_first), ended(second, seen_second)
    _, envelope = whole(one)
    assert two.stdout == one.stdout
    assert held(envelope, bucket.read) == OUTPUTS


@on_both
def test_a_second_terminal_follows_the_execution_of_the_first(place: Place) -> None:
    gate, options = f"gate-{new_execution_id()}", ("--execution-id", new_execution_id(), "--stream")
    first = place.spawn(*options, gate=gate)
    seen_first = follow(first, '"up"')
    second = place.spawn(*options, gate=gate)
    seen_second = follow(second, '"reattached"')

    place.open(gate)

    one, two = ended(first, seen_first), ended(second, seen_second)
    _, envelope = whole(one)
    assert two.status == 0
    assert two.stdout == one.stdout
    assert place.times_run(envelope["execution_id"]) == 1
    assert place.stored(envelope) == OUTPUTS


def test_a_second_terminal_with_other_inputs_is_refused_and_disturbs_nobody(place: Place) -> None:
    gate, options = f"gate-{new_execution_id()}", ("--execution-id", new_execution_id(), "--stream")
    first = place.spawn(*options, gate=gate)
    seen = follow(first, '"up"')

    refused = place.run(*options, gate=gate, count=1)

    place.open(gate)
    assert (refused.status, refused.document["error"]["code"]) == (1, "ERR_EXECUTION_CONFLICT")
    events, _ = whole(ended(first, seen))
    assert "reattached" not in [event["event"] for event in events]


def test_ctrl_c_in_one_terminal_ends_it_for_both(place: Place) -> None:
    options = ("--execution-id", new_execution_id(), "--stream")
    first = place.spawn(*options, gate="never")
    seen = follow(first, '"up"')
    second = place.spawn(*options, gate="never")
    follow(second, '"reattached"')

    second.send_signal(signal.SIGINT)

    one, two = ended(first, seen), ended(second)
    assert (one.status, two.status) == (130, 130)
    (*_, envelope), (*_, other) = one.documents, two.documents
    assert envelope["error"]["details"] == {"by": "user", "step": "interrupt"}
    assert other == envelope


def test_a_terminal_that_closes_its_pipe_takes_nothing_from_the_other(place: Place) -> None:
    gate, options = f"gate-{new_execution_id()}", ("--execution-id", new_execution_id(), "--stream")
    first = place.spawn(*options, gate=gate)
    seen = follow(first, '"up"')
    second = place.spawn(*options, gate=gate)
    follow(second, '"up"')
    assert second.stdout is not None
    second.stdout.close()

    place.open(gate)

    whole(ended(first, seen))
    second.wait(timeout=20)


def test_a_closed_pipe_of_the_only_terminal_ends_the_execution_at_once(place: Place) -> None:
    execution_id = new_execution_id()
    process = place.spawn("--execution-id", execution_id, "--stream", count=10_000)
    follow(process, '"token"')
    assert process.stdout is not None

    process.stdout.close()

    assert process.wait(timeout=10) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    wait_for_log(place, f"{execution_id} ended: ERR_CANCELLED", within_s=5)


def wait_for_log(place: Place, text: str, *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while text not in place.cli("localctl", "logs", "--ref", REF).stderr:
        assert time.monotonic() < deadline


@on_both
def test_after_kill_9_the_same_id_again_takes_up_what_runs(place: Place) -> None:
    gate, execution_id = f"gate-{new_execution_id()}", new_execution_id()
    options = ("--execution-id", execution_id, "--stream")
    first = place.spawn(*options, gate=gate, count=20)
    follow(first, '"up"')
    first.kill()
    first.communicate()

    again = place.spawn(*options, gate=gate, count=20)
    seen = follow(again, '"reattached"')
    place.open(gate)

    events, envelope = whole(ended(again, seen))
    assert "".join(event["data"]["text"] for event in events if event["event"] == "token").startswith("0 1 2 ")
    assert place.times_run(execution_id) == 1
    assert place.stored(envelope) == OUTPUTS


def test_ctrl_c_while_the_line_is_down_reaches_the_execution_when_it_is_up(place: Place) -> None:
    process = place.spawn("--stream", gate="never")
    seen = follow(process, '"up"')
    place.middle.fault("cut", upward=False)
    place.middle.fault("cut", upward=True)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    place.middle.repair()

    done = ended(process, seen)

    assert done.status == 130
    assert done.documents[-1]["error"]["details"] == {"by": "user", "step": "interrupt"}


def test_a_processor_that_was_started_anew_has_lost_the_execution(place: Place) -> None:
    process = place.spawn("--stream", gate="never")
    seen = follow(process, '"up"')
    place.middle.fault("cut", upward=True)
    record = json.loads((place.state / "containers.json").read_text())["containers"][REF]
    pid = json.loads((place.state / "processes" / record["name"] / "process.json").read_text())["pid"]
    subprocess.run(["kill", "-STOP", str(pid)], check=True)  # else the engine tells first
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    place.cli("localctl", "start", "--ref", REF, timeout_s=60)
    place.middle.repair()

    done = ended(process, seen)

    assert (done.status, done.documents[-1]["error"]["code"]) == (1, "ERR_EXECUTION_LOST"), done


def test_the_receipt_of_who_was_first_is_the_answer(tmp_path: Path) -> None:
    runtime = launch(tmp_path / "app", "def run(context): context.write('a.txt', 'a')", outputs=[{"path": "a.txt"}])
    backend = FilesystemBackend(tmp_path / "artifacts")
    backend.check()
    known = runs.Known(new_execution_id(), "test/echo@1", Meta(mode="mock"))
    known.write_prefix = f"/artifacts/{known.execution_id}/"
    first: list[Envelope] = []

    def finish_first(event: Mapping[str, Any]) -> None:
        """What another controller would have done, had it followed too and been quicker."""
        if event["event"] == "output":
            output = Output(**event["data"], mime="text/plain")
            index = known.write_prefix + "outputs.json"
            first.append(Envelope(known.execution_id, known.ref, Meta(transfer="direct"), (output,), index))
            receipt = encode(first[0].document())
            writer = backend.create(f"{known.write_prefix}{RECEIPT}"[1:], mime="")
            writer.write(receipt)
            writer.commit(size_bytes=len(receipt), digest="sha256:" + hashlib.sha256(receipt).hexdigest())

    try:
        envelope = runs.execute(
            protocol.Run(known.execution_id, "mock", {}, known.write_prefix, 60.0),
            Door(f"ws://127.0.0.1:{runtime.port}{protocol.PATH}", {"Authorization": f"Bearer {TOKEN}"}),
            known=known,
            artifacts=Artifacts(backend, known.write_prefix),
            identify=lambda hello: None,
            on_event=finish_first,
        )
    finally:
        runtime.stop()

    assert envelope.document() == first[0].document()
    assert set(held(envelope.document(), lambda key: (backend.root / key).read_bytes())) == {"a.txt"}
