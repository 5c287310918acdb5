"""What answers at the URL of a deployment: one GET, and the wait until it is the image that was deployed."""

import contextlib
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
"""Between two questions, at most: an image that is there already answers within one."""
_FIRST_PAUSE_S: Final = 0.1
_SAY_S: Final = 10.0
_MOST: Final = 8
"""Containers that are asked."""


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


def current(door: Door, target: Target, *, timeout_s: float) -> list[Answer]:
    """What the app's containers say of themselves now; one is brought up where none runs.

    Empty when none answers within `timeout_s`; one answer alone where the credentials are refused.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        (first,) = _ask_containers(door, target, 1, max(deadline - time.monotonic(), 1.0))
        if first.status == 401:
            return [first]
        if first.status == 200:
            return _everywhere(door, target, first)
        if time.monotonic() > deadline:
            return []
        time.sleep(_PAUSE_S)


def await_digest(
    door: Door, target: Target, digest: str, *, timeout_s: float, is_new_token: bool, progress: Progress
) -> None:
    """Return when every container that can be found answers as the image `digest`.

    Raises TimedOut, saying what answered instead, and Unauthorized.
    """
    began = said = time.monotonic()
    settled = began + (SETTLE_S if is_new_token else 0.0)
    last, pause_s = Answer(None, {}), _FIRST_PAUSE_S
    while (left := began + timeout_s - time.monotonic()) > 0:
        (answer,) = _ask_containers(door, target, 1, left)
        if answer.digest == digest:
            others = [each for each in _everywhere(door, target, answer) if each.digest != digest]
            if not others:
                return
            answer = others[0]
        last = answer if answer.status else last
        now = time.monotonic()
        if answer.status == 401 and now > settled:
            raise refused()
        if now - said >= _SAY_S:
            said = now
            progress(f"waiting for {door.app} since {now - began:.0f} s: {last} answers")
        time.sleep(min(pause_s, left))
        pause_s = min(2 * pause_s, _PAUSE_S)
    raise TimedOut(f"{door.app} did not answer as {digest} within {timeout_s:.0f} s: {last} answered")


def _everywhere(door: Door, target: Target, first: Answer) -> list[Answer]:
    """What as many sessions hear at once as there are containers: each new one is on the least busy of them."""
    try:
        count = min(len(target.containers(door.app)), _MOST)
    except Unavailable:
        count = 1
    if count < 2:
        return [first]
    answers = _ask_containers(door, target, count, _SAY_S)
    return [answer for answer in answers if answer.status is not None] or [first]


def _ask_containers(door: Door, target: Target, count: int, left_s: float) -> list[Answer]:
    """GET /healthz in so many sessions, all open at the same time."""
    answers = []
    with contextlib.ExitStack() as sessions:
        for _ in range(count):
            try:
                token = target.open_session(door.app, idle_s=IDLE_S, timeout_s=min(left_s, _SAY_S))
            except Unavailable:
                raise
            except (TimedOut, ModalFailed):
                answers.append(Answer(None, {}))  # no container yet, or none that stays up
                continue
            if token:
                sessions.callback(target.close_session, door.app, token)
            answers.append(ask(f"{door.url}/healthz", {**door.headers, **session_header(token)}))
    return answers


def session_header(token: str | None) -> dict[str, str]:
    return {"Modal-Authorization": f"Bearer {token}"} if token else {}


def refused() -> Unauthorized:
    return Unauthorized(
        "the deployment's URL refused the proxy credentials",
        hint="set MODAL_PROXY_TOKEN_ID and MODAL_PROXY_TOKEN_SECRET to a proxy token of this workspace, or unset both",
    )
