"""What says that a deployment is of a digest: Modal's own word, what was recorded, what the container reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apps.errors import Drift, OperationError, Unverified
from apps.processors import answering, deployments, modal_names
from apps.processors.adapters.target import Endpoint, Target, Unavailable
from apps.processors.deployments import Place, Version

AGREES, DIFFERS, ABSENT = "agrees", "differs", "absent"


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of evidence: whether it agrees with what is expected, what was found, and in words why."""

    state: str
    found: str | None
    says: str

    def document(self) -> dict[str, Any]:
        return {"state": self.state, "found": self.found, "says": self.says}


@dataclass(frozen=True, slots=True)
class Verified:
    """All three agree."""

    here: Place
    expected: str
    pieces: Mapping[str, Piece]

    def document(self) -> dict[str, Any]:
        """The contract's `modalctl verify-digest` document."""
        return self.here.document(match=True, **_told(self.expected, self.pieces))

    def text(self) -> str:
        """The same for people."""
        says = [f"  {name}: {piece.says}" for name, piece in self.pieces.items()]
        return "\n".join((f"{self.here.app} is {self.expected}", *says))


def verify(
    here: Place, expected: str, *, target: Target, headers_of: Callable[[], Mapping[str, str]], timeout_s: float
) -> Verified:
    """Hold the deployment against the manifest digest `expected`; a container is brought up where none runs.

    `headers_of` is asked once it is sure that there is a deployment. Raises Drift (a difference outweighs an absence),
    Unverified (a piece can't be had), NotDeployed, Unauthorized.
    """
    app = deployments.deployed(here, target)
    endpoint = deployments.endpoint(here, target)
    door = answering.Door(here.app, endpoint.url, headers_of())
    try:
        versions = deployments.history(app, target)
    except Unavailable:
        versions = ()
    tagged = modal_names.recorded_digest(target.tags(here.app))
    pieces = {
        "modal": _of_modal(here, endpoint, expected, tagged, target),
        "recorded": _of_record(expected, tagged, versions),
        "running": _of_container(door, expected, target, timeout_s),
    }
    _judge(here, expected, pieces)
    return Verified(here, expected, pieces)


def _judge(here: Place, expected: str, pieces: Mapping[str, Piece]) -> None:
    details = _told(expected, pieces)
    if different := [name for name, piece in pieces.items() if piece.state == DIFFERS]:
        says = "; ".join(pieces[name].says for name in different)
        raise Drift(f"{here.app} is not {expected}: {says}", hint=here.line("start", "--oci OCI"), details=details)
    if absent := [name for name, piece in pieces.items() if piece.state == ABSENT]:
        says = "; ".join(pieces[name].says for name in absent)
        raise Unverified(
            f"that {here.app} is {expected} can't be told for sure: {says}",
            hint=f"start it again, which records all that is needed: {here.line('start', '--oci OCI')}",
            details=details,
        )


def _told(expected: str, pieces: Mapping[str, Piece]) -> dict[str, Any]:
    found = pieces["running"].found or pieces["recorded"].found
    evidence = {name: piece.document() for name, piece in pieces.items()}
    return {"expected": expected, "deployed": found, "evidence": evidence}


def _of_modal(here: Place, endpoint: Endpoint, expected: str, recorded: str | None, target: Target) -> Piece:
    """Modal tells no digest, but its own id of the live image, and that of what `start` had fetched by digest."""
    live = endpoint.image_id
    if not live:
        return Piece(ABSENT, None, "Modal does not say which image is live")
    wanted = target.image_id(here.app, expected)
    if wanted == live:
        return Piece(AGREES, live, f"Modal's live image {live} is the one fetched as {expected}")
    if wanted:
        return Piece(DIFFERS, live, f"Modal's live image is {live}, the one fetched as {expected} is {wanted}")
    if recorded and recorded != expected and target.image_id(here.app, recorded) == live:
        return Piece(DIFFERS, live, f"Modal's live image {live} is the one fetched as {recorded}")
    return Piece(ABSENT, live, f"Modal knows no image fetched as {expected}")


def _of_record(expected: str, tagged: str | None, versions: tuple[Version, ...]) -> Piece:
    labelled = versions[0].digest if versions else None
    for digest, where in ((tagged, "at the app"), (labelled, "at its live version")):
        if digest and digest != expected:
            return Piece(DIFFERS, digest, f"{digest} is recorded {where}")
    if tagged is None:
        return Piece(ABSENT, None, "no digest is recorded at the app")
    return Piece(AGREES, tagged, f"{tagged} was recorded when it was deployed")


def _of_container(door: answering.Door, expected: str, target: Target, timeout_s: float) -> Piece:
    try:
        answers = answering.current(door, target, timeout_s=timeout_s)
    except OperationError as exc:
        return Piece(ABSENT, None, f"no container could be asked: {exc}")
    if not answers:
        return Piece(ABSENT, None, f"no container answered within {timeout_s:g} s")
    if answers[0].status == 401:
        raise answering.refused()
    many = len(answers) > 1
    for answer in answers:
        if answer.digest is not None and answer.digest != expected:
            return Piece(DIFFERS, answer.digest, f"{'a' if many else 'the'} running container reports {answer.digest}")
    for answer in answers:
        if answer.digest is None:
            return Piece(ABSENT, None, f"{'a' if many else 'the'} container does not report its image: {answer}")
    return Piece(
        AGREES, expected, f"{len(answers)} running containers report it" if many else "the running container reports it"
    )
