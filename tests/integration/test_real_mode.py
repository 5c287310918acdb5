"""`--mode real` of llm/litellm@1: two wire formats, against providers on this machine that record and misbehave."""

import hashlib
import itertools
import json
import os
import platform
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.providers import Provider
from tests.providers.wire import COMPLETION_TOKENS, PROMPT_TOKENS
from tests.shell import Outcome, Shell, copy_checkout

REF = "llm/litellm@1"
OPENAI, ANTHROPIC = "openai/gpt-4o-mini", "anthropic/claude-3-5-haiku-20241022"
KEYS = {"OPENAI_API_KEY": "sk-proj-openai-secret-0123", "ANTHROPIC_API_KEY": "sk-ant-secret-4567"}
PLATFORM = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}.get(platform.machine(), "linux/amd64")


@dataclass(frozen=True, slots=True)
class Place:
    """A started processor, the only provider it reaches, and a terminal; what was printed is kept."""

    cli: Shell
    provider: Provider
    printed: list[str]

    def ask(self, model: str, *words: str, prompt: str = "Say hello") -> Outcome:
        outcome = self.cli(*self.line(model, *words, prompt=prompt))
        self.printed.extend((outcome.stdout, outcome.stderr))
        return outcome

    def line(self, model: str, *words: str, prompt: str = "Say hello") -> list[str]:
        inputs = {"schema": "v1", "params": {"model": model, "messages": [{"role": "user", "content": prompt}]}}
        fixed = ["localctl", "run", "--ref", REF, "--mode", "real", "--inputs-json", json.dumps(inputs)]
        return [*fixed, *(words or ["--json"])]

    def written(self, envelope: dict[str, Any]) -> dict[str, bytes]:
        """The output files by name, their digests checked."""
        artifacts = self.cli.root / "code/.theory/artifacts"
        files = {Path(output["path"]).name: output for output in envelope["outputs"]}
        found = {name: (artifacts / output["path"].lstrip("/")).read_bytes() for name, output in files.items()}
        for name, content in found.items():
            assert files[name]["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        return found


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("real")
    docker = request.param == "docker"
    # A container reaches the host under its bridge's address, never under the host's own 127.0.0.1.
    with Provider(host="0.0.0.0" if docker else "127.0.0.1") as provider:
        host = "host.docker.internal" if docker else "127.0.0.1"
        urls = {"OPENAI_BASE_URL": provider.openai_url(host), "ANTHROPIC_API_BASE": provider.anthropic_url(host)}
        variables = {"LOCAL_ENGINE": request.param, **KEYS, **urls}
        cli = Shell(copy_checkout(folder / "checkout"), home=folder, variables=variables)
        place = Place(cli, provider, [])
        try:
            for words in (("processorctl", "build", "--platforms", PLATFORM), ("localctl", "start")):
                outcome = cli(*words, "--ref", REF, "--json", timeout_s=600)
                assert outcome.status == 0, outcome
                place.printed.extend((outcome.stdout, outcome.stderr))
            yield place
        finally:
            provider.release.set()
            cli.close()


@pytest.fixture
def place(started: Place) -> Place:
    started.provider.fault = ""
    started.provider.received.clear()
    started.provider.release.set()
    started.provider.gone.clear()
    return started


def read_until(process: subprocess.Popen[str], text: str, *, timeout_s: float = 20) -> str:
    """What the process has printed once `text` is in it."""
    assert process.stdout
    printed, end = b"", time.monotonic() + timeout_s
    while text.encode() not in printed:
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        assert readable, f"no {text!r} within {timeout_s:g} s, only {printed!r}"
        more = os.read(process.stdout.fileno(), 65536)
        assert more, f"the command ended: {printed!r}"
        printed += more
    return printed.decode()


def test_openai_is_asked_in_its_own_wire_format(place: Place) -> None:
    assert place.ask(OPENAI, prompt="Say hello").status == 0

    (request,) = place.provider.received
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert request.body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Say hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_anthropic_is_asked_in_its_own_wire_format(place: Place) -> None:
    assert place.ask(ANTHROPIC, prompt="Say hello").status == 0

    (request,) = place.provider.received
    assert request.path == "/v1/messages"
    assert request.headers["x-api-key"] == KEYS["ANTHROPIC_API_KEY"]
    assert "authorization" not in request.headers
    assert request.headers["anthropic-version"]
    assert request.body["model"] == "claude-3-5-haiku-20241022"
    assert request.body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Say hello"}]}]
    assert request.body["stream"] is True


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
def test_the_outputs_are_the_answer_and_the_provider_s_own_counts(place: Place, model: str) -> None:
    envelope = place.ask(model).document

    files = place.written(envelope)
    assert files["response.txt"] == b"Hello there"
    assert json.loads(files["usage.json"]) == {
        "model": model,
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    }
    assert envelope["meta"]["mode"] == "real"
    assert set(KEYS) <= set(envelope["meta"]["secrets_present"])


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("words", [("--stream",), ("--stream", "--json")], ids=["text", "json"])
def test_a_token_is_printed_before_the_next_one_exists(place: Place, model: str, words: tuple[str, ...]) -> None:
    place.provider.release.clear()
    process = place.cli.spawn(*place.line(model, *words))

    printed = read_until(process, "lo ")
    assert "there" not in printed
    place.provider.release.set()

    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "there" in rest


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(
    ("fault", "status", "retryable", "words"),
    [
        ("401", 401, False, "refused the credentials (401)"),
        ("403", 403, False, "refused the credentials (403)"),
        ("400", 400, False, "refused the request (400)"),
        ("429", 429, True, "too many requests (429)"),
        ("500", 500, True, "failed (500)"),
        ("cut", None, True, "in the middle of its answer"),
        ("end", None, True, "in the middle of its answer"),
        ("broken", None, True, "in the middle of its answer"),
        ("garbage", None, False, "is no chat completion"),
    ],
)
def test_a_provider_s_failure_is_told_and_the_next_run_succeeds(
    place: Place, model: str, fault: str, status: int | None, retryable: bool, words: str
) -> None:
    place.provider.fault = fault

    outcome = place.ask(model)

    error = outcome.document["error"]
    assert (outcome.status, error["code"]) == (1, "ERR_PROVIDER")
    assert words in error["message"]
    provider = model.partition("/")[0]
    assert error["details"] == {"status": status, "provider": provider, "retryable": retryable}
    assert outcome.document["partial_outputs"] == []
    assert len(place.provider.received) == 1, "a second try may be a second charge"
    place.provider.fault = ""
    assert place.ask(model).status == 0


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
def test_a_provider_that_hangs_ends_with_the_run_s_time(place: Place, model: str) -> None:
    place.provider.fault = "hang"

    outcome = place.ask(model, "--timeout", "1.5", "--json")

    assert (outcome.status, outcome.document["error"]["code"]) == (75, "ERR_TIMEOUT")
    assert place.provider.gone.wait(5), "the connection to the provider is still open"
    place.provider.fault = ""
    assert place.ask(model).status == 0


def test_a_model_that_no_provider_has_reaches_none(place: Place) -> None:
    outcome = place.ask("nonsense/model")

    assert outcome.document["error"]["code"] == "ERR_PROVIDER"
    assert "nonsense/model" in outcome.document["error"]["message"]
    assert place.provider.received == []


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
def test_a_cancelled_run_hangs_up_on_the_provider(place: Place, model: str) -> None:
    place.provider.release.clear()
    process = place.cli.spawn(*place.line(model, "--stream", "--json"))
    read_until(process, "lo ")

    process.send_signal(signal.SIGINT)

    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(rest.splitlines()[-1])["error"]["code"] == "ERR_CANCELLED"
    assert place.provider.gone.wait(5), "the provider goes on generating"


def test_no_key_and_no_credentials_are_printed_logged_or_kept(place: Place) -> None:
    for fault, model in itertools.product(("400", "401", "500"), (OPENAI, ANTHROPIC)):
        place.provider.fault = fault  # the answer holds the credentials it was sent
        place.ask(model, "--json", "--traceback")
        place.ask(model, "--stream")
    logs = place.cli("localctl", "logs", "--ref", REF)
    status = place.cli("localctl", "status", "--json")

    told = "".join([*place.printed, logs.stdout, logs.stderr, status.stdout, status.stderr])
    assert "ERR_PROVIDER" in told
    for secret in (*KEYS.values(), "hunter2"):
        assert secret not in told
        assert holding(place.cli.root / "code/.theory", secret) == []


def holding(folder: Path, secret: str) -> list[str]:
    """The files under `folder`, installed packages apart, in which `secret` stands."""
    files = [path for path in folder.rglob("*") if path.is_file() and "site-packages" not in path.parts]
    assert files
    return [str(path) for path in files if secret.encode() in path.read_bytes()]
