"""What answers at the URL of a deployment: one GET, and the wait until it is the image that was deployed."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from apps.errors import ModalFailed, TimedOut, Unauthorized
from apps.processors.adapters.base import Progress
from apps.processors.adapters.target import Target, Unavailable

PROBE_S: Final = 5.0
IDLE_S: Final = 120
"""How long a session of ours may lie unused before Modal lets its container go."""
SETTLE_S: Final = 15.0
"""How long new credentials may be refused: Modal's proxies hear of them a little later."""

_PAUSE_S: Final = 1.0
_SAY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `status` None: nothing did."""

    status: int | None
    document: Mapping[str, Any]

    @property
    def digest(self) -> str | None:
        """The image's, as the container says."""
        digest = self.document.get("image_digest")
        return digest if isinstance(digest, str) else None

    def __str__(self) -> str:
        if self.status is None:
            return "nothing"
        return f"the image {self.digest}" if self.digest else f"HTTP {self.status}"


def ask(url: str, headers: Mapping[str, str], *, timeout_s: float = PROBE_S) -> Answer:
    """GET the document at `url`. Follows no redirect: the headers open doors."""
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(_Stay, *([urllib.request.ProxyHandler({})] if local else []))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=timeout_s) as response:  # noqa: S310
            return Answer(response.status, _document(response.read(65536)))
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, {})
    except (OSError, http.client.HTTPException):
        return Answer(None, {})


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _document(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Door:
    """A deployment's URL, and what opens it."""

    app: str
    url: str
    headers: Mapping[str, str]


def current(door: Door, target: Target, *, timeout_s: float) -> Answer:
    """What a container of the app says of itself now; one is brought up where none runs."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = _in_a_session(door, target, max(deadline - time.monotonic(), 1.0))
        if answer.status in (200, 401) or time.monotonic() > deadline:
            return answer
        time.sleep(_PAUSE_S)


def await_digest(
    door: Door, target: Target, digest: str, *, timeout_s: float, is_new_token: bool, progress: Progress
) -> None:
    """Return when a container of the image `digest` answers.

    Raises TimedOut, saying what answered instead, and Unauthorized.
    """
    began = said = time.monotonic()
    settled = began + (SETTLE_S if is_new_token else 0.0)
    last = Answer(None, {})
    while (left := began + timeout_s - time.monotonic()) > 0:
        answer = _in_a_session(door, target, left)
        if answer.digest == digest:
            return
        last = answer if answer.status else last
        now = time.monotonic()
        if answer.status == 401 and now > settled:
            raise refused()
        if now - said >= _SAY_S:
            said = now
            progress(f"waiting for {door.app} since {now - began:.0f} s: {last} answers")
        time.sleep(min(_PAUSE_S, max(left, 0.0)))
    raise TimedOut(f"{door.app} did not answer as {digest} within {timeout_s:.0f} s: {last} answered")


def _in_a_session(door: Door, target: Target, left_s: float) -> Answer:
    """One GET at /healthz. A session of its own each time: the last one may be on a container that goes."""
    try:
        token = target.open_session(door.app, idle_s=IDLE_S, timeout_s=min(left_s, _SAY_S))
    except Unavailable:
        raise
    except (TimedOut, ModalFailed):
        return Answer(None, {})  # no container yet, or none that stays up
    try:
        return ask(f"{door.url}/healthz", {**door.headers, **session_header(token)})
    finally:
        if token:
            target.close_session(door.app, token)


def session_header(token: str | None) -> dict[str, str]:
    return {"Modal-Authorization": f"Bearer {token}"} if token else {}


def refused() -> Unauthorized:
    return Unauthorized(
        "the deployment's URL refused the proxy credentials",
        hint="set MODAL_PROXY_TOKEN_ID and MODAL_PROXY_TOKEN_SECRET to a proxy token of this workspace, or unset both",
    )
