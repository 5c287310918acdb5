"""A controller that keeps artifacts, and hands them to the runtime that asks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from processor_runtime.protocol import CHUNK_BYTES, Fetch, Pull, RuntimeMessage, Source, chunk

from tests.runtime.conftest import Result, Runtime, Session

PATH = "/artifacts/inputs/photo.jpg"


def artifact(path: str = PATH) -> dict[str, str]:
    return {"$artifact": path}


class Keeper(Session):
    """A controller that keeps artifacts; with `url`, it says first that they are to be had there."""

    artifacts: dict[str, bytes]
    url = ""
    pulls: list[Pull]
    fetched: dict[int, bytes]
    digest = ""

    async def receive(self) -> RuntimeMessage | None:
        message = await super().receive()
        if isinstance(message, Fetch):
            data = self.artifacts[message.path]
            self.fetched[message.fetch] = data
            request = {"method": "GET", "url": self.url, "headers": {"X-Signed": "yes"}} if self.url else None
            digest = self.digest or f"sha256:{sha256(data).hexdigest()}"
            await self.socket.send(self.side.source(Source(message.fetch, len(data), digest, request)))
        elif isinstance(message, Pull):
            self.pulls.append(message)
            await self.give(message)
        return message

    async def give(self, pull: Pull) -> None:
        data = self.fetched[pull.fetch]
        for at in range(pull.offset, pull.offset + pull.bytes, CHUNK_BYTES):
            await self.socket.send(chunk(pull.fetch, at, data[at : min(at + CHUNK_BYTES, pull.offset + pull.bytes)]))


@asynccontextmanager
async def keeper(runtime: Runtime, artifacts: dict[str, bytes], **how: Any) -> AsyncIterator[Keeper]:
    async with await runtime.connect() as socket:
        session = Keeper(socket)
        session.artifacts, session.pulls, session.fetched = artifacts, [], {}
        for name, value in how.items():
            setattr(session, name, value)
        await session.hello()
        yield session


def run(runtime: Runtime, artifacts: dict[str, bytes], params: dict[str, Any], **how: Any) -> tuple[Keeper, Result]:
    async def scene() -> tuple[Keeper, Result]:
        async with keeper(runtime, artifacts, **how) as session:
            await session.start(inputs={"params": params})
            return session, await session.finish()

    return asyncio.run(scene())
