"""What a registry's refusals mean. The only reader of their statuses and of their prose.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes
"""

import json
import os
import re
from typing import Any, Final

from apps.errors import ImageRegistryFailed, OperationError, PushFailed, Unauthorized
from apps.processors.adapters.oci_auth import challenges
from apps.processors.adapters.oci_http import Answer
from apps.processors.adapters.oci_place import Place

PASSING: Final = (429, 500, 502, 503, 504)
"""Statuses that may be others in a moment."""
_LONGEST: Final = 300
_FULL: Final = ("no space left", "disk quota", "quota exceeded", "insufficient storage", "not enough space")
_SECRET_URL: Final = re.compile(r"(?<=://)[^/\s\"'@]+@|\?[^\s\"']*")
_NAME_HINT: Final = "check image.repository in registry.yaml, and PROCESSOR_REPOSITORY_PREFIX"


def is_full(answer: Answer) -> bool:
    """Whether the registry says that its disk is full, which repeating does not change."""
    said = what_it_said(answer).lower()
    return answer.status == 507 or any(words in said for words in _FULL)


def refusal(answer: Answer, place: Place, doing: str, *, write: bool, has_login: bool) -> OperationError:
    """The error for an answer that is none of those hoped for.

    Args:
        doing: what we wanted: an infinitive and its object.
        write: whether it would have changed anything there.
        has_login: whether Docker's configuration has a login for the registry.
    """
    said = what_it_said(answer)
    because = f": {said}" if said else ""
    if answer.status in (401, 403):
        return _not_allowed(answer, place, doing, because, has_login=has_login)
    if answer.status == 429:
        return ImageRegistryFailed(
            f"{place.host} limits how often it may be asked{because}", hint=f"wait a while, or: {place.login_line}"
        )
    if write and (error := _not_written(answer, place, doing, because)):
        return error
    hint = "try again later" if answer.status >= 500 else _NAME_HINT
    return ImageRegistryFailed(f"{place.host} could not {doing}: status {answer.status}{because}", hint=hint)


def _not_allowed(answer: Answer, place: Place, doing: str, because: str, *, has_login: bool) -> Unauthorized:
    if not has_login:
        return Unauthorized(f"{place.host} asks for a login to {doing}", hint=place.login_line)
    asked = challenges(answer.challenges)
    narrow = any(challenge.parameters.get("error") == "insufficient_scope" for challenge in asked)
    if answer.status == 401 and not narrow:
        return Unauthorized(f"{place.host} refuses the login in Docker's configuration{because}", hint=place.login_line)
    return Unauthorized(
        f"the login for {place.host} does not allow to {doing}{because}",
        hint=f"{place.login_line} as somebody who may; or {_NAME_HINT}",
    )


def _not_written(answer: Answer, place: Place, doing: str, because: str) -> PushFailed | None:
    if is_full(answer):
        return PushFailed(f"{place.host} has no space left{because}", hint="free space there, then push again")
    if answer.status in (405, 501):
        return PushFailed(
            f"{place.host} lets nothing be written: it is read-only{because}",
            hint="push to one that takes images: image.repository, or PROCESSOR_REPOSITORY_PREFIX",
        )
    if answer.status == 404:
        return PushFailed(
            f"{place.host} has no repository {place.path}{because}", hint=f"create it there; {_NAME_HINT}"
        )
    if answer.status == 500 or 400 <= answer.status < 500:
        hint = "its own log says more; then push again" if answer.status == 500 else _NAME_HINT
        return PushFailed(f"{place.host} could not {doing}: status {answer.status}{because}", hint=hint)
    return None


def what_it_said(answer: Answer) -> str:
    """The errors of the body in one line, without what may be secret in a URL; empty when it has none."""
    text = "; ".join(_one(error) for error in _errors(answer))
    if not text and answer.headers.get("content-type", "").startswith("text/plain"):
        text = answer.body.decode(errors="replace").strip().partition("\n")[0]
    return _SECRET_URL.sub("", " ".join(text.split()))[:_LONGEST]


def is_known_absence(answer: Answer) -> bool:
    """Whether a 404 comes from a registry that looked, and not from something that is none."""
    return bool(_errors(answer))


def _errors(answer: Answer) -> list[dict[str, Any]]:
    try:
        listed = json.loads(answer.body)["errors"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [error for error in listed if isinstance(error, dict)] if isinstance(listed, list) else []


def _one(error: dict[str, Any]) -> str:
    detail = error.get("detail")
    said = [error.get("message") or error.get("code"), detail if isinstance(detail, str) else _reason(detail)]
    return ": ".join(str(word) for word in said if word)


def _reason(detail: Any) -> str:
    """Distribution hands on what its disk said: {"DriverName": "filesystem", "Enclosed": {"Op", "Path", "Err": 28}}."""
    enclosed = detail.get("Enclosed") if isinstance(detail, dict) else None
    number = enclosed.get("Err") if isinstance(enclosed, dict) else None
    return os.strerror(number).lower() if isinstance(number, int) else ""
