"""What goes wrong on Modal's side: each with its code, in bounded time, and the old digest goes on serving."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands.workshop import until
from tests.integration.modal_services import ModalService, running_modal_service
from tests.integration.modal_shop import DEV, ModalShop, digest
from tests.shell import Outcome

pytestmark = pytest.mark.docker

CONTROL_S = 45.0
"""The deadline of a control call, and what it takes to start and end a command."""


def timed(act: Any) -> tuple[Outcome, float]:
    began = time.monotonic()
    done = act()
    return done, time.monotonic() - began


def test_an_unreachable_control_plane_is_told_within_seconds(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_service.faults(unreachable=True)

    for subcommand in ("status", "run", "logs", "sync-secrets", "stop", "verify-digest"):
        oci = ("--oci", modal_shop.images[0]) if subcommand == "verify-digest" else ()
        done, took_s = timed(lambda: modal_shop.ctl(subcommand, *oci, env=DEV))  # noqa: B023

        assert (done.status, done.document["error"]["code"]) == (69, "ERR_MODAL"), done
        assert "Modal can't be reached" in done.document["error"]["message"]
        assert took_s < 15, subcommand


def test_a_control_plane_that_does_not_answer_is_given_up(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(slow_s=300)

    done, took_s = timed(lambda: modal_shop.ctl("status", env=DEV))

    assert (done.status, done.document["error"]["code"]) == (75, "ERR_TIMEOUT")
    assert took_s < CONTROL_S


def test_a_short_outage_is_waited_out(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(unavailable="*", unavailable_times=2)

    assert modal_shop.started(modal_shop.images[0])["version"] == 1


def test_a_service_that_stays_unavailable_is_an_error_of_modal(
    modal_shop: ModalShop, modal_service: ModalService
) -> None:
    modal_shop.started(modal_shop.images[0])
    modal_service.faults(unavailable="*")

    done, took_s = timed(lambda: modal_shop.ctl("status"))

    assert (done.status, done.document["error"]["code"]) == (69, "ERR_MODAL")
    assert took_s < CONTROL_S


def test_what_a_login_may_not_do_is_unauthorized(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(denied="AppCreate")

    done = modal_shop.start(modal_shop.images[0])

    assert (done.status, done.document["error"]["code"]) == (77, "ERR_UNAUTHORIZED")
    assert "this token may not do that" in done.document["error"]["message"]


def test_an_absent_environment_is_told_with_the_line_that_creates_it(
    built_modal_shop: ModalShop, tmp_path: Path
) -> None:
    with running_modal_service(environments=("main",)) as service:
        shop = built_modal_shop.at(service, tmp_path)

        outcomes = [
            shop.start(shop.images[0]),
            *(shop.ctl(subcommand, env=DEV) for subcommand in ("status", "stop", "logs", "sync-secrets")),
        ]

    assert [(each.status, each.document["error"]["code"]) for each in outcomes] == [(78, "ERR_CONFIG")] * 5
    assert {each.document["error"]["hint"] for each in outcomes} == {"modal environment create dev"}


@pytest.fixture
def serving(modal_shop: ModalShop) -> str:
    """The digest of a deployment that works."""
    modal_shop.started(modal_shop.images[0])
    return digest(modal_shop.images[0])


def assert_still_serves(modal_shop: ModalShop, service: ModalService, expected: str) -> None:
    service.faults(unreachable=False, never_listens=False, build_failure="", cut_at="", cut_after="", unavailable="")
    verified = modal_shop.ctl("verify-digest", "--oci", f"localhost:5000/any/image@{expected}")
    assert verified.status == 0, verified
    assert modal_shop.said(text="still here") == "still here"


def test_an_image_that_never_listens_is_rolled_back(
    modal_shop: ModalShop, modal_service: ModalService, serving: str
) -> None:
    modal_service.faults(never_listens=True)

    done, took_s = timed(lambda: modal_shop.start(modal_shop.images[1], "--timeout", "5"))

    error = done.document["error"]
    assert (done.status, error["code"]) == (1, "ERR_RUNTIME")
    assert (error["details"]["digest"], error["details"]["serving"]) == (digest(modal_shop.images[1]), serving)
    assert f"rolled back to {serving}, which answers" in error["message"]
    assert isinstance(error["details"]["log"], list)
    assert took_s < 40
    assert_still_serves(modal_shop, modal_service, serving)


def test_a_first_image_that_never_listens_is_stopped(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(never_listens=True)

    done = modal_shop.start(modal_shop.images[0], "--timeout", "5")

    assert (done.status, done.document["error"]["code"]) == (1, "ERR_RUNTIME")
    assert "nothing was deployed before it, so it was stopped" in done.document["error"]["message"]
    assert modal_shop.ctl("status").document["state"] == "stopped"


def test_an_image_that_modal_can_not_fetch_changes_nothing(
    modal_shop: ModalShop, modal_service: ModalService, serving: str
) -> None:
    modal_service.faults(build_failure="manifest unknown")

    done = modal_shop.start(modal_shop.images[1])

    error = done.document["error"]
    assert (done.status, error["code"]) == (69, "ERR_IMAGE_PULL")
    assert error["details"]["serving"] == serving
    assert f"{serving} goes on serving" in error["message"]
    assert_still_serves(modal_shop, modal_service, serving)


@pytest.mark.parametrize("step", ["FunctionPrecreate", "ImageGetOrCreate", "FunctionCreate", "AppPublish"])
def test_a_deployment_that_is_cut_off_changes_nothing(
    modal_shop: ModalShop, modal_service: ModalService, serving: str, step: str
) -> None:
    modal_service.faults(cut_at=step)

    done, took_s = timed(lambda: modal_shop.start(modal_shop.images[1], "--timeout", "20"))

    assert (done.status, done.document["error"]["code"]) in ((69, "ERR_MODAL"), (75, "ERR_TIMEOUT"))
    assert took_s < 70
    assert_still_serves(modal_shop, modal_service, serving)


def test_a_deployment_that_modal_took_and_did_not_confirm_is_told_as_unknown(
    modal_shop: ModalShop, modal_service: ModalService, serving: str
) -> None:
    new = modal_shop.images[1]
    modal_service.faults(cut_after="AppPublish")

    done, took_s = timed(lambda: modal_shop.start(new, "--timeout", "20"))

    error = done.document["error"]
    assert (done.status, error["code"], error["details"]["serving"]) == (69, "ERR_MODAL", None), done
    assert f"whether {serving} serves again is not known" in error["message"]
    assert f"modalctl status --ref {modal_shop.ref} --env dev" in error["message"]
    assert took_s < 70
    modal_service.faults(unreachable=False, cut_after="")
    found = modal_shop.ctl("status").document
    assert (found["version"], found["digest"]) == (2, digest(new))
    assert modal_shop.said(text="the new one") == "the new one"
    rolled = modal_shop.ctl("rollback")
    assert (rolled.status, rolled.document["digest"]) == (0, serving), rolled


def test_an_outage_in_the_middle_of_a_deployment_changes_nothing(
    modal_shop: ModalShop, modal_service: ModalService, serving: str
) -> None:
    modal_service.faults(unavailable="FunctionCreate")

    done = modal_shop.start(modal_shop.images[1])

    assert (done.status, done.document["error"]["code"]) == (69, "ERR_MODAL")
    assert f"{serving} goes on serving" in done.document["error"]["message"]
    assert_still_serves(modal_shop, modal_service, serving)


def test_a_slow_start_is_waited_for(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(cold_s=12.0)

    done = modal_shop.start(modal_shop.images[0])

    assert done.status == 0, done
    assert "waiting for" in done.stderr


def test_with_two_replicas_a_session_stays_on_one(modal_shop: ModalShop, modal_service: ModalService) -> None:
    modal_service.faults(replicas=2)
    modal_shop.started(modal_shop.images[0])

    said = [modal_shop.said(text=f"run {number}") for number in range(4)]

    assert said == [f"run {number}" for number in range(4)]


def test_a_deployment_that_old_containers_serve_beside_is_not_taken_for_done(
    modal_shop: ModalShop, modal_service: ModalService, serving: str
) -> None:
    modal_service.faults(keep_old=True)

    done = modal_shop.start(modal_shop.images[1], "--timeout", "5")

    assert (done.status, done.document["error"]["code"]) == (1, "ERR_RUNTIME")
    assert f"the image {serving} answered" in done.document["error"]["message"]


def test_all_of_several_containers_are_asked_for_their_image(
    modal_shop: ModalShop, modal_service: ModalService, serving: str
) -> None:
    modal_service.faults(replicas=2)
    until(lambda: len(modal_service.containers()) == 2, "second container")

    done = modal_shop.ctl("verify-digest", "--oci", modal_shop.images[0])

    assert done.document["evidence"]["running"]["says"] == "2 running containers report it"


# evidence


@pytest.mark.parametrize(("fault", "piece"), [("image_id", "modal"), ("recorded", "recorded"), ("reported", "running")])
def test_falsified_evidence_is_drift_and_removed_evidence_unverified(
    modal_shop: ModalShop, modal_service: ModalService, serving: str, fault: str, piece: str
) -> None:
    image = modal_shop.images[0]

    modal_service.faults(**{fault: "falsified"})
    falsified = modal_shop.ctl("verify-digest", "--oci", image, "--timeout", "10")
    modal_service.faults(**{fault: "removed"})
    removed = modal_shop.ctl("verify-digest", "--oci", image, "--timeout", "10")
    modal_service.faults(**{fault: ""})
    whole = modal_shop.ctl("verify-digest", "--oci", image)

    def states(done: Outcome) -> dict[str, str]:
        evidence = done.document["error"]["details"]["evidence"]
        return {name: each["state"] for name, each in evidence.items()}

    good = {"modal": "agrees", "recorded": "agrees", "running": "agrees"}
    assert (falsified.status, falsified.document["error"]["code"]) == (3, "ERR_DRIFT"), falsified
    assert states(falsified) == {**good, piece: "differs"}
    assert (removed.status, removed.document["error"]["code"]) == (69, "ERR_UNVERIFIED"), removed
    assert states(removed) == {**good, piece: "absent"}
    assert (whole.status, whole.document["match"]) == (0, True)


def test_another_digest_than_the_deployed_one_is_drift(modal_shop: ModalShop, serving: str) -> None:
    done = modal_shop.ctl("verify-digest", "--oci", modal_shop.images[1])

    details = done.document["error"]["details"]
    assert (done.status, done.document["error"]["code"]) == (3, "ERR_DRIFT")
    assert (details["expected"], details["deployed"]) == (digest(modal_shop.images[1]), serving)
    assert {each["state"] for each in details["evidence"].values()} == {"differs"}
