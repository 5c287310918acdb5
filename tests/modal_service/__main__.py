"""Run the peer: `python -m tests.modal_service`. It ends, and takes its containers along, when its stdin ends.

The first line on stdout is a JSON document that says where it is: `url` for the SDK, `control` for the tests.
"""

import argparse
import asyncio
import json
import sys
import threading

from aiohttp import web

from tests.modal_service.service import Service


async def serve(port: int, environments: list[str]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    service = Service(environments)
    await asyncio.to_thread(service.containers.sweep)
    service.wire.port = port
    runner = web.AppRunner(service.control(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await service.wire.listen()
    control = f"http://127.0.0.1:{runner.addresses[0][1]}"
    print(json.dumps({"url": f"http://127.0.0.1:{service.wire.port}", "control": control}), flush=True)

    def wait_for_the_end() -> None:
        # Whoever started it holds the other end: even one that is killed lets go of it.
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    await service.run(ended)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="A peer of Modal's SDK that runs what it deploys in Docker.")
    parser.add_argument("--port", type=int, default=0, help="for gRPC (default: any)")
    parser.add_argument("--environments", default="dev,staging,main", help="that exist, by comma")
    words = parser.parse_args()
    asyncio.run(serve(words.port, words.environments.split(",")))


if __name__ == "__main__":
    main()
