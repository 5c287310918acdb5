"""The gRPC side: who is calling, what goes wrong on the way, and which part of the peer answers."""

import asyncio
import fnmatch
import hmac
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpclib.server
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
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
        self._server: grpclib.server.Server | None = None
        self.port = 0
        self.calls: list[str] = []
        """The name of each RPC so far."""

    def __mapping__(self) -> dict[str, Any]:
        answers = _Answers(self._answer)
        return ModalClientBase.__mapping__(answers)  # type: ignore[arg-type]

    async def listen(self) -> None:
        if self._server is None:
            self._server = grpclib.server.Server([self])
            await self._server.start("127.0.0.1", self.port, reuse_address=True)
            sockets = self._server._server.sockets  # type: ignore[union-attr]
            self.port = sockets[0].getsockname()[1]

    async def drop(self) -> None:
        """Stop listening, and end all connections."""
        server, self._server = self._server, None
        if server:
            server.close()
            await server.wait_closed()

    async def _answer(self, name: str, stream: grpclib.server.Stream[Any, Any]) -> None:
        self.calls.append(name)
        caller = _caller(stream)
        await self._faults.before(name)
        if fnmatch.fnmatch(name, self._faults.cut_at):
            await self._cut()
        handler = self._handler(name)
        request = await stream.recv_message()
        answer = handler(request, caller)
        if inspect.isasyncgen(answer):
            async for message in answer:
                await stream.send_message(message)
            return
        message = await answer
        if fnmatch.fnmatch(name, self._faults.cut_after):
            await self._cut()
        await stream.send_message(Empty() if message is None else message)

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
    caller = Caller(*sent)
    right_id = hmac.compare_digest(caller.token_id, TOKEN_ID)
    if not (hmac.compare_digest(caller.token_secret, TOKEN_SECRET) and right_id):
        refuse(Status.UNAUTHENTICATED, "Token ID or secret is invalid")
    return caller
