"""A server's URL: checks who comes, picks a container, and carries bytes both ways. HTTP/1.1 and WebSocket alike."""

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass

from tests.modal_service.environments import Environments
from tests.modal_service.faults import FALSIFIED, REMOVED, Faults
from tests.modal_service.fleet import Fleet, Replica
from tests.modal_service.sessions import Session, Sessions
from tests.modal_service.workspace import Definition

_PIECE = 65536
_SESSION_WAIT_S = 60.0
_OWN = {"modal-key", "modal-secret", "modal-authorization", "connection"}
_WORDS = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


class Refused(Exception):
    """The request goes no further: (status, words)."""


@dataclass(frozen=True)
class Head:
    method: str
    path: str
    headers: list[tuple[str, str]]

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Raises Refused."""
        line, *rest = text.rstrip("\r\n").split("\r\n")
        words = line.split(" ")
        if len(words) != 3:
            raise Refused(400, "not HTTP")
        headers = [(name.strip(), value.strip()) for name, _, value in (each.partition(":") for each in rest)]
        return cls(words[0], words[1], headers)

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known.lower() == name), "")

    @property
    def bearer(self) -> str:
        return self.header("modal-authorization").removeprefix("Bearer ")

    @property
    def credentials(self) -> tuple[str, str]:
        """Of a proxy token, in either of the two ways that the service takes them."""
        key, _, secret = self.header("authorization").removeprefix("Bearer ").partition(".")
        if not (key.startswith("wk-") and secret.startswith("ws-")):
            key = secret = ""
        return self.header("modal-key") or key, self.header("modal-secret") or secret

    def forwarded(self) -> bytes:
        """For the container: without credentials; one request on a connection unless it is upgraded."""
        upgrade = self.header("upgrade")
        headers = [each for each in self.headers if each[0].lower() not in _OWN]
        headers.append(("Connection", "Upgrade" if upgrade else "close"))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Gate:
    """One port for one server, from its first deployment on."""

    def __init__(self, fleet: Fleet, environments: Environments, sessions: Sessions, faults: Faults) -> None:
        self.fleet, self._environments, self._sessions, self._faults = fleet, environments, sessions, faults
        self.tokens: set[str] = set()
        """What FunctionGetFlashAuthToken gave out."""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self) -> str:
        """Its URL."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self.url

    @property
    def url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = Head.parse((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            await self._answer(head, reader, writer)
        except Refused as refusal:
            status, words = refusal.args
            _say(writer, status, words.encode(), "text/plain")
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()

    async def _answer(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        definition = self.fleet.definition
        if definition is None:
            raise Refused(404, "modal-http: the app of this server is stopped")
        self._admit(head, definition)
        if head.method == "POST" and head.path.startswith("/_modal/sessions/"):
            await self._control(head, definition, writer)
            return
        session = self._session(head, definition)
        replica = session.replica if session else self._pick()
        most = definition.function.max_concurrent_inputs
        if self._faults.busy or (most and replica.connections >= most):
            raise Refused(429, "modal-http: too many requests for this server")
        takers: list[Replica | Session] = [replica, session] if session else [replica]
        for taker in takers:
            taker.taken(1)
        try:
            await self._carry(head, replica, reader, writer)
        finally:
            for taker in takers:
                taker.taken(-1)

    def _admit(self, head: Head, definition: Definition) -> None:
        """Proxy credentials, or what the SDK got for itself. A session's token alone opens nothing."""
        if definition.data.http_config.unauthenticated or head.bearer in self.tokens:
            return
        key, secret = head.credentials
        if not (key and secret):
            raise Refused(401, "modal-http: missing credentials for proxy authorization")
        if not self._environments.admits(key, secret, self.fleet.app.environment):
            raise Refused(401, "modal-http: invalid credentials for proxy authorization")

    def _session(self, head: Head, definition: Definition) -> Session | None:
        """The session of a request; None where the server has none. What the service answers is nowhere said."""
        if not definition.data.is_sessioned:
            return None
        token = head.bearer
        if not token or token in self.tokens:
            raise Refused(400, "modal-http: this server needs a session")
        session = self._sessions.find(token)
        if session is None:
            raise Refused(404, "modal-http: no such session")
        return session

    def _pick(self) -> Replica:
        self.fleet.wake()
        serving = self.fleet.serving
        if not serving:
            raise Refused(503, "modal-http: no container is ready to serve this request")
        # The one with the least to do; among equals, the one that rested longest.
        return min(serving, key=lambda each: (each.connections + self._sessions.held(each), each.idle_since))

    async def _control(self, head: Head, definition: Definition, writer: asyncio.StreamWriter) -> None:
        if not definition.data.is_sessioned:
            raise Refused(400, "modal-http: this server has no sessions")
        if head.path == "/_modal/sessions/start":
            replica = await self._capacity()
            idle_s = float(head.header("x-modal-server-session-idle-timeout") or 600)
            session = self._sessions.start(replica, idle_timeout_s=idle_s, key=head.header("x-idempotency-key"))
            document = {"session_id": session.id, "token": session.token}
            _say(writer, 200, json.dumps(document).encode(), "application/json")
        elif head.path == "/_modal/sessions/terminate":
            if not self._sessions.end(head.header("x-modal-server-session-token")):
                raise Refused(404, "modal-http: no such session")
            _say(writer, 200, b"{}", "application/json")
        else:
            raise Refused(404, "modal-http: no such path")

    async def _capacity(self) -> Replica:
        """A container for a new session: a start waits for one, where a request would be refused."""
        deadline = time.monotonic() + _SESSION_WAIT_S
        while time.monotonic() < deadline and self.fleet.definition:
            with contextlib.suppress(Refused):
                return self._pick()
            await asyncio.sleep(0.05)
        raise Refused(503, "modal-http: no container is ready to serve this session")

    async def _carry(
        self, head: Head, replica: Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", replica.host_port)
        except OSError:
            raise Refused(502, "modal-http: the container does not answer") from None
        self._open.add(forth)
        up = asyncio.create_task(_pipe(reader, forth))
        try:
            forth.write(head.forwarded())
            await self._answered(replica, back, writer)
        finally:
            up.cancel()
            self._open.discard(forth)
            with contextlib.suppress(OSError):
                forth.close()

    async def _answered(self, replica: Replica, back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await back.read(_PIECE):
                if self._faults.break_before(piece):
                    writer.transport.abort()
                    return
                writer.write(self._reported(piece, replica))
                await writer.drain()

    def _reported(self, piece: bytes, replica: Replica) -> bytes:
        """What a container says of its image's digest, as a fault wants it: same length, so that frames stay frames."""
        if not self._faults.reported:
            return piece
        digest = self.fleet.digest(replica)
        quoted = f'"{digest}"'.encode()
        if self._faults.reported == FALSIFIED:
            kind, _, hexadecimal = digest.partition(":")
            return piece.replace(digest.encode(), f"{kind}:{hexadecimal[::-1]}".encode())
        if self._faults.reported == REMOVED:
            return re.sub(re.escape(quoted), b"null".ljust(len(quoted)), piece)
        return piece


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        # The client hung up: so does the other side, and what waits for its answer ends.
        writer.close()


def _say(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str) -> None:
    head = f"HTTP/1.1 {status} {_WORDS.get(status, 'OK')}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
