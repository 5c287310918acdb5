"""What the runtime is measured against: websockets and uvloop, one process, no protocol, no worker, no check.

A text message comes back as it came; `{"tokens": N, "pace_s": S}` is answered by N messages of 8 bytes.
"""

import asyncio
import json

import uvloop
from websockets.asyncio.server import ServerConnection, serve


async def answer(connection: ServerConnection) -> None:
    async for message in connection:
        if '"tokens"' not in str(message):
            await connection.send(message)
            continue
        asked = json.loads(message)
        for _ in range(asked["tokens"]):
            if asked["pace_s"]:
                await asyncio.sleep(asked["pace_s"])
            await connection.send("8 bytes!")


async def main() -> None:
    async with serve(answer, "127.0.0.1", 0, compression=None) as server:
        print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
