"""RPCs that change what runs: publish, roll back, roll over, stop; and what they leave: history and containers."""

import asyncio
import time

from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.faults import Faults, distorted
from tests.modal_service.functions import Functions
from tests.modal_service.logs import Logs
from tests.modal_service.workspace import USER, App, Caller, Definition, Deployment, Workspace, refuse


class Deployments:
    def __init__(self, workspace: Workspace, functions: Functions, logs: Logs, faults: Faults) -> None:
        self._workspace, self._functions, self._logs, self._faults = workspace, functions, logs, faults

    async def app_publish(self, request: pb.AppPublishRequest, caller: Caller) -> pb.AppPublishResponse:
        if request.staged:
            refuse(Status.UNIMPLEMENTED, "staged deployments are not known here")
        app = self._workspace.app(request.app_id)
        missing = [each for each in request.definition_ids.values() if each not in self._workspace.definitions]
        if missing:
            refuse(Status.NOT_FOUND, f"no such definition: {', '.join(missing)}")
        definitions = {
            name: self._workspace.definitions[request.definition_ids[function_id]]
            for name, function_id in request.function_ids.items()
        }
        app.state, app.name, app.tags = request.app_state, request.name or app.name, dict(request.tags)
        dropped = set(app.functions.values()) - set(request.function_ids.values())
        app.functions = dict(request.function_ids)
        await asyncio.gather(*(self._functions.gates[each].fleet.close() for each in dropped))
        deployed_at = self._deploy(
            app,
            definitions,
            caller,
            tag=request.deployment_tag,
            commit_info=request.commit_info if request.HasField("commit_info") else None,
            deployment_type=pb.DEPLOYMENT_TYPE_STANDARD,
        )
        return pb.AppPublishResponse(url=f"https://modal.invalid/apps/{app.id}", deployed_at=deployed_at)

    async def app_rollback(self, request: pb.AppRollbackRequest, caller: Caller) -> pb.AppRollbackResponse:
        """Tags of the app and of the deployment stay behind: whether they follow is nowhere said."""
        app = self._deployed(request.app_id)
        assert app.live
        version = request.version if request.version > 0 else app.live.version + request.version
        found = next((each for each in app.deployments if each.version == version), None)
        if found is None or found is app.live:
            refuse(Status.INVALID_ARGUMENT, f"App '{app.name}' can't be rolled back to version {version}")
        deployed_at = self._deploy(
            app,
            found.definitions,
            caller,
            rollback_version=version,
            commit_info=found.record.commit_info if found.record.HasField("commit_info") else None,
            deployment_type=pb.DEPLOYMENT_TYPE_ROLLBACK,
        )
        return pb.AppRollbackResponse(deployed_at=deployed_at, url=f"https://modal.invalid/apps/{app.id}")

    async def app_rollover(self, request: pb.AppRolloverRequest, caller: Caller) -> pb.AppRolloverResponse:
        app = self._deployed(request.app_id)
        assert app.live
        deployed_at = self._deploy(
            app, app.live.definitions, caller, deployment_type=pb.DEPLOYMENT_TYPE_ROLLOVER, tag=app.live.record.tag
        )
        return pb.AppRolloverResponse(deployed_at=deployed_at, url=f"https://modal.invalid/apps/{app.id}")

    async def app_stop(self, request: pb.AppStopRequest, caller: Caller) -> None:
        app = self._workspace.app(request.app_id)
        if app.state != pb.APP_STATE_STOPPED:
            app.state, app.stopped_at = pb.APP_STATE_STOPPED, time.time()
            await asyncio.gather(*(fleet.close() for fleet in self._functions.fleets(app)))
            self._logs.close(app.id)

    async def app_deployment_history(
        self, request: pb.AppDeploymentHistoryRequest, caller: Caller
    ) -> pb.AppDeploymentHistoryResponse:
        """Newest first."""
        app = self._workspace.app(request.app_id)
        records = []
        for deployment in reversed(app.deployments):
            record = pb.AppDeploymentHistory()
            record.CopyFrom(deployment.record)
            record.tag = distorted(record.tag, self._faults.recorded)
            record.rollback_allowed = deployment is not app.live
            records.append(record)
        live = app.live.version if app.live else 0
        return pb.AppDeploymentHistoryResponse(app_deployment_histories=records, production_app_version=live)

    async def task_list(self, request: pb.TaskListRequest, caller: Caller) -> pb.TaskListResponse:
        environment = self._workspace.environment(request.environment_name)
        if request.app_id:
            apps = [self._workspace.app(request.app_id)]
        else:
            apps = [app for app in self._workspace.apps.values() if app.environment == environment]
        tasks = [
            pb.TaskStats(
                task_id=replica.task_id,
                app_id=app.id,
                app_description=app.name,
                enqueued_at=replica.enqueued_at,
                started_at=replica.started_at,
            )
            for app in apps
            for fleet in self._functions.fleets(app)
            for replica in fleet.running
        ]
        return pb.TaskListResponse(tasks=tasks)

    async def container_stop(self, request: pb.ContainerStopRequest, caller: Caller) -> pb.ContainerStopResponse:
        for gate in self._functions.gates.values():
            await gate.fleet.stop(request.task_id, graceful=request.graceful)
        return pb.ContainerStopResponse()

    def _deployed(self, app_id: str) -> App:
        app = self._workspace.app(app_id)
        if not app.deployed:
            refuse(Status.FAILED_PRECONDITION, f"App '{app.name}' is not deployed")
        return app

    def _deploy(self, app: App, definitions: dict[str, Definition], caller: Caller, **known: object) -> float:
        """Add to the history, and have the containers follow. Returns the moment."""
        version = app.live.version + 1 if app.live else 1
        moments = [
            self._functions.gates[definition.function_id].fleet.deploy(definition)
            for definition in definitions.values()
        ]
        deployed_at = max(moments, default=time.time())
        record = pb.AppDeploymentHistory(
            app_id=app.id,
            version=version,
            client_version=caller.client_version,
            deployed_at=deployed_at,
            deployed_by=USER,
            **known,  # type: ignore[arg-type]
        )
        app.deployments.append(Deployment(version, definitions, record))
        return deployed_at
