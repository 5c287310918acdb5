"""Inputs from a bucket on a real S3 server: attached, fetched by the container itself, and every way to fail."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.integration.buckets import Bucket, bucket_server
from tests.integration.middlemen import Answer, Asked, line, middleman
from tests.processors import add_processor
from tests.shell import Outcome, Shell, copy_checkout

pytestmark = pytest.mark.bucket

REF = "test/reads@1"
MIB = 2**20
HANDLER = """
    import hashlib

    def run(context):
        given = context.inputs["params"]["file"]
        with open(given, "rb") as file:
            context.write("seen.txt", given + " " + hashlib.file_digest(file, "sha256").hexdigest())
"""
DOCKER = pytest.param("docker", marks=pytest.mark.docker)


@dataclass(frozen=True, slots=True)
class Reader:
    """A processor that reads one file, started."""

    cli: Shell
    folder: Path

    def words(self, *options: str) -> list[str]:
        return ["localctl", "run", "--ref", REF, "--json", *options]

    def run(self, name: str, env: Mapping[str, str]) -> Outcome:
        """One execution on the file `name` of the folder."""
        return self.cli(*self.words(*self.given(name)), env=env, timeout_s=150)

    def given(self, name: str) -> tuple[str, ...]:
        return ("--attach", f"file={self.folder / name}")

    def relayed(self) -> int:
        """How often an input came over the connection though a store was named."""
        return self.cli("localctl", "logs", "--ref", REF).stderr.count("comes over the connection")


def opened(engine: str, folder: Path) -> Iterator[Reader]:
    root = copy_checkout(folder / "checkout")
    add_processor(root, REF, HANDLER, outputs=("seen.txt",), runtime={"scratch_gb": 1, "timeout_s": 120})
    cli = Shell(root, home=folder, variables={"LOCAL_ENGINE": engine})
    try:
        for words in (("processorctl", "build"), ("localctl", "start")):
            done = cli(*words, "--ref", REF, "--json", timeout_s=600)
            assert done.status == 0, done
        yield Reader(cli, folder)
    finally:
        cli.close()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    yield from opened("process", tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module", params=["process", DOCKER])
def anywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    if request.param == "process":
        yield request.getfixturevalue("reader")
    else:
        yield from opened("docker", tmp_path_factory.mktemp("contained"))


def by(bucket: Bucket, address: str) -> dict[str, str]:
    """The variables of a run whose container goes to the bucket by this address, the command by its own."""
    return {**bucket.variables("s3"), "ARTIFACTS_CONTAINER_ENDPOINT": f"http://{address}"}


def put(reader: Reader, name: str, size: int) -> str:
    """A file in the folder; its key."""
    data = (name.encode() * (size // len(name) + 1))[:size]
    (reader.folder / name).write_bytes(data)
    return f"artifacts/inputs/sha256/{sha256(data).hexdigest()}/{name}"


def hold_together(reader: Reader, bucket: Bucket, name: str, done: Outcome) -> None:
    """The handler saw the very bytes."""
    assert done.status == 0, done
    digest = sha256((reader.folder / name).read_bytes()).hexdigest()
    (output,) = done.document["outputs"]
    assert bucket.read(output["path"][1:]) == f"inputs/1/{name} {digest}".encode()


@pytest.mark.parametrize("backend", ["minio", "s3"])
def test_an_attached_file_goes_to_the_bucket_once_and_straight_to_the_container(
    anywhere: Reader, bucket: Bucket, backend: str
) -> None:
    key, before = put(anywhere, "photo.jpg", 5 * MIB), anywhere.relayed()

    first = anywhere.run("photo.jpg", bucket.variables(backend))
    written = bucket.server.client().head_object(Bucket=bucket.name, Key=key)
    second = anywhere.run("photo.jpg", bucket.variables(backend))

    for done in (first, second):
        hold_together(anywhere, bucket, "photo.jpg", done)
    assert first.document["meta"]["inputs_digest"] == second.document["meta"]["inputs_digest"]
    assert bucket.keys("artifacts/inputs/") == [key]
    assert bucket.server.client().head_object(Bucket=bucket.name, Key=key)["LastModified"] == written["LastModified"]
    assert anywhere.relayed() == before


def test_the_container_asks_for_that_one_object(reader: Reader, bucket: Bucket) -> None:
    key = put(reader, "photo.jpg", 1000)

    with middleman(bucket.server.address) as between:
        done = reader.run("photo.jpg", by(bucket, between.address))

        hold_together(reader, bucket, "photo.jpg", done)
        (got,) = (asked for asked, _ in between.asked if asked.method == "GET")
    path, _, query = got.path.partition("?")
    assert path == f"/{bucket.name}/{key}"
    assert "X-Amz-Expires=900" in query


def test_an_output_of_a_run_is_an_input_of_the_next(reader: Reader, bucket: Bucket) -> None:
    put(reader, "photo.jpg", 10)
    env = bucket.variables("s3")
    (output,) = reader.run("photo.jpg", env).document["outputs"]

    document = {"schema": "v1", "params": {"file": {"$artifact": output["path"]}}}
    done = reader.cli(*reader.words("--inputs-json", json.dumps(document)), env=env)

    assert done.status == 0, done
    seen = bucket.read(done.document["outputs"][0]["path"][1:])
    assert seen == b"inputs/1/seen.txt " + output["digest"].removeprefix("sha256:").encode()


def test_a_store_that_only_this_machine_reaches_is_read_over_the_socket(anywhere: Reader, bucket: Bucket) -> None:
    put(anywhere, "photo.jpg", 9 * MIB)
    before = anywhere.relayed()

    done = anywhere.run("photo.jpg", by(bucket, "store.invalid:9000"))

    hold_together(anywhere, bucket, "photo.jpg", done)
    assert anywhere.relayed() == before + 1


@pytest.mark.parametrize("after_bytes", [0, 100, 24 * MIB])
def test_a_download_that_is_cut_goes_on_where_it_was(reader: Reader, bucket: Bucket, after_bytes: int) -> None:
    put(reader, "photo.jpg", 32 * MIB)
    before = reader.relayed()

    with line(bucket.server.address) as way:
        way.fault("cut", after_bytes=after_bytes, upward=False, connections=1)
        done = reader.run("photo.jpg", by(bucket, way.address))

        hold_together(reader, bucket, "photo.jpg", done)
        # A reset takes along what the reader's kernel had and the reader not yet: some MiB, never a dozen.
        assert way.downward_bytes < 44 * MIB
    assert reader.relayed() == before


def test_a_download_answered_503_twice_fails_nothing(reader: Reader, bucket: Bucket) -> None:
    put(reader, "photo.jpg", 1000)
    refused = [Answer(503, {"x-amz-request-id": "1"})] * 2

    def answer(asked: Asked) -> Answer | None:
        return refused.pop() if asked.method == "GET" and refused else None

    with middleman(bucket.server.address, answer=answer) as between:
        done = reader.run("photo.jpg", by(bucket, between.address))

        hold_together(reader, bucket, "photo.jpg", done)
        assert [status for asked, status in between.asked if asked.method == "GET"] == [503, 503, 200]


def test_a_server_that_is_killed_and_started_again_gives_the_rest(reader: Reader, tmp_path: Path) -> None:
    put(reader, "large.bin", 60 * MIB)
    with bucket_server(tmp_path) as server, line(server.address) as way:
        bucket = server.make_bucket()
        way.rate_bytes_s = 20 * MIB
        process = spawn(reader, "large.bin", by(bucket, way.address))
        until(lambda: way.downward_bytes > 10 * MIB, process)

        server.kill()
        server.start()
        stdout, stderr = process.communicate(timeout=120)

        hold_together(reader, bucket, "large.bin", Outcome(process.returncode, stdout, stderr))


def test_a_cancel_ends_a_slow_download_at_once(reader: Reader, bucket: Bucket) -> None:
    put(reader, "large.bin", 60 * MIB)
    with line(bucket.server.address) as way:
        way.rate_bytes_s = 2 * MIB
        process = spawn(reader, "large.bin", by(bucket, way.address))
        until(lambda: way.downward_bytes > MIB, process)

        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)

    assert time.monotonic() - began < 5
    error = json.loads(stdout)["error"]
    assert (process.returncode, error["code"], error["details"]["step"]) == (130, "ERR_CANCELLED", "queued")


def test_an_object_that_is_not_what_its_key_says_is_err_storage(reader: Reader, bucket: Bucket) -> None:
    key = put(reader, "photo.jpg", 9)
    bucket.put(key, b"forgeries")

    done = reader.run("photo.jpg", bucket.variables("s3"))

    error = failed(done, 69, "ERR_STORAGE")
    assert error["details"]["found"] == f"sha256:{sha256(b'forgeries').hexdigest()}"


def test_an_absent_object_is_err_inputs_before_anything_is_sent(reader: Reader, bucket: Bucket) -> None:
    document = {"schema": "v1", "params": {"file": {"$artifact": "/artifacts/never/was.jpg"}}}

    done = reader.cli(*reader.words("--inputs-json", json.dumps(document)), env=bucket.variables("s3"))

    error = failed(done, 65, "ERR_INPUTS")
    assert error["message"] == (
        f"inputs at /params/file: there is no {bucket.server.endpoint}/{bucket.name}/artifacts/never/was.jpg"
    )
    assert done.document["meta"]["started_at"] is None


def failed(done: Outcome, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = done.document["error"]
    assert (done.status, error["code"]) == (status, code), done
    return error


def spawn(reader: Reader, name: str, env: Mapping[str, str]) -> "subprocess.Popen[str]":
    return reader.cli.spawn(*reader.words(*reader.given(name)), env=env)


def until(condition: Any, process: "subprocess.Popen[str]", timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
