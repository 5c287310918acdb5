"""The peer as a whole: its parts put together, and the hand that tests hold it by."""

import asyncio
import contextlib
from typing import Any

from aiohttp import web

from tests.modal_service.apps import Apps
from tests.modal_service.containers import Containers
from tests.modal_service.deployments import Deployments
from tests.modal_service.environments import Environments
from tests.modal_service.faults import Faults
from tests.modal_service.fleet import Fleet, Parts
from tests.modal_service.functions import Functions
from tests.modal_service.gate import Gate
from tests.modal_service.images import Images
from tests.modal_service.logs import Logs
from tests.modal_service.secrets import Secrets
from tests.modal_service.sessions import Sessions
from tests.modal_service.wire import Wire
from tests.modal_service.workspace import App, Workspace, new_id

_TURN_S = 0.1


class Service:
    def __init__(self, environments: list[str]) -> None:
        self.faults = Faults()
        self.workspace = Workspace({name: new_id("en") for name in environments})
        self.containers = Containers()
        self.environments = Environments(self.workspace)
        secrets, logs = Secrets(self.workspace), Logs(self.workspace, self.faults)
        images = Images(self.workspace, secrets, logs, self.containers, self.faults)
        self._parts = Parts(self.containers, images, secrets, logs, self.faults)
        self._sessions = Sessions()
        self.functions = Functions(self.workspace, self.faults, self._gate)
        apps = Apps(self.workspace, self.faults, self.functions.fleets)
        deployments = Deployments(self.workspace, self.functions, logs, self.faults)
        self.wire = Wire([apps, deployments, self.functions, self.environments, secrets, images, logs], self.faults)

    async def run(self, ended: asyncio.Event) -> None:
        """Serve until `ended`; then nothing of it is left."""
        turning = asyncio.create_task(self._turn())
        await ended.wait()
        turning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await turning
        await self.wire.drop()
        gates = list(self.functions.gates.values())
        await asyncio.gather(*(gate.close() for gate in gates))
        await asyncio.gather(*(gate.fleet.close() for gate in gates))
        await asyncio.to_thread(self.containers.close)

    def control(self) -> web.Application:
        """The tests' hand: what is there, what goes wrong, and what befalls containers."""
        application = web.Application()
        application.add_routes(
            [web.get("/state", self._state), web.post("/faults", self._change), web.post("/scale-to-zero", self._rest)]
        )
        return application

    def _gate(self, app: App) -> Gate:
        return Gate(Fleet(app, self._parts, self._sessions.held), self.environments, self._sessions, self.faults)

    async def _turn(self) -> None:
        while True:
            for gate in list(self.functions.gates.values()):
                gate.fleet.turn()
            await asyncio.sleep(_TURN_S)

    async def _state(self, request: web.Request) -> web.Response:
        apps = [self._described(app) for app in self.workspace.apps.values()]
        return web.json_response({"apps": apps, "calls": self.wire.calls})

    async def _change(self, request: web.Request) -> web.Response:
        try:
            self.faults.change(await request.json())
        except ValueError as exc:
            return web.json_response({"error": str(exc)}, status=400)
        if self.faults.unreachable:
            await self.wire.drop()
        else:
            await self.wire.listen()
        return web.json_response({})

    async def _rest(self, request: web.Request) -> web.Response:
        for gate in self.functions.gates.values():
            await gate.fleet.rest()
        return web.json_response({})

    def _described(self, app: App) -> dict[str, Any]:
        gates = [self.functions.gates[function_id] for function_id in app.functions.values()]
        replicas = [(gate.fleet, replica) for gate in gates for replica in gate.fleet.replicas]
        return {
            "id": app.id,
            "name": app.name,
            "environment": app.environment,
            "deployed": app.deployed,
            "version": app.live.version if app.live else 0,
            "urls": [gate.url for gate in gates],
            "containers": [
                {
                    "task_id": replica.task_id,
                    "container_id": replica.container_id,
                    "digest": fleet.digest(replica),
                    "state": replica.state,
                    "connections": replica.connections,
                    "failure": replica.failure,
                }
                for fleet, replica in replicas
            ],
        }
