"""A token server as Docker's registries have one: gives a JWT for the login and the scope that it is asked for.

Source: https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/
"""

import base64
import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.integration.certificates import signing_key

SERVICE = "registry of a test"
ISSUER = "tokens of a test"


@dataclass
class TokenServer:
    """What it allows, and what it was asked. Change it while it runs."""

    address: str
    certificate: Path
    """What the registry checks the tokens with (rootcertbundle)."""
    key: Path
    logins: dict[str, str]
    """user → password."""
    identity_token: str
    """What may stand for a login: a refresh token."""
    actions: set[str] = field(default_factory=lambda: {"pull", "push", "delete"})
    """What a login may do."""
    anonymous: set[str] = field(default_factory=set)
    """What anybody may do."""
    lifetime_s: float = 300.0
    """A registry of Debian's allows 60 s more: -58 is a token that ends in two seconds."""
    refusal: int = 0
    """The HTTP status that everything is answered with; 0: it serves."""
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    """Method and parameters of each request, form fields included."""

    @property
    def realm(self) -> str:
        return f"http://{self.address}/token"

    def token(self, scopes: list[str], *, authenticated: bool) -> str:
        """A JWT for as much of `scopes` (`repository:name:pull,push`) as is allowed."""
        allowed = self.actions if authenticated else self.anonymous
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": sorted(set(actions.split(",")) & allowed)})
        now_s = int(time.time())
        chain = "".join(line for line in self.certificate.read_text().splitlines() if "-----" not in line)
        claims = {
            "iss": ISSUER,
            "sub": "someone",
            "aud": SERVICE,
            "exp": int(now_s + self.lifetime_s),
            "nbf": now_s - 600,
            "iat": now_s - 600,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'RS256', 'x5c': [chain]})}.{_encoded(claims)}"
        argv = ["openssl", "dgst", "-sha256", "-sign", str(self.key)]
        signature = subprocess.run(argv, input=signed.encode(), capture_output=True, check=True, timeout=30).stdout
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _encoded(document: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


@contextmanager
def token_server(folder: Path, logins: dict[str, str]) -> Iterator[TokenServer]:
    """A token server on loopback, its key in `folder`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(parse_qs(urlsplit(self.path).query), self._basic())

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer(form, form.get("refresh_token") == [serving.identity_token])

        def _basic(self) -> bool | None:
            scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
            if scheme != "Basic":
                return None
            user, _, password = base64.b64decode(encoded).decode().partition(":")
            return serving.logins.get(user) == password

        def _answer(self, fields: dict[str, list[str]], authenticated: bool | None) -> None:
            serving.asked.append((self.command, fields))
            status = serving.refusal
            if not status and (authenticated is False or (authenticated is None and not serving.anonymous)):
                status = 401
            scopes = [word for scope in fields.get("scope", []) for word in scope.split()]
            if status:
                document: dict[str, object] = {"details": "incorrect username or password"}
            else:
                token = serving.token(scopes, authenticated=bool(authenticated))
                document = {"token": token, "access_token": token, "expires_in": 300}
            body = json.dumps(document).encode()
            self.send_response(status or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    folder.mkdir(parents=True, exist_ok=True)
    key, certificate = folder / "tokens.key", folder / "tokens.crt"
    for file, text in zip((key, certificate), signing_key(), strict=True):
        file.write_bytes(text)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"127.0.0.1:{server.server_port}"
        identity_token = secrets.token_hex(16)
        serving = TokenServer(address, certificate, key, logins, identity_token)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield serving
        finally:
            server.shutdown()
            thread.join()
