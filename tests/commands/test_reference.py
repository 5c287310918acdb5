"""The examples of the CLI reference, typed as they stand there, on the process engine."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.workshop import Workshop
from tests.shell import PROJECT

PAGE = (PROJECT / "docs" / "guides" / "cli.md").read_text()
KEY = "sk-proj-of-the-test"
MESSAGE = '"messages":[{"role":"user","content":"test"}]'
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]

BUILD = "processorctl build --ref llm/litellm@1 --platforms linux/amd64"
START = "OPENAI_API_KEY=$OPENAI_API_KEY python manage.py localctl start --ref llm/litellm@1"
RUN = r"""
python manage.py localctl run \
  --ref llm/litellm@1 \
  --mode mock \
  --write-prefix "/artifacts/outputs/test/{execution_id}/" \
  --inputs-json '{"schema":"v1","params":{"messages":[{"role":"user","content":"test"}]}}' \
  --json
"""


class Typist:
    """Types lines of the reference in the checkout's root folder."""

    def __init__(self, workshop: Workshop) -> None:
        self.root = workshop.root
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = workshop.shell.environment({"PATH": path, "OPENAI_API_KEY": KEY})

    def __call__(self, text: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(**self._call(text), capture_output=True, timeout=120)
        assert (done.returncode, KEY in done.stdout + done.stderr) == (0, False), done
        return done

    def spawn(self, text: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(**self._call(text), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _call(self, text: str) -> dict[str, Any]:
        """`text` must be in the reference; its {...} stands for JSON, and its machine may be another one."""
        assert text in PAGE, text
        typed = text.replace("{...}", "{" + MESSAGE + "}").replace("amd64", ARCHITECTURE)
        argv = ["bash", "-o", "pipefail", "-ec", typed]
        return {"args": argv, "cwd": self.root, "env": self._environment, "text": True}


@pytest.fixture(scope="module")
def typed(workshop: Workshop) -> Iterator[Typist]:
    """The reference's first two steps are done: llm/litellm@1 is built and started."""
    typist = Typist(workshop)
    inputs = f'{{"schema":"v1","params":{{{MESSAGE}}}}}'
    (workshop.root / "inputs.json").write_text(inputs)
    typist(BUILD)
    typist(START)
    yield typist
    typist("localctl stop --ref llm/litellm@1")


def test_start_says_where_the_processor_answers(typed: Typist) -> None:
    done = typed("localctl start --ref llm/litellm@1\n")  # the second one

    assert done.stdout.startswith("llm/litellm@1 runs already on http://127.0.0.1:")


def test_run_with_json_prints_the_envelope(typed: Typist) -> None:
    done = typed("localctl run --ref llm/litellm@1 --mode mock --json")

    envelope = json.loads(done.stdout)
    assert envelope["status"] == "success"
    folder = f"/artifacts/outputs/llm-litellm-v1/{envelope['execution_id']}"
    paths = [output["path"] for output in envelope["outputs"]]
    assert paths == [f"{folder}/text/response.txt", f"{folder}/usage.json"]
    assert envelope["meta"]["secrets_present"] == ["OPENAI_API_KEY"]


def test_run_with_a_write_prefix_and_inputs_writes_there(typed: Typist) -> None:
    envelope = json.loads(typed(RUN).stdout)

    assert envelope["index_path"] == f"/artifacts/outputs/test/{envelope['execution_id']}/outputs.json"
    assert (typed.root / "code/.theory/artifacts" / envelope["index_path"][1:]).exists()


def test_the_three_ways_to_give_inputs_are_the_same(typed: Typist) -> None:
    ways = (
        """localctl run --ref llm/litellm@1 --inputs-json '{"schema":"v1","params":{...}}'""",
        "localctl run --ref llm/litellm@1 --inputs-file inputs.json",
        "cat inputs.json | localctl run --ref llm/litellm@1 --inputs -",
    )

    said = [typed(way).stdout.partition("\n")[0] for way in ways]

    assert len(set(said)) == 1
    assert said[0].endswith(".")


def test_run_takes_a_platform(typed: Typist) -> None:
    done = typed("localctl run --ref llm/litellm@1 --platform amd64 --mode mock --json")

    assert json.loads(done.stdout)["status"] == "success"


def test_status_lists_the_container(typed: Typist) -> None:
    lines = typed("python manage.py localctl status").stdout.splitlines()

    assert lines[0].split() == ["REF", "ENGINE", "STATE", "HEALTH", "PORT", "SOURCE", "IMAGE", "DRIFT"]
    row = next(line.split() for line in lines if line.startswith("llm/litellm@1 "))
    assert row[1:5] == ["process", "(host-process)", "running", "ready"]


def test_logs_follow_until_the_container_is_stopped(typed: Typist) -> None:
    follow = typed.spawn("python manage.py localctl logs --ref llm/litellm@1 --follow")
    assert follow.stderr
    first = follow.stderr.readline()

    done = typed("python manage.py localctl stop --ref llm/litellm@1")

    _, rest = follow.communicate(timeout=20)
    assert done.stdout == "llm/litellm@1 is stopped\n"
    assert "listening on" in first
    assert rest.endswith(": stopped\n")
    assert follow.returncode == 0
