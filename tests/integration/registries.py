"""Real image registries: Debian's `docker-registry`, plain or hard to please. Each is a context manager.

What goes wrong on the way to them is in middlemen.py.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.certificates import Certificate, issue
from tests.integration.token_server import ISSUER, SERVICE, TokenServer, token_server

USER, PASSWORD = "robot", "open sesame"
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"  # bcrypt of PASSWORD
_DAEMON = Path("/etc/docker/certs.d")
_START_S = 20.0


@dataclass
class Registry:
    """One registry: where it is, what it keeps, what it was asked. It can be killed and started again."""

    address: str
    """host:port, what an image's name begins with."""
    storage: Path
    configuration: dict[str, Any]
    tls: Certificate | None = None
    tokens: TokenServer | None = None
    process: "subprocess.Popen[bytes] | None" = None
    files: list[Path] = field(default_factory=list)

    def repository(self, name: str = "org/image") -> str:
        return f"{self.address}/{name}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to trust it; no login."""
        return {"SSL_CERT_FILE": str(self.tls.authority)} if self.tls else {}

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path with query and status of each request so far. Known a moment after the answer."""
        found = re.findall(r'"(\w+) (\S+) HTTP/[\d.]+" (\d+) ', self._log.read_text(errors="replace"))
        return [(method, path, int(status)) for method, path, status in found]

    def blobs(self) -> set[str]:
        """Digests of all blobs that are complete, manifests included."""
        folder = self.storage / "docker/registry/v2/blobs/sha256"
        return {f"sha256:{file.parent.name}" for file in folder.glob("*/*/data")}

    def tags(self, name: str = "org/image") -> set[str]:
        folder = self.storage / "docker/registry/v2/repositories" / name / "_manifests/tags"
        return {tag.name for tag in folder.glob("*")}

    def start(self) -> None:
        """Start, on the same port and storage; returns when it answers."""
        config = self._log.with_name("config.yml")
        config.write_text(json.dumps(self.configuration))  # JSON is YAML
        with self._log.open("ab") as log:
            argv = ["docker-registry", "serve", str(config)]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        host, _, port = self.address.rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, f"the registry ended: {self._log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, "the registry does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()

    @property
    def _log(self) -> Path:
        return self.files[0]


def _need(what: str, *, there: bool) -> None:
    if not there and os.environ.get("REQUIRE_DOCKER"):
        pytest.fail(f"REQUIRE_DOCKER is set, and this needs {what}", pytrace=False)
    if not there:
        pytest.skip(f"needs {what}")


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
    return port


def own_address() -> str:
    """An address of this machine that is not loopback: where engines and we insist on a right certificate."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks for the route
        address: str = probe.getsockname()[0]
    return address


@contextmanager
def registry(
    *,
    host: str = "127.0.0.1",
    tls: bool | Certificate = False,
    login: str | None = None,
    read_only: bool = False,
    storage: Path | None = None,
) -> Iterator[Registry]:
    """A registry at `host`.

    Args:
        tls: with a certificate for `host` and localhost, by an authority that nobody knows (`Registry.environment`
            and `trusted_by_engines` make it known), or with the one given. Engines and we want it right where `host`
            is not loopback.
        login: None, "password" (HTTP Basic) or "token" (a token server, `Registry.tokens`, plain on
            loopback: engines of the containerd store trust no authority of a test for it): USER and PASSWORD.
        read_only: answers everything that writes with 405.
        storage: where it keeps things (default: a temporary folder), e.g. what another registry wrote.
    """
    _need("docker-registry", there=shutil.which("docker-registry") is not None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-")))
        storage = storage or folder / "storage"
        storage.mkdir(exist_ok=True)
        made = Registry(f"{host}:{free_port(host)}", storage, _configuration(storage), files=[folder / "log"])
        made.configuration["http"] = {"addr": made.address, "secret": "of a test"}
        if read_only:
            made.configuration["storage"]["maintenance"]["readonly"] = {"enabled": True}
        if tls:
            made.tls = tls if isinstance(tls, Certificate) else issue(folder / "tls", host, "localhost")
            files = {"certificate": str(made.tls.certificate), "key": str(made.tls.key)}
            made.configuration["http"]["tls"] = files
        if login == "password":
            (folder / "htpasswd").write_text(_HTPASSWD)
            made.configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        if login == "token":
            made.tokens = stack.enter_context(token_server(folder / "tokens", {USER: PASSWORD}))
            bundle = str(made.tokens.certificate)
            made.configuration["auth"] = {
                "token": {"realm": made.tokens.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}
            }
        try:
            made.start()
            yield made
        finally:
            made.kill()


def _configuration(storage: Path) -> dict[str, Any]:
    return {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
    }


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of `size_bytes` (in steps of 4 KiB) at `folder`, for `registry(storage=…)`. Needs root."""
    _need("root", there=os.geteuid() == 0)
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    subprocess.run(argv, check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


@contextmanager
def trusted_by_engines(made: Registry) -> Iterator[None]:
    """Docker Engines of this machine trust the registry's certificate meanwhile. Needs root."""
    assert made.tls
    _need("root", there=os.geteuid() == 0)
    folder = _DAEMON / made.address
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(made.tls.authority.read_bytes())
    try:
        yield
    finally:
        (folder / "ca.crt").unlink()
        folder.rmdir()


def docker_config(folder: Path, address: str, user: str = USER, password: str = PASSWORD) -> Path:
    """A DOCKER_CONFIG folder as `docker login` leaves it."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    return _config(folder, {"auths": {address: {"auth": login}}})


def docker_config_of_identity(folder: Path, address: str, identity_token: str) -> Path:
    """A DOCKER_CONFIG folder with an identity token, as single sign-on leaves it."""
    user = base64.b64encode(b"<token>:").decode()
    return _config(folder, {"auths": {address: {"auth": user, "identitytoken": identity_token}}})


def docker_config_of_helper(folder: Path, address: str, script: str, *, everywhere: bool = False) -> dict[str, str]:
    """DOCKER_CONFIG and PATH with a credential helper, `script` (sh): asked on stdin, answers on stdout."""
    helper = folder / "bin" / "docker-credential-test"
    helper.parent.mkdir(parents=True)
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    named: dict[str, Any] = {"credsStore": "test"} if everywhere else {"credHelpers": {address: "test"}}
    return {"DOCKER_CONFIG": str(_config(folder, named)), "PATH": f"{helper.parent}:/usr/bin:/bin"}


def _config(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))
    return folder
