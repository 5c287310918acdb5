"""How a registry lets us in: the challenges that it answers with, and the header that meets one."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from apps.errors import ImageRegistryFailed, Unauthorized
from apps.processors.adapters import docker_login
from apps.processors.adapters.docker_login import Login
from apps.processors.adapters.oci_faults import origin
from apps.processors.adapters.oci_http import Answer, follow
from apps.processors.adapters.oci_place import Place

TOKEN_LIMIT_BYTES: Final = 1024**2
_CLIENT: Final = "processorctl"
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110, 5.6.2
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)', re.DOTALL)
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:\s+|\s*,|$)")
_TOKEN68 = re.compile(r"\s*([A-Za-z0-9\-._~+/]+=*)\s*(?:,|$)")
_BEARER = re.compile(r"[\x21-\x7e]+")

Ask = Callable[..., Answer]
"""`(method, url, headers=…, body=…)`: a request that is repeated where that may help."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in."""

    scheme: str
    """In lower case, e.g. bearer or basic."""
    parameters: Mapping[str, str]
    """Names in lower case."""


def challenges(headers: tuple[str, ...]) -> list[Challenge]:
    """All challenges of WWW-Authenticate, in order; what can't be read ends its header's list.

    Source: RFC 9110, 11.6.1: a comma parts challenges as well as the parameters of one.
    """
    found: list[Challenge] = []
    for header in headers:
        position = 0
        while scheme := _SCHEME.match(header, position):
            parameters, position = _parameters(header, scheme.end())
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def _parameters(header: str, position: int) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    while match := _PARAMETER.match(header, position):
        quoted = match[2]
        parameters[match[1].lower()] = match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        position = match.end()
    if not parameters and (blob := _TOKEN68.match(header, position)):
        position = blob.end()  # e.g. `Negotiate dG9rZW4=`
    return parameters, position


class Keys:
    """What opens the registries of one environment. Logins are looked for only when a registry asks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._logins: dict[str, Login | None] = {}
        self._headers: dict[Place, str] = {}

    def header(self, place: Place) -> str | None:
        """The Authorization that did last time."""
        return self._headers.get(place)

    def has_login(self, place: Place) -> bool:
        return self._login(place) is not None

    def renew(self, place: Place, refusal: Answer, *, write: bool, ask: Ask) -> str | None:
        """The Authorization that `refusal`, a 401, asks for; None when we have nothing to offer.

        Raises Unauthorized (the login is wrong), ImageRegistryFailed, ConfigurationError.
        """
        offered = {challenge.scheme: challenge for challenge in reversed(challenges(refusal.challenges))}
        login = self._login(place)
        if "bearer" in offered:
            actions = "pull,push" if write else "pull"
            grant = _Grant(place, login, offered["bearer"].parameters, f"repository:{place.path}:{actions}")
            header = f"Bearer {grant.token(refusal.url, ask)}"
        elif "basic" in offered and login and not login.identity_token:
            header = basic(login)
        else:
            return None
        self._headers[place] = header
        return header

    def _login(self, place: Place) -> Login | None:
        if place.host not in self._logins:
            self._logins[place.host] = docker_login.find(self._environment, place)
        return self._logins[place.host]


def basic(login: Login) -> str:
    """The Authorization of RFC 7617."""
    return f"Basic {base64.b64encode(f'{login.user}:{login.password}'.encode()).decode()}"


@dataclass(frozen=True)
class _Grant:
    """One token to ask for.

    Source: https://distribution.github.io/distribution/spec/auth/token/ and .../auth/oauth/
    """

    place: Place
    login: Login | None
    challenge: Mapping[str, str]
    scope: str
    """What we need, where the challenge does not say."""

    def token(self, registry: str, ask: Ask) -> str:
        if not self.challenge.get("realm"):
            raise ImageRegistryFailed(f"{self.place.host} names no token server", hint="ask who runs it")
        realm = follow(registry, self.challenge["realm"])
        answer = self._by_identity(realm, ask) if self.login and self.login.identity_token else self._get(realm, ask)
        if answer.status in (400, 401, 403):
            raise self._refused()
        found = _document(answer).get("token") or _document(answer).get("access_token")
        if answer.status != 200 or not isinstance(found, str) or not _BEARER.fullmatch(found):
            raise ImageRegistryFailed(
                f"the token server of {self.place.host}, {origin(realm)}, gave no token (status {answer.status})",
                hint="try again later",
            )
        return found

    @cached_property
    def _fields(self) -> list[tuple[str, str]]:
        service = [("service", self.challenge["service"])] if self.challenge.get("service") else []
        return service + [("scope", scope) for scope in self.challenge.get("scope", self.scope).split()]

    def _get(self, realm: str, ask: Ask) -> Answer:
        split = urlsplit(realm)
        query = urlencode([*parse_qsl(split.query, keep_blank_values=True), *self._fields])
        headers = {"Authorization": basic(self.login)} if self.login else {}
        return ask("GET", split._replace(query=query, fragment="").geturl(), headers=headers)

    def _by_identity(self, realm: str, ask: Ask) -> Answer:
        assert self.login  # noqa: S101  asked by `token`
        scope = " ".join(value for name, value in self._fields if name == "scope")
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self.login.identity_token,
            "service": self.challenge.get("service", ""),
            "scope": scope,
            "client_id": _CLIENT,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return ask("POST", realm, headers=headers, body=urlencode(form).encode())

    def _refused(self) -> Unauthorized:
        if self.login:
            message = f"the token server of {self.place.host} refuses the login in Docker's configuration"
        else:
            message = f"{self.place.host} asks for a login"
        return Unauthorized(message, hint=self.place.login_line)


def _document(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
