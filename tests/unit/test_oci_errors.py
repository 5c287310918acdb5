"""What registries answer, word by word, and what it means to a user."""

import json

import pytest

from apps.errors import ImageRegistryFailed, OperationError, PushFailed, Unauthorized
from apps.processors.adapters.oci_errors import is_full, refusal, what_it_said
from apps.processors.adapters.oci_http import Answer
from apps.processors.adapters.oci_place import Place

PLACE = Place.parse("ghcr.io/org/image")


def answer(status: int, body: object = "", *, challenge: str = "", media_type: str = "text/plain") -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    challenges = (challenge,) if challenge else ()
    return Answer(status, {"content-type": media_type}, challenges, text.encode(), "https://ghcr.io/v2/")


def errors(code: str, message: str = "", detail: object = None) -> dict[str, object]:
    return {"errors": [{"code": code, "message": message, "detail": detail}]}


NO_SPACE = errors("UNKNOWN", "unknown error", "write /var/lib/registry/x: no space left on device")
# distribution 2.8, where it opens an upload
NO_SPACE_NUMBER = errors(
    "UNKNOWN", "", {"DriverName": "filesystem", "Enclosed": {"Op": "write", "Path": "/x", "Err": 28}}
)
DENIED = errors("DENIED", "requested access to the resource is denied")


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (answer(401), Unauthorized, "refuses the login in Docker's configuration"),
        (answer(401, challenge='Bearer realm="x",error="insufficient_scope"'), Unauthorized, "does not allow to"),
        (answer(403, DENIED), Unauthorized, "does not allow to store it: requested access to the resource is denied"),
        (answer(405), PushFailed, "read-only"),
        (answer(404, errors("NAME_UNKNOWN", "repository name not known")), PushFailed, "has no repository org/image"),
        (answer(413, "too large"), PushFailed, "status 413: too large"),
        (answer(400, errors("MANIFEST_INVALID")), PushFailed, "status 400: MANIFEST_INVALID"),
        (answer(500, NO_SPACE), PushFailed, "no space left: unknown error: write /var/lib/registry/x"),
        (answer(500, NO_SPACE_NUMBER), PushFailed, "no space left: UNKNOWN: no space left on device"),
        (answer(507), PushFailed, "has no space left"),
        (answer(500, "boom"), PushFailed, "status 500: boom"),
        (answer(502), ImageRegistryFailed, "status 502"),
        (answer(503), ImageRegistryFailed, "status 503"),
        (answer(429, errors("TOOMANYREQUESTS", "slow down")), ImageRegistryFailed, "may be asked: slow down"),
    ],
)
def test_a_refusal_to_store_says_what_is_wrong(given: Answer, kind: type[OperationError], words: str) -> None:
    error = refusal(given, PLACE, "store it", write=True, has_login=True)

    assert type(error) is kind
    assert words in error.message
    assert error.message.count("ghcr.io") >= 1
    assert error.hint


@pytest.mark.parametrize("status", [400, 404, 405, 418, 500, 503, 507])
def test_a_refusal_to_read_is_the_registrys_failure(status: int) -> None:
    error = refusal(answer(status), PLACE, "give it", write=False, has_login=True)

    assert type(error) is ImageRegistryFailed
    assert f"status {status}" in error.message


@pytest.mark.parametrize("status", [401, 403])
def test_without_a_login_the_registry_asks_for_one(status: int) -> None:
    error = refusal(answer(status), PLACE, "store it", write=True, has_login=False)

    assert (type(error), error.message) == (Unauthorized, "ghcr.io asks for a login to store it")
    assert error.hint == "docker login ghcr.io"


def test_a_full_disk_is_told_from_a_passing_failure() -> None:
    assert [is_full(answer(500, body)) for body in (NO_SPACE, NO_SPACE_NUMBER, "boom")] == [True, True, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (answer(400, {"errors": [{"code": "A"}, {"message": "b", "detail": "c"}]}), "A; b: c"),
        (answer(400, {"errors": []}, media_type="application/json"), ""),
        (answer(400, {"errors": ["A"]}, media_type="application/json"), ""),
        (answer(400, {"errors": 7}, media_type="application/json"), ""),
        (answer(400, "one\ntwo"), "one"),
        (answer(400, "<html>", media_type="text/html"), ""),
        (answer(400, "[" * 100_000, media_type="application/json"), ""),
        (answer(400, "see https://me:secret@host/path?X-Amz-Signature=secret there"), "see https://host/path there"),
        (answer(400, "a" * 1000), "a" * 300),
    ],
)
def test_what_a_registry_said_is_one_short_line_without_secrets(given: Answer, said: str) -> None:
    assert what_it_said(given) == said
