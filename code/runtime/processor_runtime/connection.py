"""One client's connection: what it asks, the events that it follows, the outputs that it carries."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State

from processor_runtime.execution import Execution
from processor_runtime.executions import Ended, Executions
from processor_runtime.protocol import (
    Attach,
    Cancel,
    Fetch,
    ProtocolError,
    Pull,
    Run,
    RuntimeSide,
    Source,
    Unavailable,
    Upload,
)

FIRST_MESSAGE_S: Final = 30.0  # for `run` or `attach` to come
CLOSE_S: Final = 5.0  # for the controller to close, after the last message
SOON_S: Final = 0.005  # what may wait for the next event: accepted, started

log = logging.getLogger("processor_runtime")


class RunConnection(ServerConnection):
    """websockets' connection, plus: many text messages in one write, and word of a reader that is slow or not.

    `transport`, `state` and the two callbacks are attributes of websockets 15 to 17; tests/runtime holds them to it.
    """

    client: "Client | None" = None

    @property
    def can_write(self) -> bool:
        return self.state is State.OPEN and not self.transport.is_closing()

    def write_texts(self, texts: Iterable[bytes]) -> None:
        """Send text messages in one piece, without waiting; dropped when the connection is closing.

        `send` costs three times as much for each token, and one system call each.
        """
        if self.can_write:
            self.transport.write(b"".join([part for text in texts for part in (_header(len(text)), text)]))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.client is not None:
            self.client.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.client is not None:
            self.client.resumed()


def _header(size: int) -> bytes:
    """Of one unmasked text frame, RFC 6455 section 5.2."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


class Client:
    """Speaks the runtime's side on one connection, for one execution."""

    def __init__(self, connection: RunConnection, executions: Executions, hello: bytes) -> None:
        self._connection, self._executions, self._hello = connection, executions, hello
        self._side = RuntimeSide()
        self._followed: Execution | Ended | None = None
        self._control: list[bytes] = []  # goes before events
        self._seen = 0  # number of the last event that was written
        self._over = False  # the last message was written
        self._soon: asyncio.TimerHandle | None = None
        self._chunk = asyncio.Lock()
        self._closing: asyncio.TimerHandle | None = None
        connection.client = self

    async def serve(self) -> None:
        """Until either end closes. Never raises for what a client does."""
        self._connection.write_texts([self._hello])
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await self._connection.recv()
            self._receive(first)
            async for message in self._connection:
                self._receive(message)
        except TimeoutError:
            await self._connection.close(CloseCode.POLICY_VIOLATION, "no run came")
        except ProtocolError as exc:
            await self._connection.close(CloseCode.PROTOCOL_ERROR, str(exc)[:120])
        except ConnectionClosed:
            pass
        except Exception:  # a bug of ours: said here, since websockets' own log is off
            log.exception("a connection broke")
            await self._connection.close(CloseCode.INTERNAL_ERROR)
        finally:
            self._leave()

    # what executions and uploads ask (Follower, Courier)

    @property
    def is_behind(self) -> bool:
        return self._connection.paused

    def flush(self) -> None:
        """Write what there is, as far as the reader keeps up."""
        if self._connection.paused or self._over:
            return
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        texts, self._control = self._control, []
        execution = self._followed
        if execution is not None:
            more, self._seen = execution.events.after(self._seen)
            texts += more
            while self._seen < execution.events.last:
                self._connection.write_texts(texts)
                if self._connection.paused:
                    return
                texts, self._seen = execution.events.after(self._seen)
            texts += execution.ending
        if texts:
            self._connection.write_texts(texts)
        if execution is not None and execution.done:
            self._end()

    def flush_soon(self) -> None:
        """Write with the next event, or in a few milliseconds: a write costs more than what it carries."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._flush_late)

    def ask(self, message: Upload | Fetch | Pull) -> None:
        self.say(self._side.ask(message))

    def say(self, text: str) -> None:
        self._control.append(text.encode())
        self.flush()

    async def send_chunk(self, data: bytes) -> None:
        """One binary message; returns when the connection can take the next. Closed: waits to be cancelled."""
        async with self._chunk:
            try:
                await self._connection.send(data)
            except ConnectionClosed:
                await asyncio.get_running_loop().create_future()  # `_leave` takes the upload away

    def dismiss(self) -> None:
        self._over = True
        self._close(CloseCode.POLICY_VIOLATION, "too many follow this execution")

    # what the connection tells

    def paused(self) -> None:
        if self._execution is not None:
            self._execution.followers.pace()

    def resumed(self) -> None:
        self.flush()
        if self._execution is not None:
            self._execution.followers.pace()

    # inside

    def _receive(self, text: str | bytes) -> None:
        if isinstance(text, bytes):
            fetch, data = self._side.receive_chunk(text)
            if self._execution is not None and self._execution.fetches is not None:
                self._execution.fetches.chunk(fetch, data)
            return
        message = self._side.receive(text)
        match message:
            case Run():
                self._take(self._executions.run(message, self))
            case Attach():
                self._seen = message.after
                self._take(self._executions.attach(message, self))
            case Cancel():
                self._cancel(message.by)
            case Source() | Unavailable():
                if self._execution is not None and self._execution.fetches is not None:
                    self._execution.fetches.receive(message)
            case _:
                if self._execution is not None:
                    self._execution.uploads.receive(message)

    @property
    def _execution(self) -> Execution | None:
        """What it follows, while there is something to say to it."""
        return self._followed if isinstance(self._followed, Execution) else None

    def _take(self, answer: Execution | Ended | list[bytes]) -> None:
        if isinstance(answer, list):
            self._connection.write_texts(answer)
            self._end()
            return
        self._followed = answer
        self._control.insert(0, answer.accepted)
        if answer.done:
            self.flush()
        else:
            self.flush_soon()

    def _cancel(self, by: str) -> None:
        """By `user` for all. By `client` it is one that will not come back: no matter as long as others follow."""
        execution = self._execution
        if execution is not None and (by == "user" or execution.followers.is_alone(self)):
            execution.cancel("user" if by == "user" else "client")

    def _flush_late(self) -> None:
        self._soon = None
        self.flush()

    def _end(self) -> None:
        """The last message is on its way. The controller closes: it may be about to answer an earlier one."""
        self._over = True
        if self._soon is not None:
            self._soon.cancel()
        self._closing = asyncio.get_running_loop().call_later(CLOSE_S, self._close)

    def _close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        self._connection.loop.create_task(self._connection.close(code, reason))

    def _leave(self) -> None:
        """The connection is gone; the execution waits a while for another."""
        self._over = True
        for timer in (self._soon, self._closing):
            if timer is not None:
                timer.cancel()
        if self._execution is not None:
            self._execution.leave(self)
        self._followed = self._connection.client = None  # else they wait for the garbage collector, events and all
