"""Which Docker Engine the caller means, as the docker command decides it, and that it is this machine's."""

import hashlib
import ipaddress
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from apps.errors import ConfigurationError, EngineFailed

DEFAULT_URL: Final = "unix:///var/run/docker.sock"
_CONNECT_TIMEOUT_S: Final = 5.0
_NO_ENGINE_HINT: Final = "start Docker, or do without it: LOCAL_ENGINE=process"
_NO_PERMISSION_HINT: Final = (
    "sudo usermod -aG docker $USER, then log in again (or use sudo); or do without Docker: LOCAL_ENGINE=process"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the engine listens: `unix:///path` or `tcp://<loopback>:port`."""

    url: str
    certificates: Path | None = None
    """The folder with ca.pem, cert.pem and key.pem, where TLS is asked for."""
    verify: bool = True
    """Whether the engine's certificate must be right."""


def find(environment: Mapping[str, str]) -> Endpoint:
    """The endpoint that `environment` names: DOCKER_HOST, else DOCKER_CONTEXT, else the current context.

    Raises ConfigurationError for an engine on another machine: ports would be bound and files mounted there.
    Source: https://docs.docker.com/engine/manage-resources/contexts/
    """
    folder = config_folder(environment)
    if host := environment.get("DOCKER_HOST"):
        if not environment.get("DOCKER_TLS_VERIFY"):
            return Endpoint(_local(host, "DOCKER_HOST"))
        return Endpoint(_local(host, "DOCKER_HOST"), Path(environment.get("DOCKER_CERT_PATH", folder)))
    name = environment.get("DOCKER_CONTEXT") or _read_json(folder / "config.json").get("currentContext") or "default"
    return Endpoint(DEFAULT_URL) if name == "default" else _of_context(str(name), folder)


def config_folder(environment: Mapping[str, str]) -> Path:
    """Where Docker's own configuration is: contexts, registry logins."""
    named = environment.get("DOCKER_CONFIG")
    return Path(named) if named else Path(environment.get("HOME", "/")) / ".docker"


def check(endpoint: Endpoint) -> None:
    """Raise EngineFailed, within milliseconds, when nothing listens there or we may not talk to it."""
    try:
        with _connect(urlsplit(endpoint.url)):
            return
    except OSError as exc:
        raise unreachable(endpoint.url, exc) from exc


def unreachable(url: str, exc: OSError) -> EngineFailed:
    """What it means that the engine's socket gave `exc`."""
    if isinstance(exc, PermissionError):
        return EngineFailed(f"no permission to use the Docker Engine at {url}", hint=_NO_PERMISSION_HINT)
    return EngineFailed(f"no Docker Engine answers at {url}: {exc.strerror or exc}", hint=_NO_ENGINE_HINT)


def _connect(url: SplitResult) -> socket.socket:
    if url.scheme == "tcp":
        return socket.create_connection((url.hostname, url.port or 0), timeout=_CONNECT_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_TIMEOUT_S)
    try:
        connection.connect(url.path)
    except BaseException:
        connection.close()
        raise
    return connection


def _local(text: str, named_by: str) -> str:
    try:
        url = urlsplit(text)
        place = f"{url.scheme}://{url.hostname or ''}{f':{url.port}' if url.port else ''}"  # a password stays out
    except ValueError as exc:
        raise ConfigurationError(f"{named_by} is not an address: {exc}", hint=_hint(named_by)) from exc
    if url.scheme == "unix":
        return f"unix:///{(url.netloc + url.path).lstrip('/')}"
    if url.scheme == "tcp" and url.port and _is_loopback(url.hostname or ""):
        return f"tcp://{url.netloc}"
    if url.scheme in ("tcp", "ssh", "http", "https"):
        raise ConfigurationError(
            f"{named_by} names a Docker Engine on another machine, {place}: a processor's port would be bound there",
            hint=_hint(named_by),
        )
    kind = f"of no known kind: {place}" if url.netloc else "without a kind, as unix:// is one"
    raise ConfigurationError(f"{named_by} is an address {kind}", hint=_hint(named_by))


def _hint(named_by: str) -> str:
    use = "unset DOCKER_HOST" if named_by == "DOCKER_HOST" else "docker context use default"
    return f"{use}, or name an engine of this machine: DOCKER_HOST={DEFAULT_URL}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _of_context(name: str, folder: Path) -> Endpoint:
    # Docker's own layout: a context's folder is the SHA-256 of its name.
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = _read_json(folder / "contexts" / "meta" / digest / "meta.json")
    docker = meta.get("Endpoints", {}).get("docker", {})
    if not docker.get("Host"):
        raise ConfigurationError(f"there is no docker context {name!r}", hint="list them: docker context ls")
    url = _local(docker["Host"], f"the docker context {name!r}")
    certificates = folder / "contexts" / "tls" / digest / "docker"
    if not certificates.is_dir():
        return Endpoint(url)
    return Endpoint(url, certificates, verify=not docker.get("SkipTLSVerify"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except OSError:
        return {}  # absent, or root's after a `sudo docker`: the docker command goes on without it too
    except ValueError as exc:
        raise ConfigurationError(f"{file} is not JSON: {exc}", hint="repair or remove it") from exc
    return document if isinstance(document, dict) else {}
