"""Modal's own SDK and command line against tests/modal_service: what our adapter may take for granted."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import modal
import pytest
from modal._server import _DirectServerCls
from modal.partial_function import sessioned
from websockets.sync.client import connect

from tests.integration.modal_services import ModalService, push_echo, running_modal_service
from tests.integration.registries import PASSWORD, USER, docker_config, registry
from tests.shell import PROJECT

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
    strategy = options.pop("strategy", "rolling")
    login = options.pop("registry_secret", "")
    secret = modal.Secret.from_name(login, environment_name=environment) if login else None
    env = {"PORT": "8000", **options.pop("env", {})}
    made = modal.App(app, tags=tags)
    kind = sessioned()(_DirectServerCls) if sticky else _DirectServerCls
    source = modal.Image.from_registry(image, secret)
    made.server(image=source, name=NAME, env=env, include_source=False, **options)(kind)
    return made.deploy(environment_name=environment, tag=tag, strategy=strategy)


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

    with connect(url().replace("http", "ws"), additional_headers=proxy_headers, proxy=None) as talk:
        hello = json.loads(talk.recv())
        talk.send("there and back")
        echoed = talk.recv()

    assert (hello["version"], echoed) == ("1", "there and back")
    assert not {"Modal-Key", "Modal-Secret"} & seen.keys()
    assert talk.close_code == 1000


def test_nobody_gets_in_without_proxy_credentials(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])

    assert status({}) == 401
    assert status({"Modal-Key": "wk-1", "Modal-Secret": "ws-1"}) == 401
    assert status({"Authorization": "Bearer wk-1.ws-1"}) == 401
    assert status({**proxy_headers, "Modal-Secret": "ws-1"}) == 401
    assert status(proxy_headers) == 503
    bearer = ".".join((proxy_headers["Modal-Key"], proxy_headers["Modal-Secret"]))
    assert status({"Authorization": f"Bearer {bearer}"}) in (200, 503)


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


def test_containers_get_the_secrets_as_they_were_when_they_started(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    modal.Secret.objects.create("keys", {"A": "1", "B": "1"}, environment_name="dev")
    secret = modal.Secret.from_name("keys", environment_name="dev", required_keys=["A"])
    deploy(images[0], secrets=[secret])
    before = ask("/facts", proxy_headers)["environment"]

    secret.hydrate()
    secret.update({"A": "2"})
    unchanged = ask("/facts", proxy_headers)["environment"]
    cli(service, "app", "rollover", "echo", "-e", "dev")
    wait(lambda: ask("/facts", proxy_headers)["environment"]["MODAL_TASK_ID"] != before["MODAL_TASK_ID"])
    after = ask("/facts", proxy_headers)["environment"]

    assert (before["A"], unchanged["A"], after["A"], after["B"]) == ("1", "1", "2", "1")


def test_secrets_are_created_once_overwritten_listed_and_deleted(service: ModalService) -> None:
    create = modal.Secret.objects.create
    create("one", {"A": "1"}, environment_name="dev")
    with pytest.raises(modal.exception.AlreadyExistsError):
        create("one", {"A": "2"}, environment_name="dev")
    create("one", {"A": "2", "B": "2"}, environment_name="dev", allow_existing=True)  # a trap: keeps the old values
    create("two", {}, environment_name="staging")

    assert [each.name for each in modal.Secret.objects.list(environment_name="dev")] == ["one"]
    with pytest.raises(modal.exception.NotFoundError, match="B"):
        modal.Secret.from_name("one", environment_name="dev", required_keys=["B"]).hydrate()
    modal.Secret._create_deployed("one", {"B": "3"}, environment_name="dev", overwrite=True)
    modal.Secret.from_name("one", environment_name="dev", required_keys=["B"]).hydrate()
    modal.Secret.objects.delete("one", environment_name="dev")
    assert modal.Secret.objects.list(environment_name="dev") == []
    assert [each.name for each in modal.Secret.objects.list(environment_name="staging")] == ["two"]


def test_a_second_deployment_takes_over_and_a_rollback_gives_back(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    first, second = map(digest, images)
    deploy(images[0], tag="one")
    ask("/facts", proxy_headers)
    address = url()

    deploy(images[1], tag="two")
    service.wait_for([second])
    now = ask("/facts", proxy_headers)["environment"]["VERSION"]
    cli(service, "app", "rollback", "echo", "v1", "-e", "dev")
    service.wait_for([first])

    assert now == "2"
    assert ask("/facts", proxy_headers)["environment"]["VERSION"] == "1"
    assert url() == address
    history = json.loads(cli(service, "app", "history", "echo", "-e", "dev", "--json"))
    assert [(each["version"], each["tag"]) for each in history] == [("v3", None), ("v2", "two"), ("v1", "one")]


def test_requests_in_flight_keep_the_old_container_for_its_grace_period(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    first, second = map(digest, images)
    deploy(images[0], exit_grace_period=30)
    ask("/facts", proxy_headers)

    with connect(url().replace("http", "ws"), additional_headers=proxy_headers, proxy=None) as talk:
        talk.recv()
        deploy(images[1])
        wait(lambda: [each["digest"] for each in service.containers()] == [second])
        draining = [each["digest"] for each in service.containers("DRAINING")]
        talk.send("still here")
        echoed = talk.recv()

    assert (draining, echoed) == ([first], "still here")
    service.wait_for([second])


def test_a_container_that_can_not_start_leaves_the_old_one_serving(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])
    ask("/facts", proxy_headers)
    service.faults(never_listens=True)

    made = deploy(images[1], startup_timeout=1)
    wait(lambda: any(each["failure"] for each in service.containers("GONE")))

    assert ask("/facts", proxy_headers)["environment"]["VERSION"] == "1"
    service.wait_for([digest(images[0])])
    said = [entry.message for entry in made.logs.tail(20, source="system")]
    assert said == ["Runner failed: nothing listens on port 8000: the startup timeout is over\n"]


def test_two_containers_of_two_deployments_serve_side_by_side_while_a_rolling_one_is_held(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    first, second = map(digest, images)
    deploy(images[0])
    ask("/facts", proxy_headers)
    service.faults(keep_old=True)

    deploy(images[1])
    service.wait_for([first, second])
    versions = {ask("/facts", proxy_headers)["environment"]["VERSION"] for _ in range(4)}
    service.faults(keep_old=False)
    service.wait_for([second])

    assert versions == {"1", "2"}


def test_a_session_stays_on_its_container(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0], sticky=True, min_containers=2)
    service.wait_for([digest(images[0])] * 2)

    sessions = [server().sessions.start(idle_timeout=60) for _ in range(4)]
    met = {
        session.token: {
            ask("/facts", {**proxy_headers, "Modal-Authorization": f"Bearer {session.token}"})["environment"][
                "MODAL_TASK_ID"
            ]
            for _ in range(3)
        }
        for session in sessions
    }
    server().sessions.terminate(sessions[0].token)

    assert all(len(tasks) == 1 for tasks in met.values())
    assert len(set.union(*met.values())) == 2
    assert status({**proxy_headers, "Modal-Authorization": f"Bearer {sessions[0].token}"}) == 404
    assert status(proxy_headers) == 400
    assert status({"Modal-Authorization": f"Bearer {sessions[1].token}"}) == 401
    assert server().info(refresh=True).sessioned


def test_more_requests_than_a_server_takes_are_refused_with_429(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0], max_concurrency=1)
    ask("/facts", proxy_headers)

    with connect(url().replace("http", "ws"), additional_headers=proxy_headers, proxy=None):
        assert status(proxy_headers) == 429
    wait(lambda: status(proxy_headers) == 200)


def test_logs_are_the_containers_own(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    made = deploy(images[0])
    ask("/say?hello", proxy_headers)

    wait(lambda: "hello\n" in [entry.message for entry in made.logs.tail(10)])

    assert [entry.message for entry in made.logs.tail(10, source="stdout")] == ["listening\n", "hello\n"]
    assert [entry.message for entry in made.logs.tail(10, source="stderr")] == ["a warning\n"]
    assert [entry.message for entry in made.logs.tail(1)] == ["hello\n"]
    since = datetime.now(UTC) - timedelta(minutes=5)
    fetched = [entry.message for entry in made.logs.fetch(since=since, until=datetime.now(UTC) + timedelta(seconds=1))]
    assert sorted(fetched) == ["a warning\n", "hello\n", "listening\n"]


@pytest.mark.parametrize("breaks", [False, True])
def test_a_stream_of_logs_goes_on_across_reconnections(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str], breaks: bool
) -> None:
    made = deploy(images[0])
    ask("/facts", proxy_headers)
    service.faults(log_stream_s=0.1, log_stream_breaks=breaks)
    streamed: list[str] = []
    follower = threading.Thread(target=lambda: streamed.extend(entry.message for entry in made.logs.stream()))
    follower.start()
    wait(lambda: "AppGetLogs" in service.calls())

    for number in range(10):
        ask(f"/say?{number}", proxy_headers)
        time.sleep(0.05)
    made.stop()
    follower.join(PATIENCE_S)

    assert streamed == [*(f"{number}\n" for number in range(10)), "terminated\n"]
    assert service.calls().count("AppGetLogs") > 2


def test_a_stopped_app_is_not_found_its_url_serves_nothing_and_its_name_begins_anew(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    made = deploy(images[0])
    ask("/facts", proxy_headers)
    address = url()

    modal.App.lookup("echo", environment_name="dev").stop()

    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("echo", environment_name="dev")
    with pytest.raises(HTTPError, match="404"):
        ask("/facts", proxy_headers, base=address)
    assert service.containers() == service.containers("DRAINING") == []
    assert "stopped" in cli(service, "app", "list", "-e", "dev")
    again = deploy(images[0])
    assert again.app_id != made.app_id
    assert again.info(refresh=True).lifecycle.version == 1


def test_an_image_that_is_not_there_fails_the_build_and_leaves_no_app(
    service: ModalService, images: tuple[str, str]
) -> None:
    absent = f"{images[0].partition('@')[0]}@sha256:{'0' * 64}"

    with pytest.raises(modal.exception.RemoteError, match="not found"):
        deploy(absent)

    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("echo", environment_name="dev")


def test_a_deployment_that_is_cut_half_way_changes_nothing(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])
    service.faults(cut_at="AppPublish")

    asyncio.run(_cut(service, images[1]))
    service.faults(unreachable=False, cut_at="")

    assert modal.App.lookup("echo", environment_name="dev").info(refresh=True).lifecycle.version == 1
    assert ask("/facts", proxy_headers)["environment"]["VERSION"] == "1"


async def _cut(service: ModalService, image: str) -> None:
    """Deploy until the connection breaks, and give up."""
    made = modal.App("echo")
    source = modal.Image.from_registry(image)
    made.server(image=source, name=NAME, env={"PORT": "8000"}, include_source=False)(_DirectServerCls)
    deploying = asyncio.create_task(made.deploy.aio(environment_name="dev"))
    await asyncio.to_thread(service.wait_for_cut)
    deploying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deploying


def test_a_deployment_may_have_happened_though_its_answer_was_lost(
    service: ModalService, images: tuple[str, str]
) -> None:
    deploy(images[0])
    service.faults(cut_after="AppPublish")

    asyncio.run(_cut(service, images[1]))
    service.faults(unreachable=False, cut_after="")

    assert modal.App.lookup("echo", environment_name="dev").info(refresh=True).lifecycle.version == 2


def test_a_call_that_is_sent_again_is_done_once(service: ModalService, images: tuple[str, str]) -> None:
    service.faults(cut_after="AppPublish")
    deploying = threading.Thread(target=deploy, args=(images[0],))

    deploying.start()
    service.wait_for_cut()
    service.faults(unreachable=False, cut_after="")
    deploying.join(PATIENCE_S)

    assert service.calls().count("AppPublish") == 2
    assert modal.App.lookup("echo", environment_name="dev").info(refresh=True).lifecycle.version == 1


def test_an_unreachable_service_can_be_reached_again_and_its_urls_all_the_time(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0])
    address = url()

    service.faults(unreachable=True)

    service.wait_for_cut()
    assert ask("/facts", proxy_headers, base=address)["environment"]["VERSION"] == "1"
    service.faults(unreachable=False)
    assert modal.App.lookup("echo", environment_name="dev").app_id


def test_recreating_ends_old_containers_at_once(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0], exit_grace_period=60, min_containers=1)
    service.wait_for([digest(images[0])])

    with connect(url().replace("http", "ws"), additional_headers=proxy_headers, proxy=None):
        deploy(images[1], strategy="recreate", min_containers=1)
        assert digest(images[0]) not in [each["digest"] for each in service.containers("DRAINING")]
    service.wait_for([digest(images[1])])


def test_a_container_that_ends_by_itself_is_replaced(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    made = deploy(images[0])
    before = ask("/facts", proxy_headers)["environment"]["MODAL_TASK_ID"]

    with pytest.raises((HTTPException, OSError)):
        ask("/exit", proxy_headers)
    wait(lambda: [each["task_id"] for each in service.containers()] not in ([], [before]))

    assert ask("/facts", proxy_headers)["environment"]["MODAL_TASK_ID"] != before
    said = [entry.message for entry in made.logs.tail(20, source="system")]
    assert said == ["Runner failed: the container ended with exit status 3\n"]


def test_containers_nobody_needs_end_after_the_servers_window(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0], scaledown_window=2)
    ask("/facts", proxy_headers)

    service.wait_for([])

    assert status(proxy_headers) == 503


def test_a_private_registry_is_opened_by_a_secret(service: ModalService, tmp_path: Path) -> None:
    with registry(login="password") as made:
        login = {"DOCKER_CONFIG": str(docker_config(tmp_path, made.address))}
        image = push_echo(made, environment=login)[0]
        for name, password in (("right", PASSWORD), ("wrong", "guessed")):
            values = {"REGISTRY_USERNAME": USER, "REGISTRY_PASSWORD": password}
            modal.Secret.objects.create(name, values, environment_name="dev")

        with pytest.raises(modal.exception.ImageBuildError):
            deploy(image)
        with pytest.raises(modal.exception.ImageBuildError):
            deploy(image, registry_secret="wrong")
        deploy(image, registry_secret="right", min_containers=1)

        service.wait_for([digest(image)])


def test_builds_fail_as_a_fault_wants_it_and_keep_their_log(service: ModalService, images: tuple[str, str]) -> None:
    service.faults(build_failure="no space left on the builder")

    with pytest.raises(modal.exception.ImageBuildError, match="no space left on the builder") as failed:
        deploy(images[0])

    assert "no space left on the builder" in cli(service, "image", "logs", failed.value.image_id)


def test_faults_of_single_calls(service: ModalService, images: tuple[str, str]) -> None:
    deploy(images[0])

    service.faults(denied="AppGetTags")
    with pytest.raises(modal.exception.PermissionDeniedError):
        modal.App.lookup("echo", environment_name="dev").get_tags()
    service.faults(denied="", unavailable="AppGetTags", unavailable_times=2)
    assert modal.App.lookup("echo", environment_name="dev").get_tags()
    service.faults(unavailable="", slow_s=0.5, slow="AppGetTags")
    began = time.monotonic()
    modal.App.lookup("echo", environment_name="dev").get_tags()
    assert time.monotonic() - began >= 0.5


def test_as_many_containers_serve_as_a_fault_wants(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    service.faults(replicas=2)
    deploy(images[0])
    ask("/facts", proxy_headers)

    service.wait_for([digest(images[0])] * 2)

    service.faults(busy=True)
    assert status(proxy_headers) == 429


def test_a_stream_of_logs_may_begin_with_what_there_is(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    made = deploy(images[0])
    ask("/facts", proxy_headers)
    service.faults(log_backlog=True)

    streamed = [entry.message for entry in made.logs.stream(timeout=1)]

    assert sorted(streamed) == ["a warning\n", "listening\n"]


def test_a_server_that_a_deployment_drops_runs_no_longer(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0], min_containers=1)
    service.wait_for([digest(images[0])])
    address = url()

    made = modal.App("echo")
    source = modal.Image.from_registry(images[1])
    made.server(image=source, name="Other", env={"PORT": "8000"}, include_source=False)(_DirectServerCls)
    made.deploy(environment_name="dev")

    service.wait_for([])
    with pytest.raises(HTTPError, match="404"):
        ask("/facts", proxy_headers, base=address)


def test_each_kind_of_evidence_is_falsified_and_removed_alone(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    deploy(images[0], tags={"digest": "abc"}, env={"IMAGE": digest(images[0])})

    def evidence() -> tuple[str | None, dict[str, str], str | None]:
        tags = modal.App.lookup("echo", environment_name="dev").get_tags()
        return (
            server().info(refresh=True).image_info.image_id,
            tags,
            ask("/facts", proxy_headers)["environment"]["IMAGE"],
        )

    image_id, tags, reported = evidence()

    assert (tags, reported) == ({"digest": "abc"}, digest(images[0]))
    service.faults(image_id="falsified")
    assert evidence()[0] not in ("", image_id)
    assert evidence()[1:] == (tags, reported)
    service.faults(image_id="", recorded="falsified")
    assert evidence() == (image_id, {"digest": "cba"}, reported)
    service.faults(recorded="removed")
    assert evidence() == (image_id, {}, reported)
    service.faults(recorded="", reported="falsified")
    assert evidence()[2] not in (None, reported)
    service.faults(reported="removed")
    assert evidence() == (image_id, tags, None)


def test_what_is_not_part_of_the_peer_is_unimplemented(service: ModalService) -> None:
    with pytest.raises(modal.exception.UnimplementedError):
        modal.Volume.objects.list(environment_name="dev")


def test_modals_own_command_line_works_and_shows_what_was_done(
    service: ModalService, images: tuple[str, str], proxy_headers: dict[str, str]
) -> None:
    modal.Secret.objects.create("keys", {"A": "1"}, environment_name="dev")

    deployed = cli(
        service,
        *("server", "deploy", "--image", images[0], "--port", "8000", "--app-name", "by-hand"),
        *("--env-var", "PORT=8000", "--secret", "keys", "-e", "dev", "--yes"),
    )
    ask("/say?hello", proxy_headers, base=url("by-hand"))

    assert "App deployed" in deployed
    info = json.loads(cli(service, "server", "info", "by-hand/Server", "-e", "dev", "--json"))
    assert (info["server_url"], info["port"]) == (url("by-hand"), 8000)
    listed = json.loads(cli(service, "app", "list", "-e", "dev", "--json"))
    assert [(each["description"], each["state"], each["tasks"]) for each in listed] == [("by-hand", "deployed", "1")]
    history = json.loads(cli(service, "app", "history", "by-hand", "-e", "dev", "--json"))
    assert [(each["version"], each["deployed_by"]) for each in history] == [("v1", "tester")]
    assert "hello" in cli(service, "app", "logs", "by-hand", "-e", "dev")
    assert "keys" in cli(service, "secret", "list", "-e", "dev")
    assert "by-hand" in cli(service, "container", "list", "-e", "dev")
    cli(service, "app", "stop", "by-hand", "-e", "dev", "--yes")
    assert service.containers() == []


def test_a_killed_test_run_leaves_no_container(images: tuple[str, str]) -> None:
    program = (
        "import os, signal\n"
        "from tests.integration.modal_services import running_modal_service\n"
        "from tests.integration.test_modal_peer import deploy\n"
        "with running_modal_service() as service:\n"
        "    os.environ.update(service.environment)\n"
        f"    deploy({images[0]!r}, min_containers=1)\n"
        f"    service.wait_for([{digest(images[0])!r}])\n"
        "    print(service.containers()[0]['container_id'], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60)

    container_id = done.stdout.strip()
    assert container_id, done.stderr
    wait(lambda: container_id not in _containers())


def test_a_killed_peer_is_cleaned_up_by_the_next(service: ModalService, images: tuple[str, str]) -> None:
    deploy(images[0], min_containers=1)
    service.wait_for([digest(images[0])])
    container_id = service.containers()[0]["container_id"]
    service.kill()
    left = container_id in _containers()

    with running_modal_service():
        assert left
        assert container_id not in _containers()
        assert images[0] not in _images()


def _containers() -> list[str]:
    argv = ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", "label=theory.test.modal-service"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def _images() -> list[str]:
    argv = ["docker", "images", "--digests", "--format", "{{.Repository}}@{{.Digest}}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def test_the_peer_imports_nothing_of_the_product() -> None:
    program = "import sys, tests.modal_service.__main__; print([n for n in sys.modules if n.split('.')[0] == 'apps'])"

    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "[]", done.stderr
