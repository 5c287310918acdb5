"""How the caller's environment reaches other machines: whom it trusts, and by which proxy."""

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from apps.errors import ConfigurationError
from apps.processors.adapters.docker_endpoint import config_folder
from apps.processors.adapters.oci_place import is_loopback

_BUNDLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_FOLDERS: Final = "SSL_CERT_DIR"


def context(environment: Mapping[str, str], netloc: str) -> ssl.SSLContext:
    """What a server at `netloc` (host[:port]) must prove.

    Trusted are all authorities that `environment` names, or the system's when it names none, and those that Docker
    was given for this registry. Raises ConfigurationError for what can't be read.
    Source: https://docs.docker.com/engine/security/certificates/
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if is_loopback(urlsplit(f"//{netloc}").hostname or ""):
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE  # as Docker: there is none between us, and it may as well speak plain HTTP
        return made
    for named_by, path in _named(environment) or _of_system():
        _load(made, named_by, path)
    for folder in _docker_folders(environment):
        for path in _files(folder / netloc, ".crt"):
            _load(made, "Docker", path)
        for path in _files(folder / netloc, ".cert"):
            _identify(made, path)
    return made


def _named(environment: Mapping[str, str]) -> list[tuple[str, Path]]:
    bundles = [(name, Path(environment[name])) for name in _BUNDLES if environment.get(name)]
    folders = [Path(word) for word in environment.get(_FOLDERS, "").split(os.pathsep) if word]
    return bundles + [(_FOLDERS, folder) for folder in folders if folder.is_dir()]  # OpenSSL passes over the others


def _of_system() -> list[tuple[str, Path]]:
    # The built-in places: load_default_certs() would look at this process's own SSL_CERT_FILE.
    built_in = ssl.get_default_verify_paths()
    places = [Path(text) for text in (built_in.openssl_cafile, built_in.openssl_capath) if text]
    found = [path for path in places if path.exists()]
    if not found:
        import certifi

        found = [Path(certifi.where())]
    return [("the system", path) for path in found]


def _docker_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    """Docker's own, the rootless engine's, Docker Desktop's."""
    yield Path("/etc/docker/certs.d")
    if home := environment.get("HOME"):
        yield Path(environment.get("XDG_CONFIG_HOME") or f"{home}/.config") / "docker" / "certs.d"
    yield config_folder(environment) / "certs.d"


def _files(folder: Path, suffix: str) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix == suffix)
    except OSError:
        return []  # absent, or not for us: then the certificate is refused, which says what to do


def _load(made: ssl.SSLContext, named_by: str, path: Path) -> None:
    try:
        folder = path.is_dir()
        if not folder:
            path.stat()  # openssl's own message names no file
        made.load_verify_locations(**({"capath": str(path)} if folder else {"cafile": str(path)}))
    except OSError as exc:  # ssl.SSLError is one
        said = "it holds no certificates" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigurationError(
            f"{named_by} names {path} for certificates: {said}", hint="name a file of certificates in PEM"
        ) from exc


def _identify(made: ssl.SSLContext, certificate: Path) -> None:
    key = certificate.with_suffix(".key")
    try:
        made.load_cert_chain(certificate, key)
    except OSError as exc:
        raise ConfigurationError(
            f"the client certificate {certificate} and its key {key.name} can't be used: {exc.strerror or exc}",
            hint="Docker wants both, in PEM, without a password",
        ) from exc


def proxy(environment: Mapping[str, str], url: str) -> str | None:
    """The proxy for `url`, as a URL that may hold a password; None for a direct way. Never one to this machine.

    Raises ConfigurationError for a proxy of a kind that we don't know.
    """
    target = urlsplit(url)
    if is_loopback(target.hostname or "") or _excepted(environment, target):
        return None
    for name in (f"{target.scheme}_proxy", f"{target.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if value := environment.get(name):
            return _http(name, value)
    return None


def _http(name: str, value: str) -> str:
    text = value if "://" in value else f"http://{value}"
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:  # the value stays out: it may hold a password
        raise ConfigurationError(f"{name} is no http proxy", hint=f"{name}=http://HOST:PORT")
    return text


def _excepted(environment: Mapping[str, str], target: SplitResult) -> bool:
    """Whether NO_PROXY has the target: `*`, a domain with all below it, host:port, an address or a network."""
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    host = (target.hostname or "").lower()
    port = target.port or {"http": 80, "https": 443}.get(target.scheme)
    return any(_matches(word, host, port) for word in re.split(r"[\s,]+", listed.lower()) if word)


def _matches(word: str, host: str, port: int | None) -> bool:
    name, colon, digits = word.rpartition(":")
    if colon and digits.isdigit() and ":" not in name:
        return int(digits) == port and _matches(name, host, port)
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(word.strip("[]"), strict=False)
    except ValueError:
        domain = word.removeprefix("*").removeprefix(".")
        return word == "*" or (bool(domain) and f".{host}".endswith(f".{domain}"))
