"""A mock run's outputs follow from its inputs alone: not from engine, host, day, hash seed or what ran before."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_runtime import protocol

from apps.processors import registry, runs
from apps.processors.door import Door
from apps.processors.envelope import Meta, new_execution_id
from apps.processors.reference import ProcessorRef
from apps.processors.state import LocalState
from apps.storage.artifacts import Artifacts
from apps.storage.filesystem import FilesystemBackend
from tests.places import need_program
from tests.processors import runtime_lock
from tests.shell import PROJECT, Shell, copy_checkout

REF = ProcessorRef.parse("llm/litellm@1")
TOKEN = "a-token-of-the-test"
OTHER_DAY = "2031-02-03 04:05:06"
DOCKER = pytest.param("docker", marks=pytest.mark.docker)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
some_text = text.filter(bool)
messages = st.lists(st.fixed_dictionaries({"role": some_text, "content": text}), min_size=1, max_size=4)
params = st.fixed_dictionaries({"messages": messages}, optional={"model": some_text})
documents = st.fixed_dictionaries({"schema": st.just("v1"), "params": params})


@dataclass(frozen=True, slots=True)
class Place:
    """A runtime that serves llm/litellm@1 somewhere, and where its outputs go."""

    door: Door
    backend: FilesystemBackend

    def run(self, document: dict[str, Any]) -> tuple[dict[str, bytes], Meta]:
        """The outputs of one mock run, by name, and what is known of it."""
        known = runs.Known(new_execution_id(), str(REF), Meta(mode="mock"))
        known.write_prefix = f"/artifacts/{known.execution_id}/"
        place = Artifacts(self.backend, known.write_prefix)
        request = protocol.Run(known.execution_id, "mock", document, known.write_prefix, 60.0)
        runs.execute(
            request, self.door, known=known, artifacts=place, identify=lambda hello: None, on_event=lambda event: None
        )
        found = {}
        for output in known.stored.values():
            name = output.path.removeprefix(known.write_prefix)
            with place.open(name) as file:
                found[name] = file.read()
        return found, known.meta


def place_at(port: int, token: str, folder: Path) -> Place:
    backend = FilesystemBackend(folder / "artifacts")
    backend.check()
    return Place(Door(f"ws://127.0.0.1:{port}{protocol.PATH}", {"Authorization": f"Bearer {token}"}), backend)


def by_engine(engine: str, folder: Path) -> Iterator[Place]:
    """On an engine, as the commands start it."""
    root = copy_checkout(folder / "checkout")
    if engine == "process":  # its mock needs no LiteLLM; the image is the real one
        (root / "code" / "processors" / "llm" / "litellm" / "1" / "requirements.lock").write_text(runtime_lock())
    cli = Shell(root, home=folder, variables={"LOCAL_ENGINE": engine})
    try:
        for words in (("processorctl", "build"), ("localctl", "start", "--allow-missing-secrets")):
            done = cli(*words, "--ref", str(REF), "--json", timeout_s=600)
            assert done.status == 0, done
        token = LocalState(root / "code" / ".theory").token(REF)
        yield place_at(done.document["port"], token or "", folder)
    finally:
        cli.close()


def elsewhere(folder: Path) -> Iterator[Place]:
    """By hand: another day, time zone, language, hash seed and host name."""
    need_program("faketime")
    handler = PROJECT / "code" / "processors" / "llm" / "litellm" / "1"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{handler}:{PROJECT / 'code' / 'runtime'}",
        "PYTHONHASHSEED": "4711",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "PORT": str(port),
        "THEORY_BIND": "127.0.0.1",
        "THEORY_SCRATCH": str(folder / "scratch"),
        "THEORY_SPEC": registry.load(PROJECT, REF).spec_json,
        "THEORY_IMAGE_DIGEST": "sha256:" + "ab" * 32,
        "THEORY_RUN_TOKEN": TOKEN,
    }
    argv = ["faketime", OTHER_DAY, *on_another_host(), sys.executable, "-m", "processor_runtime"]
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, env=environment, stdout=log, stderr=log) as process:
        try:
            wait_for_mock(folder / "log")
            yield place_at(port, TOKEN, folder)
        finally:
            process.terminate()


def on_another_host() -> list[str]:
    """A prefix for a command that is to see another host name; as nobody, in a user namespace."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]


def wait_for_mock(log: Path) -> None:
    deadline = time.monotonic() + 20
    while "ready for mock runs" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from by_engine("process", tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module", params=["elsewhere", DOCKER])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    yield from elsewhere(folder) if request.param == "elsewhere" else by_engine("docker", folder)


@settings(max_examples=50, database=None)
@given(document=documents, earlier=st.lists(documents, max_size=2))
def test_equal_inputs_give_byte_equal_outputs(
    here: Place, there: Place, document: dict[str, Any], earlier: list[dict[str, Any]]
) -> None:
    outputs, _ = here.run(document)
    for each in earlier:
        there.run(each)

    assert there.run(document)[0] == outputs
    assert sorted(outputs) == ["text/response.txt", "usage.json"]


def test_other_inputs_give_other_bytes(here: Place, there: Place) -> None:
    first, second = (
        {"schema": "v1", "params": {"messages": [{"role": "user", "content": content}]}} for content in ("a", "b")
    )

    assert here.run(first)[0]["text/response.txt"] != there.run(second)[0]["text/response.txt"]


@pytest.mark.parametrize("there", ["elsewhere"], indirect=True)
def test_the_other_place_is_of_another_day(here: Place, there: Place) -> None:
    document = json.loads(registry.load(PROJECT, REF).spec_json)["inputs"]["examples"][0]

    days = [place.run(document)[1].started_at for place in (here, there)]

    assert str(days[1]).startswith("2031-02-0")
    assert not str(days[0]).startswith("2031-02-0")
