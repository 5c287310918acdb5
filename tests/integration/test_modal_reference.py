"""The Modal section of the CLI reference as it stands there, against a peer of Modal that really runs the image."""

import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.modal_services import ModalService, running_modal_service
from tests.integration.registries import registry
from tests.providers import Provider
from tests.shell import Shell, copy_checkout
from tests.typist import KEY, Typist

pytestmark = pytest.mark.docker

REF = "llm/litellm@1"
MESSAGES = '{"schema":"v1","params":{"messages":[{"role":"user","content":"test"}]}}'
START = r"""
GIT_BRANCH=feat/test GIT_USER=veyorokon \
python manage.py modalctl start \
  --ref llm/litellm@1 \
  --env dev \
  --oci ghcr.io/org/image@sha256:abc...
"""
SYNC = r"""
python manage.py modalctl sync-secrets \
  --ref llm/litellm@1 \
  --env dev
"""
RUN = r"""
python manage.py modalctl run \
  --ref llm/litellm@1 \
  --mode mock \
  --write-prefix "/artifacts/outputs/test/{execution_id}/" \
  --inputs-json '{"schema":"v1","params":{"messages":[{"role":"user","content":"test"}]}}' \
  --json
"""
VERIFY = r"""
python manage.py modalctl verify-digest \
  --ref llm/litellm@1 \
  --env dev \
  --oci ghcr.io/org/image@sha256:abc...
"""
SHORT_START = r"""
GIT_BRANCH=feat/test GIT_USER=veyorokon \
modalctl start --ref llm/litellm@1 --env dev --oci ghcr.io/org/image@sha256:abc...
"""


@pytest.fixture(scope="module")
def service() -> Iterator[ModalService]:
    with running_modal_service() as made:
        yield made


@pytest.fixture(scope="module")
def typed(service: ModalService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typist]:
    """In a checkout with llm/litellm@1 built and pushed; nothing is set of GIT_BRANCH and GIT_USER."""
    folder = tmp_path_factory.mktemp("reference")
    with registry() as made:
        prefix = f"{made.address}/org-{secrets.token_hex(4)}"
        variables = {"PROCESSOR_REPOSITORY_PREFIX": prefix, **service.environment}
        shell = Shell(copy_checkout(folder / "checkout"), home=folder, variables=variables)
        try:
            for step in ("build", "push"):
                done = shell("processorctl", step, "--ref", REF, "--platforms", "linux/amd64", "--json", timeout_s=500)
                assert done.status == 0, done
            yield Typist(shell, image=done.document["images"][0]["oci"])
        finally:
            _remove_images(shell, prefix)


def _remove_images(shell: Shell, prefix: str) -> None:
    def docker(*words: str) -> str:
        done = subprocess.run(["docker", *words], env=shell.environment(), capture_output=True, text=True, check=True)
        return done.stdout

    # By name: equal builds of other checkouts have the same id.
    if listed := docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{prefix}/llm-litellm").split():
        docker("image", "rm", *listed)


@contextmanager
def followed(typed: Typist) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """The reference's last line but one, and what it prints on stderr so far: the runtime's own lines."""
    lines: list[str] = []
    with typed.spawn("python manage.py modalctl logs --ref llm/litellm@1 --env dev --follow\n") as process:
        stream = process.stderr
        assert stream
        reader = threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")))
        reader.start()
        try:
            yield process, lines
        finally:
            process.terminate()
            reader.join()


def wait_for(lines: list[str], words: str) -> None:
    deadline = time.monotonic() + 20
    while not any(words in line for line in lines):
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)


def status(typed: Typist, env: str = "dev") -> dict[str, Any]:
    return typed.shell("modalctl", "status", "--ref", REF, "--env", env, "--json").document


def test_the_section_as_it_is_written(typed: Typist) -> None:
    started = typed(START)
    assert "feat-test-veyorokon-llm-litellm-v1" in started.stdout
    assert f"serves in dev at {status(typed)['url']}" in started.stdout

    assert "OPENAI_API_KEY" in typed(SYNC).stdout

    envelope = json.loads(typed(RUN).stdout)
    assert (envelope["status"], envelope["meta"]["adapter"]) == ("success", "modal")
    assert envelope["meta"]["secrets_present"] == ["OPENAI_API_KEY"]
    assert envelope["meta"]["image_digest"] == typed.image.partition("@")[2]
    assert envelope["index_path"] == f"/artifacts/outputs/test/{envelope['execution_id']}/outputs.json"

    row = typed("python manage.py modalctl status --ref llm/litellm@1 --env dev\n").stdout
    assert "deployed" in row

    verified = typed(VERIFY).stdout
    assert verified.startswith(f"feat-test-veyorokon-llm-litellm-v1 is {envelope['meta']['image_digest']}\n")

    with followed(typed) as (follower, lines):
        wait_for(lines, "ready for mock runs")
        stopped = typed("python manage.py modalctl stop --ref llm/litellm@1 --env dev\n").stdout
        assert stopped == "llm/litellm@1 is stopped in dev (feat-test-veyorokon-llm-litellm-v1)\n"
        assert follower.wait(30) == 0
    assert KEY not in "".join(lines)
    assert status(typed)["state"] == "stopped"


def test_the_examples_at_its_end(typed: Typist) -> None:
    typed(SHORT_START)
    typed("modalctl sync-secrets --ref llm/litellm@1 --env dev")
    envelope = json.loads(typed("modalctl run --ref llm/litellm@1 --mode mock --json").stdout)
    typed("modalctl stop --ref llm/litellm@1 --env dev")

    assert envelope["status"] == "success"


@pytest.mark.parametrize("env", ["staging", "main"])
def test_staging_and_main_need_neither_branch_nor_user_and_run_real_once_synced(typed: Typist, env: str) -> None:
    words = ("--ref", REF, "--env", env)
    real = ("run", *words, "--mode", "real", "--inputs-json", MESSAGES, "--json")

    with Provider(host="0.0.0.0") as provider:
        values = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.openai_url("host.docker.internal")}
        started = typed.shell("modalctl", "start", *words, "--oci", typed.image, "--json")
        refused = typed.shell("modalctl", *real, env=values)
        synced = typed.shell("modalctl", "sync-secrets", *words, "--json", env=values)
        mocked = typed.shell("modalctl", "run", *words, "--json")
        assert provider.received == []
        ran = typed.shell("modalctl", *real)
        stopped = typed.shell("modalctl", "stop", *words, "--json")

    assert [done.status for done in (started, synced, mocked, ran, stopped)] == [0] * 5, ran
    assert started.document["app"] == "llm-litellm-v1"
    assert (refused.status, refused.document["error"]["code"]) == (77, "ERR_MISSING_SECRET")
    assert synced.document["synced"] == ["OPENAI_API_KEY", "OPENAI_BASE_URL"]
    (asked,) = provider.received
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body["messages"] == [{"role": "user", "content": "test"}]
    text = next(each["path"] for each in ran.document["outputs"] if each["path"].endswith("/text/response.txt"))
    assert (typed.root / "code/.theory/artifacts" / text.lstrip("/")).read_text() == "Hello there"
    assert ran.document["meta"]["mode"] == "real"
    assert stopped.document["stopped"] is True
    told = "".join(done.stdout + done.stderr for done in (started, refused, synced, mocked, ran, stopped))
    assert KEY not in told
