"""The logins for image registries that `docker login` left: in Docker's configuration, or with a credential helper.

The docker SDK reads them too, but asks a helper without any limit of time and in this process's environment.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apps.errors import ConfigurationError, TimedOut, Unauthorized
from apps.processors.adapters import command
from apps.processors.adapters.docker_endpoint import config_folder
from apps.processors.adapters.oci_place import Place

_HELPER_S: Final = 30.0
"""A helper may have to ask a keyring, or a cloud for a token."""
_NOT_KEPT: Final = "credentials not found"
_IDENTITY: Final = "<token>"


@dataclass(frozen=True, slots=True)
class Login:
    """User and password, or an identity token that stands for both."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find(environment: Mapping[str, str], place: Place) -> Login | None:
    """The login for the registry of `place`, or None.

    `environment` names the configuration (DOCKER_CONFIG, else HOME) and is a credential helper's own.
    Raises ConfigurationError (the configuration can't be read, the helper is not installed), Unauthorized (the helper
    fails).
    Source: https://docs.docker.com/reference/cli/docker/login/#credential-stores
    """
    file = config_folder(environment) / "config.json"
    document = _read(file)
    helper = _part(document, "credHelpers").get(place.login_key) or document.get("credsStore")
    if helper and (login := _ask(str(helper), environment, place, file)):
        return login
    for key, entry in _part(document, "auths").items():
        if _host(str(key)) == _host(place.login_key) and isinstance(entry, dict):
            return _stored(entry, file, place)
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise ConfigurationError(f"{file} can't be read: {exc.strerror}", hint="make it yours again: chown") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"{file} is not JSON: {exc}", hint="repair or remove it") from exc
    return document if isinstance(document, dict) else {}


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _host(key: str) -> str:
    """Old configurations have whole URLs as keys."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _stored(entry: dict[str, Any], file: Path, place: Place) -> Login | None:
    if token := entry.get("identitytoken"):
        return Login(identity_token=str(token))
    if not entry.get("auth"):
        return None  # kept by a helper that is not named any more, or logged out
    try:
        user, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise ConfigurationError(f"{file} holds a broken login for {place.host}", hint=place.login_line)
    return Login(user, password.rstrip("\0"))


def _ask(helper: str, environment: Mapping[str, str], place: Place, file: Path) -> Login | None:
    program = f"docker-credential-{helper}"
    keeper = f"{program}, which {file} names for {place.host},"
    try:
        done = command.run([program, "get"], timeout_s=_HELPER_S, env=environment, input=place.login_key)
    except command.CommandMissing as exc:
        raise ConfigurationError(
            f"{keeper} can't be run", hint=f"install {program}, or take it out of {file} and: {place.login_line}"
        ) from exc
    except TimedOut as exc:
        raise Unauthorized(f"{keeper} did not answer within {_HELPER_S:g} s", hint=place.login_line) from exc
    if done.status:
        said = (done.stdout + done.stderr).strip()  # helpers complain on stdout
        if _NOT_KEPT in said.lower():
            return None
        raise Unauthorized(f"{keeper} failed: {said[:200] or f'status {done.status}'}", hint=place.login_line)
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as exc:
        # Not `from exc`: the text that could not be read may hold the secret.
        raise Unauthorized(
            f"{keeper} gave an answer that can't be read ({type(exc).__name__})", hint=place.login_line
        ) from None
    if user == _IDENTITY:
        return Login(identity_token=secret)
    return Login(user, secret) if user or secret else None
