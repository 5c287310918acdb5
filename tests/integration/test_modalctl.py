"""modalctl against a peer of Modal that really runs what is deployed: the whole loop, secrets, logs, the door."""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apps.processors.envelope import new_execution_id
from tests.commands.workshop import until
from tests.integration.modal_services import ModalService
from tests.integration.modal_shop import DEV, KEY, ModalShop, digest, status_of
from tests.integration.registries import PASSWORD, USER, registry

pytestmark = pytest.mark.docker


def test_start_deploys_a_digest_and_returns_when_it_answers(modal_shop: ModalShop, modal_service: ModalService) -> None:
    image = modal_shop.images[0]

    done = modal_shop.start(image)

    document = done.document
    assert {key: document[key] for key in ("status", "ref", "env", "app", "oci", "version", "previous")} == {
        "status": "success",
        "ref": modal_shop.ref,
        "env": "dev",
        "app": modal_shop.app,
        "oci": image,
        "version": 1,
        "previous": None,
    }
    assert [each["digest"] for each in modal_service.containers()] == [digest(image)]
    assert "has no pin for linux/amd64" in done.stderr
    assert modal_shop.said() == "the first example"


def test_nothing_but_the_contracts_variables_gets_into_a_container(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])

    found = json.loads(modal_shop.said("--mode", "mock", do="environment"))

    ours = {name for name in found if name.startswith("THEORY_") or name in ("PORT", "GIT_BRANCH", "TEST_KEY")}
    assert ours == {
        "PORT",
        "THEORY_BIND",
        "THEORY_IMAGE_DIGEST",
        "THEORY_SCRATCH",
        "THEORY_SECRETS_OF",
        "THEORY_SOURCE",
        "THEORY_SPEC",
    }


def test_a_second_start_serves_the_new_digest_and_a_rollback_the_old_one(modal_shop: ModalShop) -> None:
    first, second = modal_shop.images
    modal_shop.started(first)

    again = modal_shop.started(second)
    rolled = modal_shop.ctl("rollback")

    assert (again["version"], again["previous"]) == (2, digest(first))
    assert rolled.status == 0, rolled
    assert (rolled.document["digest"], rolled.document["rollback_of"], rolled.document["version"]) == (
        digest(first),
        1,
        3,
    )
    assert {piece["state"] for piece in rolled.document["evidence"].values()} == {"agrees"}
    rows = modal_shop.ctl("history").document["deployments"]
    assert [(row["version"], row["digest"], row["live"], row["rollback_of"]) for row in rows] == [
        (3, digest(first), True, 1),
        (2, digest(second), False, None),
        (1, digest(first), False, None),
    ]
    assert rows[0]["deployed_by"]
    assert modal_shop.said() == "the first example"


def test_a_rollback_is_to_a_version_or_a_digest(modal_shop: ModalShop) -> None:
    first, second = modal_shop.images
    modal_shop.started(first)
    modal_shop.started(second)

    for to, image in (("1", first), (digest(second), second), ("v1", first)):
        done = modal_shop.ctl("rollback", "--to", to)

        assert done.status == 0, done
        assert modal_shop.ctl("status").document["digest"] == digest(image)
    assert modal_shop.ctl("verify-digest", "--oci", first).document["match"] is True


def test_a_rollback_to_what_never_was_says_so(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])

    alone, absent = modal_shop.ctl("rollback"), modal_shop.ctl("rollback", "--to", "7")

    assert (alone.status, absent.status) == (66, 66)
    assert alone.document["error"]["message"] == (
        f"the history of {modal_shop.app} has no earlier deployment of another digest"
    )
    assert absent.document["error"]["message"] == f"the history of {modal_shop.app} has no deployment 7"


def test_the_same_ref_is_another_app_in_each_environment(modal_shop: ModalShop, modal_service: ModalService) -> None:
    image = modal_shop.images[0]

    staging = modal_shop.ctl("start", "--env", "staging", "--oci", image)
    main = modal_shop.ctl("start", "--env", "main", "--oci", image)
    dev = modal_shop.started(image)

    name = f"test-{modal_shop.name}-v1"
    assert [(each["name"], each["environment"]) for each in modal_service.apps()] == [
        (name, "staging"),
        (name, "main"),
        (modal_shop.app, "dev"),
    ]
    assert len({staging.document["url"], main.document["url"], dev["url"]}) == 3
    assert modal_shop.ctl("run", "--env", "main").status == 0


def test_two_starts_at_once_are_one_after_the_other(modal_shop: ModalShop, modal_service: ModalService) -> None:
    starts = [
        modal_shop.shell.spawn(
            "modalctl", "start", "--ref", modal_shop.ref, "--env", "dev", "--oci", image, "--json", env=DEV
        )
        for image in modal_shop.images
    ]

    answers = [json.loads(start.communicate(timeout=60)[0]) for start in starts]

    assert [each["status"] for each in answers] == ["success"] * 2, answers
    assert sorted(each["version"] for each in answers) == [1, 2]
    (last,) = (each for each in answers if each["version"] == 2)
    modal_service.wait_for([digest(last["oci"])])


def test_a_start_that_fails_leaves_what_another_checkout_deployed_meanwhile(
    modal_shop: ModalShop, modal_service: ModalService, tmp_path: Path
) -> None:
    first, second = modal_shop.images
    modal_service.faults(cold_s=60.0)
    words = ("start", "--ref", modal_shop.ref, "--env", "dev", "--oci", first, "--timeout", "8", "--json")
    slow = modal_shop.shell.spawn("modalctl", *words, env=DEV)
    until(lambda: any(each["container_id"] for each in modal_service.containers("STARTING")), "cold container")
    modal_service.faults(cold_s=0.0)
    other = modal_shop.at(modal_service, tmp_path / "other")

    quick = other.start(second)
    error = json.loads(slow.communicate(timeout=60)[0])["error"]

    assert quick.status == 0, quick
    assert (error["code"], error["details"]["serving"]) == ("ERR_RUNTIME", digest(second))
    assert f"meanwhile {digest(second)} was deployed by somebody else" in error["message"]
    assert other.said(text="still here") == "still here"


# secrets


def test_without_synced_secrets_a_real_run_ends_in_a_missing_secret(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])

    done = modal_shop.run("--mode", "real", text="a")

    assert done.status == 77
    assert done.document["error"]["code"] == "ERR_MISSING_SECRET"
    assert modal_shop.said(text="mock needs none") == "mock needs none"


def test_synced_secrets_reach_containers_that_run_and_new_ones(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    modal_shop.started(modal_shop.images[0])

    synced = modal_shop.ctl("sync-secrets", env={"TEST_KEY": KEY})
    old = json.loads(modal_shop.said("--mode", "real", do="environment"))["TEST_KEY"]
    modal_service.scale_to_zero()
    new = json.loads(modal_shop.said("--mode", "real", do="environment"))["TEST_KEY"]

    assert synced.document["synced"] == ["TEST_KEY"]
    assert synced.document["missing"] == []
    assert synced.document["rollover"] == "done"
    assert (old, new) == (KEY, KEY)
    assert KEY not in synced.stdout + synced.stderr
    assert KEY not in "".join(path.read_text() for path in modal_shop.state.glob("*.json"))


def test_a_dry_sync_names_what_it_would_do_and_does_nothing(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_shop.ctl("sync-secrets", env={"TEST_KEY": KEY})
    before = modal_service.calls()

    done = modal_shop.ctl("sync-secrets", "--dry-run", env={"TEST_KEY": "another-value", "OTHER_KEY": "more"})
    left = modal_shop.ctl("sync-secrets", "--dry-run")

    names = ("synced", "created", "updated", "left", "missing")
    assert [done.document[name] for name in names] == [[], ["OTHER_KEY"], ["TEST_KEY"], [], []]
    assert [left.document[name] for name in names] == [[], [], [], ["TEST_KEY"], ["TEST_KEY"]]
    assert set(modal_service.calls()[len(before) :]).isdisjoint({"SecretUpdate", "AppRollover"})


def test_fail_on_missing_writes_nothing_at_all(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_shop.started(modal_shop.images[0])

    done = modal_shop.ctl("sync-secrets", "--fail-on-missing", env={"OTHER_KEY": "more"})

    assert (done.status, done.document["error"]["details"]) == (77, {"missing": ["TEST_KEY"]})
    assert "SecretUpdate" not in modal_service.calls()


def test_prune_removes_what_the_registry_no_longer_names(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_shop.ctl("sync-secrets", env={"TEST_KEY": KEY, "OTHER_KEY": "more"})
    modal_shop.change(secrets={"required": ["TEST_KEY"]})

    kept = modal_shop.ctl("sync-secrets", env={"TEST_KEY": KEY})
    pruned = modal_shop.ctl("sync-secrets", "--prune", env={"TEST_KEY": KEY})
    again = modal_shop.ctl("sync-secrets", "--prune", "--dry-run")

    assert (kept.document["pruned"], pruned.document["pruned"], again.document["pruned"]) == ([], ["OTHER_KEY"], [])
    assert again.document["left"] == ["TEST_KEY"]


# the door


def test_nobody_gets_in_without_the_proxy_credentials(modal_shop: ModalShop) -> None:
    url = modal_shop.started(modal_shop.images[0], env={"THEORY_RUN_TOKEN": "the-run-token"})["url"]
    proxy = modal_shop.tokens()["proxy"]

    outcomes = [
        modal_shop.run(env={"THEORY_RUN_TOKEN": "the-run-token"}),
        modal_shop.run(),
        modal_shop.run(env={"THEORY_RUN_TOKEN": "another"}),
        modal_shop.run(env={"MODAL_PROXY_TOKEN_ID": proxy["id"], "MODAL_PROXY_TOKEN_SECRET": "wrong"}),
    ]

    assert [done.status for done in outcomes] == [0, 77, 77, 77]
    assert {done.document["error"]["code"] for done in outcomes[1:]} == {"ERR_UNAUTHORIZED"}
    for name in ("MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET", "THEORY_RUN_TOKEN"):
        assert name in outcomes[1].document["error"]["hint"]
    wrong = {"Modal-Key": proxy["id"], "Modal-Secret": "wrong"}
    assert (status_of(f"{url}/run", {}), status_of(f"{url}/healthz", wrong)) == (401, 401)
    told = "".join(done.stdout + done.stderr for done in outcomes) + modal_shop.ctl("logs").stdout
    assert [secret for secret in (proxy["secret"], "the-run-token") if secret in told] == []


def test_credentials_that_start_makes_are_kept_for_their_owner_alone(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])
    file = modal_shop.state / "modal_tokens.json"
    first = modal_shop.tokens()["proxy"]

    modal_shop.started(modal_shop.images[1])

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert modal_shop.tokens()["proxy"] == first


def test_refused_credentials_stop_a_start_before_it_deploys(modal_shop: ModalShop, modal_service: ModalService) -> None:
    done = modal_shop.start(
        modal_shop.images[0], env={"MODAL_PROXY_TOKEN_ID": "wk-unknown", "MODAL_PROXY_TOKEN_SECRET": "ws-unknown"}
    )

    assert (done.status, done.document["error"]["code"]) == (77, "ERR_UNAUTHORIZED")
    assert "MODAL_PROXY_TOKEN_ID" in done.document["error"]["hint"]
    assert modal_service.apps() == []


def test_no_login_and_no_environment_are_told_as_what_they_are(modal_shop: ModalShop) -> None:
    none = modal_shop.start(modal_shop.images[0], env={"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""})
    refused = modal_shop.start(modal_shop.images[0], env={"MODAL_TOKEN_SECRET": "as-wrong"})

    assert [(each.status, each.document["error"]["code"]) for each in (none, refused)] == [(77, "ERR_UNAUTHORIZED")] * 2
    assert {each.document["error"]["hint"] for each in (none, refused)} == {
        "modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
    }


def test_a_pull_secret_that_is_not_there_stops_a_start_before_it_deploys(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    image = json.loads(modal_shop.registry_yaml.read_text())["image"]
    modal_shop.change(image={**image, "pull_secret": "ghcr-pull"})

    done = modal_shop.start(modal_shop.images[0])

    assert (done.status, done.document["error"]["code"]) == (78, "ERR_CONFIG")
    assert done.document["error"]["hint"].startswith("modal secret create --env dev ghcr-pull REGISTRY_USERNAME=")
    assert modal_service.apps() == []


def test_an_image_of_a_registry_with_a_login_is_fetched_with_the_pull_secret(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    section = json.loads(modal_shop.registry_yaml.read_text())["image"]

    with registry(login="password", storage=modal_shop.storage) as guarded:
        image = f"{guarded.address}/{modal_shop.images[0].partition('/')[2]}"
        without = modal_shop.start(image)
        modal_shop.change(image={**section, "pull_secret": "ghcr-pull"})
        absent = modal_shop.start(image)
        modal_cli(modal_shop, absent.document["error"]["hint"], USER, "wrong")
        wrong = modal_shop.start(image)
        modal_cli(modal_shop, f"{absent.document['error']['hint']} --force", USER, PASSWORD)
        started = modal_shop.start(image)

    for done in (without, wrong):
        assert (done.status, done.document["error"]["code"]) == (69, "ERR_IMAGE_PULL")
        assert image in done.document["error"]["message"]
        assert done.document["error"]["details"]["serving"] is None
    assert "set image.pull_secret in registry.yaml" in without.document["error"]["hint"]
    assert wrong.document["error"]["hint"] == "look at the Modal secret ghcr-pull, and at details.log"
    assert started.status == 0, started
    assert [each["digest"] for each in modal_service.containers()] == [digest(image)]
    told = "".join(done.stdout + done.stderr for done in (without, absent, wrong, started))
    assert PASSWORD not in told


def modal_cli(shop: ModalShop, line: str, user: str, password: str) -> None:
    """Type the line of a hint, with a login for its dots."""
    words = shlex.split(line)
    given = {"REGISTRY_USERNAME=…": f"REGISTRY_USERNAME={user}", "REGISTRY_PASSWORD=…": f"REGISTRY_PASSWORD={password}"}
    argv = [str(Path(sys.executable).with_name("modal")), *(given.get(word, word) for word in words[1:])]
    subprocess.run(argv, env=shop.shell.environment(), check=True, capture_output=True, timeout=60)


def test_an_image_builder_that_would_change_the_image_is_refused(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    done = modal_shop.start(modal_shop.images[0], env={"MODAL_IMAGE_BUILDER_VERSION": "2024.10"})

    assert (done.status, done.document["error"]["code"]) == (78, "ERR_CONFIG")
    assert "2024.10" in done.document["error"]["message"]
    assert modal_service.apps() == []


# running


def test_a_run_wakes_a_deployment_that_was_scaled_to_zero(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_service.scale_to_zero()
    modal_service.faults(cold_s=3.0)

    done = modal_shop.run(text="awake")

    assert done.status == 0, done
    assert modal_shop.output(done.document) == "awake"


def test_a_run_whose_connection_breaks_comes_back_to_the_container_that_has_it(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    modal_service.faults(replicas=2)
    modal_shop.started(modal_shop.images[0])
    moments = ['"accepted"', '"hello"', '"seq":3,', '"reattached"', '"upload"', '"uploaded"', '"completed"']
    modal_service.faults(replicas=2, breaks=moments)

    done = modal_shop.run("--stream", text="one two three four", pause_s=0.1)

    *events, envelope = done.documents
    assert (done.status, envelope["status"]) == (0, "success"), done
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert "".join(event["data"]["text"] for event in events if event["event"] == "token") == "one two three four "
    assert [event["event"] for event in events].count("reattached") >= 4
    assert modal_shop.output(envelope) == "one two three four"


def test_more_than_a_deployment_takes_is_busy(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_service.faults(busy=True)

    done = modal_shop.run()

    assert (done.status, done.document["error"]["code"]) == (75, "ERR_BUSY")


def test_an_image_that_is_not_the_pin_is_neither_deployed_nor_run(modal_shop: ModalShop) -> None:
    first, second = modal_shop.images
    modal_shop.pin(first)

    refused = modal_shop.start(second)
    modal_shop.started(first)
    modal_shop.pin(second)
    drifted = modal_shop.run()
    forced = modal_shop.start(first, "--allow-drift")
    chosen = modal_shop.run()

    assert (refused.status, drifted.status, forced.status, chosen.status) == (3, 3, 0, 0)
    details = {"of": "image", "running": digest(second), "selected": digest(first)}
    assert refused.document["error"]["details"] == details
    assert drifted.document["error"]["details"] == {"of": "image", "running": digest(first), "selected": digest(second)}
    assert "was chosen when it was deployed" in chosen.stderr


def test_a_run_that_fails_takes_no_other_with_it(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])

    failed = modal_shop.run("--timeout", "1", text="one two three four five", pause_s=0.7)

    assert (failed.status, failed.document["error"]["code"]) == (75, "ERR_TIMEOUT")
    assert [modal_shop.said(text=f"run {number}") for number in range(3)] == [f"run {number}" for number in range(3)]


def test_a_changed_spec_is_drift(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_shop.change(outputs=[{"path": "text/*", "mime": "text/plain"}])

    done = modal_shop.run()

    assert (done.status, done.document["error"]["details"]["of"]) == (3, "spec")


def test_one_digest_gives_the_same_here_and_there(modal_shop: ModalShop) -> None:
    image = modal_shop.images[0]
    modal_shop.pin(image)
    modal_shop.started(image)
    start = modal_shop.shell("localctl", "start", "--ref", modal_shop.ref, "--source", "pin", "--allow-missing-secrets")
    assert start.status == 0, start
    try:
        here = modal_shop.shell("localctl", "run", "--ref", modal_shop.ref, "--json").document
    finally:
        modal_shop.shell("localctl", "stop", "--ref", modal_shop.ref)
    there = modal_shop.run().document

    assert modal_shop.output(here) == modal_shop.output(there)
    assert [each["digest"] for each in here["outputs"]] == [each["digest"] for each in there["outputs"]]
    assert list(here) == list(there)
    assert list(here["meta"]) == list(there["meta"])
    differ = {key for key in here["meta"] if here["meta"][key] != there["meta"][key]}
    assert differ <= {"adapter", "engine", "started_at", "duration_ms"}
    assert (there["meta"]["adapter"], there["meta"]["engine"]) == ("modal", "modal")


def test_a_run_whose_client_was_killed_goes_on_where_it_was(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(replicas=2)
    modal_shop.started(modal_shop.images[0])
    execution_id = new_execution_id()
    words = ("run", "--ref", modal_shop.ref, "--env", "dev", "--execution-id", execution_id, "--stream", "--json")
    params: dict[str, Any] = {"text": "one two three four five six seven", "pause_s": 0.7}
    given = ("--inputs-json", json.dumps({"schema": "v1", "params": params}))
    first = modal_shop.shell.spawn("modalctl", *words, *given)
    assert first.stdout
    started_at = next(json.loads(line)["ts"] for line in first.stdout if '"token"' in line)
    first.kill()
    first.communicate()

    again = modal_shop.run("--execution-id", execution_id, **params)

    assert again.status == 0, again
    assert modal_shop.output(again.document) == params["text"]
    assert again.document["meta"]["started_at"] <= started_at
    assert modal_shop.tokens()["sessions"] == {}


def test_an_attached_file_reaches_a_deployment(modal_shop: ModalShop) -> None:
    modal_shop.change(inputs={"type": "object", "examples": [{}]})
    modal_shop.started(modal_shop.images[0])
    (modal_shop.shell.root / "word.bin").write_bytes(bytes(5 * 2**20))

    done = modal_shop.run("--attach", f"text={modal_shop.shell.root}/word.bin")

    assert done.status == 0, done
    assert modal_shop.output(done.document) == "inputs/1/word.bin"  # its handler repeats the text


# state, logs, stop


def test_what_is_not_deployed_is_absent_then_deployed_then_stopped(modal_shop: ModalShop) -> None:
    states = [modal_shop.ctl("status", env=DEV).document["state"]]
    never = modal_shop.ctl("stop", env=DEV).document["stopped"]
    modal_shop.started(modal_shop.images[0])
    states.append(modal_shop.ctl("status").document["state"])
    stops = [modal_shop.ctl("stop").document["stopped"] for _ in range(2)]
    after = modal_shop.ctl("status").document

    assert states == ["absent", "deployed"]
    assert (never, stops) == (False, [True, False])
    assert (after["state"], after["url"]) == ("stopped", None)


@pytest.mark.parametrize("subcommand", ["run", "logs", "sync-secrets", "rollback", "history", "verify-digest"])
def test_what_needs_a_deployment_says_that_there_is_none(modal_shop: ModalShop, subcommand: str) -> None:
    oci = ("--oci", modal_shop.images[0]) if subcommand == "verify-digest" else ()

    done = modal_shop.ctl(subcommand, *oci, env=DEV)

    assert (done.status, done.document["error"]["code"]) == (66, "ERR_NOT_DEPLOYED")
    assert done.document["error"]["hint"] == f"modalctl start --ref {modal_shop.ref} --env dev --oci OCI"


def test_logs_are_lines_with_time_and_stream(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_shop.run(do="speak", text="loudly")
    until(lambda: "loudly" in modal_shop.ctl("logs").stdout, "line")

    lines = modal_shop.ctl("logs").documents
    last = modal_shop.ctl("logs", "--tail", "1").documents
    none = modal_shop.ctl("logs", "--tail", "0")
    recent = modal_shop.ctl("logs", "--since", "10m").documents

    spoken = {(each["stream"], each["line"]) for each in lines if "loudly" in each["line"]}
    assert any(stream == "stdout" for stream, _ in spoken), spoken
    assert [each["ts"] for each in lines] == sorted(each["ts"] for each in lines)
    assert (last, none.stdout) == (lines[-1:], "")
    assert recent == lines


@pytest.mark.parametrize("backlog", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
def test_followed_logs_lose_and_repeat_no_line_over_lost_connections(
    modal_shop: ModalShop, modal_service: ModalService, backlog: bool, breaks: bool
) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_service.faults(log_stream_s=0.7, log_stream_breaks=breaks, log_backlog=backlog)
    modal_shop.run(do="speak", text="before")
    follower = modal_shop.shell.spawn(
        "modalctl", "logs", "--ref", modal_shop.ref, "--env", "dev", "--follow", "--json", "-q"
    )
    time.sleep(1.5)

    for number in range(3):  # each takes longer than a stream lasts
        modal_shop.run(do="speak", text=f"number {number}")
    modal_shop.ctl("stop")
    stdout, stderr = follower.communicate(timeout=60)

    assert follower.returncode == 0, stderr
    said = [json.loads(line)["line"] for line in stdout.splitlines() if "to stdout" in line]
    told = [line.rpartition("to stdout: ")[2] for line in said]
    assert told == ["before", *(f"number {each}" for each in range(3))], f"{told} {stdout}"


def test_logs_go_on_after_modal_was_out_of_reach(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_shop.started(modal_shop.images[0])
    follower = modal_shop.shell.spawn(
        "modalctl", "logs", "--ref", modal_shop.ref, "--env", "dev", "--follow", "--json", "-q"
    )
    assert follower.stdout
    follower.stdout.readline()

    modal_service.faults(unreachable=True)
    time.sleep(2)
    modal_service.faults(unreachable=False)
    modal_shop.run(do="speak", text="again")
    next(line for line in follower.stdout if "to stdout: again" in line)  # it asks again when its pause is over
    modal_shop.ctl("stop")
    rest, stderr = follower.communicate(timeout=60)

    assert follower.returncode == 0, stderr
    assert "to stdout: again" not in rest


def test_ctrl_c_ends_following_at_once(modal_shop: ModalShop) -> None:
    modal_shop.started(modal_shop.images[0])
    follower = modal_shop.shell.spawn("modalctl", "logs", "--ref", modal_shop.ref, "--env", "dev", "--follow", "--json")
    assert follower.stdout
    follower.stdout.readline()

    began = time.monotonic()
    follower.send_signal(signal.SIGINT)
    _, stderr = follower.communicate(timeout=30)

    assert (follower.returncode, time.monotonic() - began < 5) == (130, True)
    assert "Traceback" not in stderr


def test_ctrl_c_while_a_start_waits_leaves_the_deployment_to_its_fate(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    modal_service.faults(cold_s=60.0)
    words = ("start", "--ref", modal_shop.ref, "--env", "dev", "--oci", modal_shop.images[0], "--json")
    start = modal_shop.shell.spawn("modalctl", *words, env=DEV)
    until(lambda: any(app["deployed"] for app in modal_service.apps()), "deployment")
    time.sleep(1)

    began = time.monotonic()
    start.send_signal(signal.SIGINT)
    stdout, stderr = start.communicate(timeout=30)

    assert (start.returncode, json.loads(stdout)["error"]["code"]) == (130, "ERR_CANCELLED")
    assert time.monotonic() - began < 8
    assert "Traceback" not in stderr


def test_without_the_record_dev_needs_both_variables(modal_shop: ModalShop) -> None:
    os.makedirs(modal_shop.state, exist_ok=True)

    done = modal_shop.ctl("status", env={"GIT_USER": "veyorokon"})

    assert (done.status, done.document["error"]["code"]) == (78, "ERR_CONFIG")
    assert done.document["error"]["details"] == {"missing": ["GIT_BRANCH"]}


def test_a_branch_that_leaves_nothing_in_a_name_is_refused(modal_shop: ModalShop) -> None:
    done = modal_shop.ctl("status", env={"GIT_BRANCH": "ветка", "GIT_USER": "veyorokon"})

    assert (done.status, done.document["error"]["code"]) == (78, "ERR_CONFIG")
    assert "GIT_BRANCH 'ветка'" in done.document["error"]["message"]
