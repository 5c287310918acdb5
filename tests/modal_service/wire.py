"""The gRPC side: who is calling, what goes wrong on the way, and which part of the peer answers."""

import asyncio
import fnmatch
import hmac
import inspect
import re
import uuid
import weakref
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import grpclib.server
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.protocol import H2Protocol
from modal_proto.api_grpc import ModalClientBase

from tests.modal_service.faults import Faults
from tests.modal_service.workspace import Caller, refuse

TOKEN_ID, TOKEN_SECRET = "ak-of-the-tests", "as-of-the-tests"


class Wire:
    """All RPCs of Modal's service on one port.

    `AppCreate` is answered by whichever of `parts` has a method `app_create(request, caller)`: a coroutine, or an
    asynchronous generator where the answer is a stream. None has it: UNIMPLEMENTED.
    """

    def __init__(self, parts: list[object], faults: Faults) -> None:
        self._parts, self._faults = parts, faults
        self._server: _Server | None = None
        self._done: dict[str, Any] = {}
        self.port = 0
        self.calls: list[str] = []
        """The name of each RPC so far."""

    def __mapping__(self) -> dict[str, Any]:
        answers = _Answers(self._answer)
        return ModalClientBase.__mapping__(answers)  # type: ignore[arg-type]

    async def listen(self) -> None:
        if self._server is None:
            self._server = _Server([self])
            await self._server.start("127.0.0.1", self.port, reuse_address=True)
            self.port = self._server.port

    async def drop(self) -> None:
        """Stop listening, and break all connections."""
        server, self._server = self._server, None
        if server:
            server.abort()
            await server.wait_closed()

    async def _answer(self, name: str, stream: grpclib.server.Stream[Any, Any]) -> None:
        self.calls.append(name)
        caller = _caller(stream)
        await self._faults.before(name)
        if fnmatch.fnmatch(name, self._faults.cut_at):
            await self._cut()
        handler = self._handler(name)
        answer = handler(await stream.recv_message(), caller)
        if inspect.isasyncgen(answer):
            async for message in answer:
                await stream.send_message(message)
            return
        await self._once(name, caller, answer, stream)

    async def _once(
        self, name: str, caller: Caller, answer: Coroutine[Any, Any, Any], stream: grpclib.server.Stream[Any, Any]
    ) -> None:
        """A call that is sent again, with the key it had, is answered again and not done again."""
        if caller.key in self._done:
            answer.close()
        else:
            self._done[caller.key] = await answer or Empty()
        if fnmatch.fnmatch(name, self._faults.cut_after):
            await self._cut()
        await stream.send_message(self._done[caller.key])

    async def _cut(self) -> None:
        self._faults.unreachable = True
        # In a task of its own: dropping the connections cancels this one.
        self._dropping = asyncio.create_task(self.drop())
        await asyncio.sleep(60)

    def _handler(self, name: str) -> Callable[[Any, Caller], Any]:
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        for part in self._parts:
            if handler := getattr(part, method, None):
                return handler
        raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not part of this peer")


class _Server(grpclib.server.Server):
    """One that can break its connections: `close` alone leaves them open, and who waits for an answer waiting."""

    def __init__(self, handlers: list[Any]) -> None:
        super().__init__(handlers)
        self._protocols: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    @property
    def port(self) -> int:
        assert isinstance(self._server, asyncio.Server)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def abort(self) -> None:
        self.close()
        for protocol in self._protocols:
            if not protocol.connection.is_closing():
                protocol.connection._transport.abort()


class _Answers:
    """What ModalClientBase takes for an implementation: each attribute answers the RPC of that name."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return partial(self._answer, name)


def _caller(stream: grpclib.server.Stream[Any, Any]) -> Caller:
    """Refused with UNAUTHENTICATED."""
    metadata: Mapping[str, object] = stream.metadata or {}
    sent = [str(metadata.get(f"x-modal-{name}", "")) for name in ("client-version", "token-id", "token-secret")]
    sent.append(str(metadata.get("x-idempotency-key", uuid.uuid4())))
    caller = Caller(*sent)
    right_id = hmac.compare_digest(caller.token_id, TOKEN_ID)
    if not (hmac.compare_digest(caller.token_secret, TOKEN_SECRET) and right_id):
        refuse(Status.UNAUTHENTICATED, "Token ID or secret is invalid")
    return caller
