"""localctl on the process engine: one container a ref, what replaces it, what a run prints, keeps and hides."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from apps.processors.envelope import new_execution_id
from tests.commands.error_cases import ended
from tests.commands.workshop import Workshop, inputs, until
from tests.integration.middlemen import Line, line
from tests.shell import Outcome, Shell, copy_checkout

SLOW_SIGNALS = """
import signal
import time

quick = signal.signal

def slow(number, handler):
    time.sleep(0.2)
    return quick(number, handler)

signal.signal = slow
"""
ENVELOPE = ["schema", "status", "execution_id", "ref", "outputs", "index_path", "meta"]


@pytest.fixture
def own(workshop: Workshop, request: pytest.FixtureRequest) -> Iterator[str]:
    """A built processor of the test's own; stopped at its end."""
    ref = workshop.build(workshop.write("own"))
    yield ref
    workshop.stop(ref)


def start(workshop: Workshop, ref: str, *options: str, **how: Any) -> dict[str, Any]:
    done = workshop.shell("localctl", "start", "--ref", ref, "--json", *options, **how)
    assert done.status == 0, done
    return done.document


def status_of(workshop: Workshop, ref: str) -> dict[str, Any]:
    (row,) = workshop.shell("localctl", "status", "--ref", ref, "--json").document["containers"]
    return dict(row)


# start


def test_start_gives_a_ready_container(workshop: Workshop, own: str) -> None:
    started = start(workshop, own)

    port = workshop.port(own)
    assert started["container"]["name"].startswith("processor-test-own-v1-")
    assert started["image"]["digest"].startswith("sha256:")
    assert started["ready_ms"] > 0
    assert {key: started[key] for key in started.keys() - {"container", "image", "ready_ms"}} == {
        "status": "success",
        "ref": own,
        "engine": "process",
        "isolation": "host-process",
        "port": port,
        "url": f"http://127.0.0.1:{port}",
        "secrets": [],
        "reused": False,
        "replaced": None,
    }
    assert 18000 <= port <= 28999
    assert workshop.answers(own)


def test_a_second_start_reuses_the_container(workshop: Workshop, own: str) -> None:
    first = start(workshop, own)

    second = start(workshop, own)

    assert (second["reused"], second["replaced"]) == (True, None)
    assert second["container"] == first["container"]


@pytest.mark.parametrize("token", [None, "of-another-start"])
def test_a_container_whose_token_is_lost_is_replaced(workshop: Workshop, own: str, token: str | None) -> None:
    start(workshop, own)
    (workshop.state / "run_tokens.json").write_text(json.dumps({"schema": 1, "tokens": {own: token}}))
    refused = workshop.shell("localctl", "run", "--ref", own, "--json").document["error"]

    second = start(workshop, own)

    assert (refused["code"], refused["hint"]) == ("ERR_UNAUTHORIZED", f"localctl start --ref {own}")
    assert second["reused"] is False
    assert workshop.run(own, text="any").status == 0


def test_a_rebuilt_image_replaces_the_container_on_its_port(workshop: Workshop, own: str) -> None:
    first = start(workshop, own)
    workshop.write("own", "def run(context):\n    context.write('text/response.txt', 'rebuilt')\n")
    workshop.build(own)

    second = start(workshop, own)

    assert (second["reused"], second["replaced"]) == (False, first["image"]["digest"])
    assert second["port"] == first["port"]
    assert second["image"]["digest"] != first["image"]["digest"]
    assert workshop.run(own, text="any").stdout.startswith("rebuilt\n")


def test_a_changed_secret_replaces_the_container(workshop: Workshop, own: str) -> None:
    first = start(workshop, own, env={"TEST_KEY": "one-secret"})

    second = start(workshop, own, env={"TEST_KEY": "another-secret"})

    assert first["secrets"] == ["TEST_KEY"]
    assert (second["reused"], second["replaced"]) == (False, first["image"]["digest"])


def test_no_file_of_the_state_holds_a_secret(workshop: Workshop, own: str) -> None:
    start(workshop, own, env={"TEST_KEY": "one-secret"})
    seen = workshop.run(own, "--mode", "real", do="environment")
    assert "one-secret" in seen.stdout, "the handler has it"

    files = [path for path in workshop.state.rglob("*") if path.is_file() and "venvs" not in path.parts]
    holding = [path.name for path in files if b"one-secret" in path.read_bytes()]
    assert holding == ["response.txt"]  # where the handler wrote it to


def test_a_start_that_replaces_lets_a_run_end_first(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    text = inputs(text="word " * 20, pause_s=0.1)
    process = workshop.shell.spawn("localctl", "run", "--ref", own, "--inputs-json", text, "--stream")
    assert process.stdout is not None
    process.stdout.read(1)

    started = start(workshop, own, env={"TEST_KEY": "another-secret"})

    process.communicate(timeout=30)
    assert (process.returncode, started["reused"]) == (0, False)


def test_a_changed_spec_replaces_the_container(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    workshop.write("own", runtime={"timeout_s": 61})

    second = start(workshop, own)

    assert (second["reused"], second["replaced"]) == (False, second["image"]["digest"])


def test_drift_is_refused_by_run_and_shown_by_status_until_the_next_start(workshop: Workshop, own: str) -> None:
    running = start(workshop, own)["image"]["digest"]
    workshop.write("own", "def run(context):\n    context.write('text/response.txt', 'new')\n")
    workshop.build(own)

    refused = workshop.run(own, "--json")
    shown = status_of(workshop, own)["drift"]
    selected = start(workshop, own)["image"]["digest"]

    assert (refused.status, refused.document["error"]["code"]) == (3, "ERR_DRIFT")
    assert refused.document["error"]["details"] == shown == {"of": "image", "running": running, "selected": selected}
    assert status_of(workshop, own)["drift"] is None
    assert workshop.run(own).status == 0


def test_two_starts_at_once_give_one_container(workshop: Workshop, own: str) -> None:
    words = ("localctl", "start", "--ref", own, "--json")

    starts = [ended(process) for process in [workshop.shell.spawn(*words), workshop.shell.spawn(*words)]]

    assert [done.status for done in starts] == [0, 0]
    assert sorted(done.document["reused"] for done in starts) == [False, True]
    assert len({done.document["container"]["id"] for done in starts}) == 1
    status_of(workshop, own)  # one row


def test_twenty_refs_started_at_once_keep_twenty_ports(workshop: Workshop) -> None:
    tiny = "def run(context):\n    context.write('text/response.txt', 'tiny')\n"
    refs = [workshop.have(f"many-{number}", tiny) for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        first = list(threads.map(lambda ref: start(workshop, ref), refs))

    shown = {row["ref"]: row for row in workshop.shell("localctl", "status", "--json").document["containers"]}
    stopped = workshop.shell("localctl", "stop", "--all", "--json").document

    ports = {each["ref"]: each["port"] for each in first}
    assert len(set(ports.values())) == 20
    assert {ref: shown[ref]["port"] for ref in refs} == ports
    assert {shown[ref]["state"] for ref in refs} == {"running"}
    assert {ref: workshop.port(ref) for ref in refs} == ports
    assert {"ref": refs[0], "stopped": True} in stopped["containers"]
    assert set(refs) <= {each["ref"] for each in stopped["containers"]}
    assert start(workshop, refs[7])["port"] == ports[refs[7]]


def test_a_port_that_something_else_took_is_replaced_said_and_recorded(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    workshop.stop(own)
    old = workshop.port(own)
    with socket.create_server(("127.0.0.1", old)):
        done = workshop.shell("localctl", "start", "--ref", own, "--json")

    new = workshop.port(own)
    assert done.document["port"] == new != old
    assert f"port {old} is taken by something else; {own} has port {new} from now on" in done.stderr
    assert workshop.run(own).status == 0


def test_two_checkouts_do_not_meet(workshop: Workshop, own: str, tmp_path: Path) -> None:
    here = start(workshop, own)
    shell = Shell(copy_checkout(tmp_path / "checkout"), home=tmp_path, variables=workshop.shell.variables)
    there = Workshop(shell)
    there.write("own")
    there.state.mkdir()
    (there.state / "venvs").symlink_to(workshop.state / "venvs")  # it takes seconds to make
    there.build(own)
    try:
        started = start(there, own)

        assert started["container"]["name"] != here["container"]["name"]
        assert started["port"] != here["port"]
        assert status_of(there, own)["id"] == started["container"]["id"]
        assert status_of(workshop, own)["id"] == here["container"]["id"]
    finally:
        shell("localctl", "stop", "--all")
    assert workshop.answers(own)


def test_ctrl_c_during_start_leaves_nothing(workshop: Workshop) -> None:
    ref = workshop.have("slow", "import time\ntime.sleep(60)\n")
    process = workshop.shell.spawn("localctl", "start", "--ref", ref, "--json")
    until(lambda: bool(list(workshop.state.glob("processes/processor-test-slow-v1-*/process.json"))), "process")

    process.send_signal(signal.SIGINT)

    done = ended(process)
    assert (done.status, done.document["error"]["code"]) == (130, "ERR_CANCELLED")
    assert workshop.shell("localctl", "status", "--ref", ref, "--json").document["containers"] == []
    assert list(workshop.state.glob("processes/*slow*")) == []


# run


def test_run_prints_what_the_processor_said_and_where_it_is(workshop: Workshop) -> None:
    done = workshop.run(
        workshop.running(), "--write-prefix", "/artifacts/said/{execution_id}/", text="three short words"
    )

    said, place = done.stdout.splitlines()
    assert said == "three short words"
    path, size = place.split("  ")
    assert Path(path).is_relative_to(workshop.artifacts / "artifacts/said")
    assert Path(path).read_text() == said
    assert size == "17 bytes"


def test_run_without_inputs_takes_the_first_example(workshop: Workshop) -> None:
    assert workshop.run(workshop.running()).stdout.startswith("the first example\n")


def test_no_log_has_the_run_token(workshop: Workshop) -> None:
    outcome = workshop.run(workshop.running(), "--verbosity", "3", text="hello")

    assert outcome.status == 0
    assert [token for token in workshop.read("run_tokens.json")["tokens"].values() if token in outcome.stderr] == []


def test_a_stream_prints_tokens_as_they_come(workshop: Workshop) -> None:
    text = inputs(text="one two", pause_s=1)
    process = workshop.shell.spawn("localctl", "run", "--ref", workshop.running(), "--inputs-json", text, "--stream")
    assert process.stdout

    first = process.stdout.read(4)
    running = process.poll() is None

    rest, _ = process.communicate(timeout=20)
    assert (first, running) == ("one ", True)
    assert rest.startswith("two \n")
    assert rest.endswith("/text/response.txt  7 bytes\n")


def test_a_json_stream_is_events_without_holes_and_the_envelope_last(workshop: Workshop) -> None:
    done = workshop.run(workshop.running(), "--stream", "--json", do="tell")

    *events, envelope = done.documents
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {tuple(event) for event in events} == {("event", "seq", "execution_id", "ts", "data")}
    assert {event["execution_id"] for event in events} == {envelope["execution_id"]}
    told = {event["event"]: event["data"] for event in events if event["event"] != "queued"}
    output = told.pop("output")
    assert told == {
        "started": {},
        "token": {"text": "word"},
        "log": {"level": "warning", "message": "a line"},
        "progress": {"done": 1, "total": 2, "unit": "step"},
        "metric": {"name": "answers", "value": 1, "unit": "answer"},
    }
    assert list(envelope) == ENVELOPE
    assert output == {key: envelope["outputs"][0][key] for key in ("path", "size_bytes", "digest")}


def test_the_receipt_is_the_printed_envelope_byte_for_byte(workshop: Workshop) -> None:
    done = workshop.run(workshop.running(), "--json", text="any")

    receipt = workshop.artifacts / done.document["index_path"][1:].replace("outputs.json", "receipt.json")
    assert receipt.read_text() + "\n" == done.stdout


def test_the_same_execution_id_gives_back_the_same_receipt(workshop: Workshop) -> None:
    ref, same = workshop.running(), ("--execution-id", new_execution_id(), "--json")

    first = workshop.run(ref, *same, text="any")
    second = workshop.run(ref, *same, text="any")

    assert first.status == second.status == 0
    assert second.stdout == first.stdout


def test_what_was_stored_before_an_error_is_in_its_envelope(workshop: Workshop) -> None:
    done = workshop.run(workshop.running(), "--json", do="fill", size_bytes=60 * 2**20)

    assert done.document["error"]["code"] == "ERR_LIMIT"
    (partial,) = done.document["partial_outputs"]
    assert list(partial) == ["path", "digest", "size_bytes", "mime"]
    folder = (workshop.artifacts / partial["path"][1:]).parent.parent
    assert (folder / "text/response.txt").read_text() == "first"
    assert not (folder / "outputs.json").exists()
    assert not (folder / "receipt.json").exists()


def test_nothing_of_the_callers_environment_reaches_a_handler(workshop: Workshop, own: str) -> None:
    env = {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "of the caller",
        "MINIO_STORAGE_SECRET_KEY": "of the caller",
        "ANYTHING": "of the caller",
        "THEORY_RUN_TOKEN": "of the caller",
        "HTTPS_PROXY": "http://proxy.example:3128",
    }
    start(workshop, own, env=env)

    done = workshop.shell("localctl", "run", "--ref", own, "--inputs-json", inputs(do="environment"), env=env)

    seen = json.loads(done.stdout.splitlines()[0])
    engine = {"PATH", "HOME", "TZ", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "PORT"}
    certificates = {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    proxies = {"HTTP_PROXY", "HTTPS_PROXY"}
    others = {name for name in seen if not name.startswith(("PYTHON", "THEORY_"))}
    assert others - engine - certificates - proxies == set()
    assert seen["HTTPS_PROXY"] == env["HTTPS_PROXY"]
    assert "THEORY_RUN_TOKEN" not in seen
    assert "of the caller" not in seen.values()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_right_after_the_request_cancels_the_execution(
    workshop: Workshop, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    ref, marker = workshop.running(), tmp_path / "marker"
    (tmp_path / "sitecustomize.py").write_text(SLOW_SIGNALS)
    words = ("localctl", "run", "--ref", ref, "--inputs-json", inputs(do="sleep", marker=str(marker)), "--json")
    process = workshop.shell.spawn(*words, env={"PYTHONPATH": str(tmp_path)})
    until(marker.exists, "beginning of the handler")

    process.send_signal(number)

    done = ended(process)
    assert (done.status, done.document["error"]["code"]) == (status, "ERR_CANCELLED")
    assert done.document["error"]["details"] == {"by": "user", "step": "interrupt"}


@pytest.fixture
def middle(workshop: Workshop, own: str) -> Iterator[Line]:
    """The line by which `run` reaches the started processor `own`."""
    start(workshop, own)
    with line(f"127.0.0.1:{workshop.port(own)}") as middle:
        document = workshop.read("containers.json")
        document["containers"][own]["port"] = int(middle.address.rpartition(":")[2])
        (workshop.state / "containers.json").write_text(json.dumps(document))
        yield middle


@pytest.fixture
def talking(workshop: Workshop, own: str, middle: Line, tmp_path: Path) -> "subprocess.Popen[str]":
    """A run whose handler says a word every tenth of a second."""
    marker = tmp_path / "marker"
    text = inputs(text="word " * 100, pause_s=0.1, marker=str(marker))
    process = workshop.shell.spawn("localctl", "run", "--ref", own, "--inputs-json", text, "--json")
    until(marker.exists, "beginning of the handler")
    return process


def test_a_connection_that_is_cut_is_told_and_ends_the_handler(
    workshop: Workshop, own: str, middle: Line, talking: "subprocess.Popen[str]"
) -> None:
    middle.fault("cut", upward=False)

    done = ended(talking)

    assert (done.status, done.document["error"]["code"]) == (69, "ERR_CONNECTION")
    gone = "ERR_CANCELLED: the execution was cancelled because its client went away"
    until(lambda: gone in logs(workshop, own).stderr, "end of the handler", timeout_s=40)


def test_a_container_whose_end_is_seen_later_than_its_connections_is_not_taken_for_alive(
    workshop: Workshop, own: str, middle: Line, talking: "subprocess.Popen[str]"
) -> None:
    middle.fault("cut", upward=False)
    time.sleep(0.4)
    workshop.kill(own)

    done = ended(talking)

    assert (done.status, done.document["error"]["code"]) == (1, "ERR_EXECUTION_LOST")


def test_a_runtime_that_hangs_is_told_within_seconds(workshop: Workshop) -> None:
    ref = workshop.running("mortal")
    workshop.kill(ref, signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = workshop.run(ref, "--json")
        took_s = time.monotonic() - began
    finally:
        workshop.kill(ref, signal.SIGCONT)

    assert (done.status, done.document["error"]["code"]) == (69, "ERR_CONNECTION")
    assert took_s < 15


# stop, status


def test_stop_says_whether_there_was_anything_to_stop(workshop: Workshop, own: str) -> None:
    start(workshop, own)

    first = workshop.shell("localctl", "stop", "--ref", own, "--json").document
    second = workshop.shell("localctl", "stop", "--ref", own, "--json").document

    assert first == {"status": "success", "ref": own, "stopped": True}
    assert second == {"status": "success", "ref": own, "stopped": False}
    assert not workshop.answers(own)
    assert workshop.shell("localctl", "status", "--ref", own).stdout == "nothing is started\n"


def test_status_tells_a_containers_state(workshop: Workshop, own: str) -> None:
    started = start(workshop, own)

    row = status_of(workshop, own)

    assert {key: row[key] for key in ("ref", "engine", "state", "health", "source", "port", "drift")} == {
        "ref": own,
        "engine": "process",
        "state": "running",
        "health": "ready",
        "source": "build",
        "port": started["port"],
        "drift": None,
    }
    assert (row["id"], row["name"]) == (started["container"]["id"], started["container"]["name"])
    assert (row["image_digest"], row["platform"]) == (started["image"]["digest"], started["image"]["platform"])
    assert row["started_at"].endswith("Z")


def test_a_busy_container_says_so_and_is_reused(workshop: Workshop) -> None:
    ref = workshop.running("narrow", runtime={"concurrency": 1})
    text = inputs(text="word " * 100, pause_s=0.1)
    process = workshop.shell.spawn("localctl", "run", "--ref", ref, "--inputs-json", text, "--stream")
    assert process.stdout is not None
    process.stdout.read(1)

    row = status_of(workshop, ref)
    started = start(workshop, ref)

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    workshop.stop(ref)
    assert (row["state"], row["health"]) == ("running", "busy")
    assert started["reused"] is True


def test_status_of_a_container_that_was_killed_says_exited(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    workshop.kill(own)

    row = status_of(workshop, own)

    assert (row["state"], row["health"], row["exit_status"]) == ("exited", "unknown", -9)
    assert start(workshop, own)["reused"] is False


@pytest.fixture
def without_docker(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who means Docker, which is not there."""
    return {"LOCAL_ENGINE": "docker", "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}


def test_a_container_is_found_whatever_engine_the_caller_means(
    workshop: Workshop, own: str, without_docker: dict[str, str]
) -> None:
    started = start(workshop, own)

    status = workshop.shell("localctl", "status", "--ref", own, "--json", env=without_docker)
    run = workshop.shell("localctl", "run", "--ref", own, "--json", env=without_docker)
    stop = workshop.shell("localctl", "stop", "--ref", own, "--json", env=without_docker)

    assert [row["id"] for row in status.document["containers"]] == [started["container"]["id"]]
    assert run.document["meta"]["engine"] == "process"
    assert stop.document["stopped"] is True
    for done in (status, stop):
        assert re.fullmatch("warning: .*no Docker Engine answers at .*none.sock: .*\n", done.stderr)


@pytest.fixture
def recorded(workshop: Workshop, own: str, without_docker: dict[str, str]) -> Iterator[str]:
    """A ref that runs on Docker by the state's word, while no Docker Engine answers."""
    start(workshop, own)
    file = workshop.state / "containers.json"
    document = json.loads(file.read_text())
    record = {**document["containers"][own], "engine": "docker"}
    workshop.stop(own)
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "containers": {**state["containers"], own: record}}))
    yield own
    file.write_text(json.dumps(state))


@pytest.mark.parametrize("words", [("logs", "--ref", "{ref}"), ("stop", "--ref", "{ref}")])
def test_without_the_engine_that_has_it_nothing_is_guessed(
    workshop: Workshop, recorded: str, without_docker: dict[str, str], words: tuple[str, ...]
) -> None:
    typed = [word.replace("{ref}", recorded) for word in words]

    done = workshop.shell("localctl", *typed, "--json", env=without_docker)

    assert (done.status, done.document["error"]["code"]) == (69, "ERR_ENGINE")


def test_stop_all_stops_what_it_can_and_tells_what_it_could_not(
    workshop: Workshop, recorded: str, without_docker: dict[str, str]
) -> None:
    other = workshop.running("other")

    done = workshop.shell("localctl", "stop", "--all", "--json", env=without_docker)

    assert (done.status, done.document["error"]["code"]) == (69, "ERR_ENGINE")
    assert not workshop.answers(other)


def test_an_engine_that_does_not_answer_keeps_no_other_ref_from_starting(
    workshop: Workshop, recorded: str, without_docker: dict[str, str]
) -> None:
    other = workshop.build(workshop.write("other"))

    done = workshop.shell(
        "localctl", "start", "--ref", other, "--json", env={**without_docker, "LOCAL_ENGINE": "process"}
    )

    workshop.stop(other)
    assert done.status == 0, done
    assert "warning: docker: no Docker Engine answers" in done.stderr


def test_a_processor_that_left_the_registry_can_be_seen_read_and_stopped(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    (workshop.root / "registry/test/own/1/registry.yaml").unlink()

    status = workshop.shell("localctl", "status", "--json")
    log = logs(workshop, own)
    stop = workshop.shell("localctl", "stop", "--ref", own, "--json")

    assert own in [row["ref"] for row in status.document["containers"]]
    assert f"warning: {own}: no processor {own}" in status.stderr
    assert "listening on" in log.stderr
    assert stop.document["stopped"] is True
    workshop.write("own")


# logs


def logs(workshop: Workshop, ref: str, *options: str) -> Outcome:
    done = workshop.shell("localctl", "logs", "--ref", ref, *options)
    assert done.status == 0, done
    return done


@pytest.fixture(params=["running", "stopped", "killed"])
def spoken(workshop: Workshop, own: str, request: pytest.FixtureRequest) -> str:
    """A ref whose handler spoke three times; then the container went on, was stopped or was killed."""
    start(workshop, own)
    for word in ("one", "two", "three"):
        assert workshop.run(own, do="speak", text=word).status == 0
        time.sleep(0.01)  # so that no two lines have the same time
    if request.param == "stopped":
        workshop.stop(own)
    if request.param == "killed":
        workshop.kill(own)
    return own


def test_logs_keep_stdout_and_stderr_apart(workshop: Workshop, spoken: str) -> None:
    done = logs(workshop, spoken)

    assert done.stdout.splitlines() == [f"to stdout: {word}" for word in ("one", "two", "three")]
    lines = done.stderr.splitlines()
    assert [text for text in lines if text.startswith("to ")] == [
        f"to stderr: {word}" for word in ("one", "two", "three")
    ]
    assert "listening on" in lines[0]


def test_logs_with_json_are_one_object_a_line(workshop: Workshop, spoken: str) -> None:
    documents = logs(workshop, spoken, "--json").documents

    assert {tuple(document) for document in documents} == {("ts", "stream", "line")}
    assert {document["stream"] for document in documents} == {"stdout", "stderr"}
    assert all(document["ts"].endswith("Z") and len(document["ts"]) == 24 for document in documents)
    assert [document["ts"] for document in documents] == sorted(document["ts"] for document in documents)


def test_logs_can_be_cut_by_number_and_by_time(workshop: Workshop, spoken: str) -> None:
    documents = logs(workshop, spoken, "--json").documents
    of_two = next(each["ts"] for each in documents if each["line"] == "to stdout: two")

    tail = logs(workshop, spoken, "--json", "--tail", "2").documents
    since = logs(workshop, spoken, "--json", "--since", of_two).documents
    hour = logs(workshop, spoken, "--json", "--since", "1h").documents
    none = logs(workshop, spoken, "--json", "--tail", "0")

    assert tail == documents[-2:]
    assert since == [each for each in documents if each["ts"] >= of_two]
    assert hour == documents
    assert none.stdout == ""


@pytest.mark.parametrize("text", ["{", "5\n", '{"ts": ""}\n', "\udcff"])
def test_a_damaged_kept_log_is_named_with_the_line_that_mends_it(workshop: Workshop, own: str, text: str) -> None:
    file = workshop.state / "logs/test-own-v1.log"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))

    done = workshop.shell("localctl", "logs", "--ref", own, "--json")

    file.unlink()
    assert (done.status, done.document["error"]["code"]) == (78, "ERR_CONFIG")
    assert done.document["error"]["hint"] == f"remove it: rm {file}"


@pytest.mark.parametrize("since", ["999999999d", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-12:00", "soon"])
def test_a_time_that_never_was_is_a_usage_error(workshop: Workshop, since: str) -> None:
    done = workshop.shell("localctl", "logs", "--ref", "test/any@1", "--since", since, "--json")

    assert (done.status, done.document["error"]["code"]) == (2, "ERR_USAGE")


def test_more_lines_than_there_can_be_are_all(workshop: Workshop, spoken: str) -> None:
    assert logs(workshop, spoken, "--tail", "9" * 30).stdout == logs(workshop, spoken).stdout


def test_logs_follow_ends_with_what_has_ended(workshop: Workshop, spoken: str) -> None:
    process = workshop.shell.spawn("localctl", "logs", "--ref", spoken, "--follow")
    assert process.stdout

    followed = [process.stdout.readline() for _ in range(3)]
    if workshop.answers(spoken):
        workshop.run(spoken, do="speak", text="four")
        followed.append(process.stdout.readline())
        workshop.stop(spoken)

    assert ended(process).status == 0
    words = ("one", "two", "three", "four")[: len(followed)]
    assert followed == [f"to stdout: {word}\n" for word in words]


def test_kept_logs_are_the_users_alone_and_replaced_by_the_next_start(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    workshop.run(own, do="speak", text="before")
    workshop.stop(own)
    kept = workshop.state / "logs" / "test-own-v1.log"
    mode = kept.stat().st_mode & 0o777

    start(workshop, own)

    assert mode == 0o600
    assert not kept.exists()
    assert "before" not in logs(workshop, own).stdout


# a closed pipe


def test_a_pipe_that_takes_one_line_is_quiet(workshop: Workshop, own: str) -> None:
    start(workshop, own)
    workshop.run(own, do="speak", text="\n".join(map(str, range(20_000))))
    argv = workshop.shell.argv("localctl", "logs", "--ref", own, "--json")

    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1; echo ${PIPESTATUS[0]}', "bash", *argv],
        cwd=workshop.root,
        env=workshop.shell.environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stderr == ""
    first, pipe_status = done.stdout.splitlines()
    assert json.loads(first)["stream"] in ("stdout", "stderr")
    assert pipe_status == "141"


@pytest.mark.parametrize(
    "words", [("status",), ("status", "--json"), ("run", "--json"), ("run", "--stream"), ("run", "--stream", "--json")]
)
def test_a_closed_stdout_is_quiet(workshop: Workshop, words: tuple[str, ...]) -> None:
    ref = workshop.running()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            workshop.shell.argv("localctl", *words, "--ref", ref),
            cwd=workshop.root,
            env=workshop.shell.environment(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=30,
        )

    assert (done.returncode, done.stderr) == (141, b"")
