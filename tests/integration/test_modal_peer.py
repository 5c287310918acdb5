"""Modal's own SDK and command line against tests/modal_service: what our adapter may take for granted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import modal
import pytest
from modal._server import _DirectServerCls
from modal.partial_function import sessioned
from websockets.sync.client import connect

from tests.integration.modal_services import ModalService, push_echo
from tests.integration.registries import registry

pytestmark = pytest.mark.docker

NAME = "Server"
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def images() -> Iterator[tuple[str, str]]:
    """Two images, as `repository@digest`."""
    with registry() as made:
        yield push_echo(made)


@pytest.fixture
def service(modal_service: ModalService, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModalService]:
    """The peer, and this process's SDK led to it."""
    for name, value in modal_service.environment.items():
        monkeypatch.setenv(name, value)
    modal.Client._set_env_client(None)  # the SDK's client is the first of its process otherwise
    yield modal_service
    modal.Client._set_env_client(None)


@pytest.fixture
def proxy_headers(service: ModalService) -> dict[str, str]:
    token = modal.Workspace.from_context().proxy_tokens.create(name="tests")
    return {"Modal-Key": token.token_id, "Modal-Secret": token.token_secret}


def digest(image: str) -> str:
    return image.partition("@")[2]


def deploy(image: str, *, app: str = "echo", environment: str = "dev", tag: str = "", **options: Any) -> modal.App:
    """One server from the image, which gets PORT and what `env` and `secrets` say."""
    sticky = options.pop("sticky", False)
    tags = options.pop("tags", {"digest": digest(image)[7:39]})
    env = {"PORT": "8000", **options.pop("env", {})}
    deployed = modal.App(app, tags=tags)
    kind = sessioned()(_DirectServerCls) if sticky else _DirectServerCls
    deployed.server(image=modal.Image.from_registry(image), name=NAME, env=env, include_source=False, **options)(kind)
    return deployed.deploy(environment_name=environment, tag=tag)


def server(app: str = "echo", environment: str = "dev") -> modal.Server:
    return modal.Server.from_name(app, NAME, environment_name=environment)


def url(app: str = "echo", environment: str = "dev") -> str:
    found = server(app, environment).get_url()
    assert found
    return found


def ask(path: str, headers: dict[str, str], *, base: str = "") -> Any:
    """The server's answer, waiting while it is cold."""
    base = base or url()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urlopen(Request(base + path, headers=headers), timeout=10) as answer:
                return json.load(answer)
        except HTTPError as exc:
            with exc:
                if exc.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


def status(headers: dict[str, str]) -> int:
    try:
        with urlopen(Request(f"{url()}/facts", headers=headers), timeout=10) as answer:
            return answer.status
    except HTTPError as exc:
        with exc:
            return exc.code


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cli(service: ModalService, *words: str) -> str:
    """What `modal WORDS` says on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "modal", *words],
        env={**os.environ, **service.environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_an_image_is_deployed_by_digest_and_serves_with_its_own_entry_point(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])

    facts = ask("/facts", proxy_headers)

    assert facts["environment"]["VERSION"] == "1"
    assert facts["environment"]["MODAL_ENVIRONMENT"] == "dev"
    assert [each["digest"] for each in service.containers()] == [digest(images[0])]


def test_a_websocket_passes_the_url_and_its_credentials_do_not(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])
    seen = ask("/facts", proxy_headers)["headers"]

    with connect(url().replace("http", "ws"), additional_headers=proxy_headers, proxy=None) as socket:
        hello = json.loads(socket.recv())
        socket.send("there and back")
        echoed = socket.recv()

    assert (hello["version"], echoed) == ("1", "there and back")
    assert not {"Modal-Key", "Modal-Secret"} & seen.keys()
    assert socket.close_code == 1000


def test_nobody_gets_in_without_proxy_credentials(service: ModalService, images: tuple[str, str]) -> None:
    deploy(images[0])

    assert status({}) == 401
    assert status({"Modal-Key": "wk-1", "Modal-Secret": "ws-1"}) == 401


def test_a_server_without_containers_answers_503_until_one_is_up(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])
    service.faults(cold_s=1)
    began = time.monotonic()

    first = status(proxy_headers)
    ask("/facts", proxy_headers)

    assert first == 503
    assert time.monotonic() - began >= 1
    service.scale_to_zero()
    assert service.containers() == []
    assert status(proxy_headers) == 503


def test_wrong_tokens_are_refused(service: ModalService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-wrong")

    with pytest.raises(modal.exception.AuthError):
        modal.App.lookup("echo", environment_name="dev")


def test_an_environment_that_does_not_exist_is_not_found(service: ModalService, images: tuple[str, str]) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="Environment 'nowhere' not found"):
        deploy(images[0], environment="nowhere")


def test_what_was_deployed_is_described(service: ModalService, images: tuple[str, str]) -> None:
    made = deploy(images[0], tag="first", tags={"git": "abc"}, exit_grace_period=7, memory=512, cpu=1)

    found = modal.App.lookup("echo", environment_name="dev")
    info = server().info(refresh=True)

    assert (found.app_id, found.get_tags()) == (made.app_id, {"git": "abc"})
    assert found.info(refresh=True).lifecycle.version == 1
    assert (info.port, info.unauthenticated, info.exit_grace_period, info.memory_mib) == (8000, False, 7, 512)
    assert info.image_info.image_id


def test_a_named_image_is_the_live_one(service: ModalService, images: tuple[str, str]) -> None:
    image = modal.Image.from_registry(images[0])
    made = modal.App("echo")
    made.server(image=image, name=NAME, env={"PORT": "8000"}, include_source=False)(_DirectServerCls)
    made.deploy(environment_name="dev")
    image.publish(f"echo:{digest(images[0])[7:]}", environment_name="dev")

    named = modal.Image.from_name(f"echo:{digest(images[0])[7:]}", environment_name="dev")

    assert named.build(modal.App.lookup("echo", environment_name="dev")).object_id == (
        server().info(refresh=True).image_info.image_id
    )
    assert service.calls().count("ImageGetOrCreate") == 1
