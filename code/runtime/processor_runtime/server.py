"""The supervisor: the door, the health endpoints, signals, and the order of starting and stopping."""

import asyncio
import hashlib
import hmac
import http
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import rfc8785
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from processor_runtime import __version__, metrics, system
from processor_runtime.connection import Client, RunConnection
from processor_runtime.environment import Environment
from processor_runtime.executions import Executions
from processor_runtime.pool import Pool
from processor_runtime.protocol import MAX_REQUEST_BYTES, PATH, SUBPROTOCOL, Hello, encode

UNSENT_BYTES: Final = 64 * 1024  # to one client, before its handler has to wait
SEND_BUFFER_BYTES: Final = 128 * 1024  # of the kernel, for each client: the default is megabytes
BACKLOG: Final = 1024
CLOSE_S: Final = 1.0  # for clients to take leave when the runtime stops

log = logging.getLogger("processor_runtime")


class Runtime:
    """The supervisor's parts, and what each of them needs of the others."""

    def __init__(self, environment: Environment, secrets: dict[str, str], control: socket.socket) -> None:
        self._environment = environment
        self._stop = asyncio.Event()
        self._connections: set[ServerConnection] = set()
        self._status = 0
        spec = environment.spec
        present = [name for name in (*spec.required_secrets, *spec.optional_secrets) if name in secrets]
        self._pool = Pool(
            environment, secrets, control, changed=self._changed, stillborn=self._stillborn, fatal=self._fail
        )
        self._executions = Executions(environment, present, self._pool)
        self._hello = _hello(environment, present)
        self._missing = [name for name in spec.required_secrets if name not in present]
        self._announced = False

    async def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        try:
            listener = _listen(self._environment)
        except OSError as exc:
            log.error("can't listen on %s:%d: %s", self._environment.bind, self._environment.port, exc.strerror or exc)
            return 69
        server = await serve(
            self._follow,
            sock=listener,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_REQUEST_BYTES,
            write_limit=UNSENT_BYTES,
            process_request=self._door,
            create_connection=RunConnection,
            server_header=None,
            logger=_silence(),
        )
        _on_signals(self._signalled)
        system.hide_memory()
        log.info("listening on %s:%d", *listener.getsockname()[:2])
        await self._stop.wait()
        if self._status == 0:
            await self._executions.drain()
        self._pool.close()
        server.close()
        asyncio.get_running_loop().call_later(CLOSE_S, self._abort)
        await server.wait_closed()
        log.info("stopped")
        return self._status

    async def _follow(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        try:
            await Client(cast(RunConnection, connection), self._executions, self._hello).serve()
        finally:
            self._connections.discard(connection)

    def _abort(self) -> None:
        for connection in self._connections:
            connection.transport.abort()

    # the door

    def _door(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == PATH:
            return self._run_door(connection, request)
        if path == "/healthz":
            document = {
                "status": "ok",
                "ref": self._environment.spec.ref,
                "image_digest": self._environment.image_digest,
            }
            return _json(http.HTTPStatus.OK, document)
        if path == "/readyz":
            return self._readyz()
        if path == "/metrics" and self._environment.token:
            if not self._is_known(request):
                return _plain(http.HTTPStatus.UNAUTHORIZED, "the run token is wrong or absent")
            page = metrics.render(self._executions, self._pool, self._environment.spec.ref)
            return _response(http.HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", page)
        return _plain(http.HTTPStatus.NOT_FOUND, "no such page")

    def _run_door(self, connection: ServerConnection, request: Request) -> Response | None:
        if "Origin" in request.headers:  # a browser's page, which a token in a cookie would let through
            return _plain(http.HTTPStatus.FORBIDDEN, "browsers are not served")
        if not self._is_known(request):
            return _plain(http.HTTPStatus.UNAUTHORIZED, "the run token is wrong or absent")
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if SUBPROTOCOL not in [word.strip() for word in offered.split(",")]:
            return _plain(http.HTTPStatus.BAD_REQUEST, f"offer the subprotocol {SUBPROTOCOL}")
        return None

    def _is_known(self, request: Request) -> bool:
        token = self._environment.token
        if not token:
            return True
        given = request.headers.get_all("Authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), f"Bearer {token}".encode())

    def _readyz(self) -> Response:
        modes, reason = self._modes()
        ready = "mock" in modes
        status = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
        count = self._executions.running + self._executions.waiting
        state = self._state(ready)
        return _json(status, {"ready": ready, "state": state, "executions": count, "reason": reason, "modes": modes})

    def _state(self, ready: bool) -> str:
        """ready, busy (one more run would wait), starting, or unhealthy (stopping included): a word for programs."""
        if not ready:
            return "unhealthy" if self._announced else "starting"
        return "busy" if self._executions.full else "ready"

    def _modes(self) -> tuple[list[str], str]:
        """The modes that a run may have now, and why one is missing."""
        if self._executions.draining:
            return [], "stopping"
        if not self._announced:
            return [], "the handler is being imported"
        if not self._pool.can_start("mock"):
            return [], "the template process is being started again"
        if self._missing:
            return ["mock"], f"missing secrets: {', '.join(self._missing)}"
        if self._pool.load_failure is not None:
            return ["mock"], f"load() failed: {self._pool.load_failure.message}"
        if not self._pool.can_start("real"):
            return ["mock"], "load() has not ended yet"
        return ["mock", "real"], ""

    # what the pool tells

    def _changed(self) -> None:
        if not self._announced and self._pool.has_idle("mock"):
            self._announced = True
            log.info("ready for mock runs")
        self._executions.dispatch()

    def _stillborn(self, mode: str, failure: Any) -> None:
        self._executions.stillborn(mode, failure)

    def _fail(self, why: str) -> None:
        log.error("%s", why)
        self._status = 1
        self._stop.set()

    def _signalled(self) -> None:
        if self._stop.is_set():
            log.info("stopping at once")
            os._exit(0)
        log.info("stopping: %d executions are cancelled", self._executions.running + self._executions.waiting)
        self._stop.set()


def _silence() -> logging.Logger:
    """A log for websockets that nobody hears: every port scan would be a traceback."""
    quiet = logging.getLogger("processor_runtime.door")
    quiet.disabled = True
    return quiet


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # As process 1 we get orphans. Ignored, the kernel reaps them; our own child's end is seen by its channel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _listen(environment: Environment) -> socket.socket:
    family = socket.AF_INET6 if ":" in environment.bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit it
    try:
        listener.bind((environment.bind, environment.port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _hello(environment: Environment, present: list[str]) -> bytes:
    spec = environment.spec
    canonical = rfc8785.dumps(json.loads(spec.canonical))
    hello = Hello(
        ref=spec.ref,
        image_digest=environment.image_digest,
        spec_digest=f"sha256:{hashlib.sha256(canonical).hexdigest()}",
        source=environment.source,
        runtime_version=__version__,
        concurrency=spec.concurrency,
        secrets_present=present,
        instance=os.urandom(8).hex(),
    )
    return encode(hello).encode()


def _json(status: http.HTTPStatus, document: dict[str, Any]) -> Response:
    return _response(status, "application/json", json.dumps(document).encode() + b"\n")


def _plain(status: http.HTTPStatus, text: str) -> Response:
    return _response(status, "text/plain; charset=utf-8", text.encode() + b"\n")


def _response(status: http.HTTPStatus, media_type: str, body: bytes) -> Response:
    headers = Headers()
    headers["Content-Type"] = media_type
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    return Response(status.value, status.phrase, headers, body)
