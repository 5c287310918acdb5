"""RPCs about apps as records: found by name, created, tagged, listed, described."""

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.faults import Faults, distorted
from tests.modal_service.fleet import Fleet
from tests.modal_service.workspace import App, Caller, Workspace, new_id, refuse


class Apps:
    def __init__(self, workspace: Workspace, faults: Faults, fleets: Callable[[App], list[Fleet]]) -> None:
        self._workspace, self._faults, self._fleets = workspace, faults, fleets

    async def app_get_by_deployment_name(
        self, request: pb.AppGetByDeploymentNameRequest, caller: Caller
    ) -> pb.AppGetByDeploymentNameResponse:
        deployed, stopped = self._workspace.find(request.name, request.environment_name)
        known = deployed or stopped
        return pb.AppGetByDeploymentNameResponse(
            app_id=deployed.id if deployed else "",
            previous_app_id=stopped.id if stopped and not deployed else "",
            environment_name=self._workspace.environment(request.environment_name),
            lifecycle=known.lifecycle() if known else None,
        )

    async def app_create(self, request: pb.AppCreateRequest, caller: Caller) -> pb.AppCreateResponse:
        environment = self._workspace.environment(request.environment_name)
        app = App(new_id("ap"), request.description, environment, request.app_state, tags=dict(request.tags))
        self._workspace.apps[app.id] = app
        return pb.AppCreateResponse(app_id=app.id, app_page_url=_page(app), app_logs_url=f"{_page(app)}/logs")

    async def app_get_or_create(self, request: pb.AppGetOrCreateRequest, caller: Caller) -> pb.AppGetOrCreateResponse:
        if request.app_name in self._workspace.apps:
            app = self._workspace.apps[request.app_name]
        elif request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            refuse(Status.UNIMPLEMENTED, "apps without a Server are not known here")
        else:
            app = self._workspace.deployed_app(request.app_name, request.environment_name)
        return pb.AppGetOrCreateResponse(app_id=app.id, handle_metadata=app.metadata())

    async def app_get_layout(self, request: pb.AppGetLayoutRequest, caller: Caller) -> pb.AppGetLayoutResponse:
        app = self._workspace.app(request.app_id)
        objects = [
            pb.Object(object_id=function_id, function_handle_metadata=pb.FunctionHandleMetadata(function_name=name))
            for name, function_id in app.functions.items()
        ]
        return pb.AppGetLayoutResponse(app_layout=pb.AppLayout(objects=objects, function_ids=app.functions))

    async def app_heartbeat(self, request: pb.AppHeartbeatRequest, caller: Caller) -> None:
        self._workspace.app(request.app_id)

    async def app_client_disconnect(self, request: pb.AppClientDisconnectRequest, caller: Caller) -> None:
        app = self._workspace.app(request.app_id)
        if app.state == pb.APP_STATE_INITIALIZING:
            app.state = pb.APP_STATE_STOPPED

    async def app_get_info(self, request: pb.AppGetInfoRequest, caller: Caller) -> pb.AppGetInfoResponse:
        app = self._workspace.app(request.app_id)
        definitions = app.live.definitions.values() if app.live else ()
        summaries = {
            each.function_id: pb.AppGetInfoResponse.FunctionInfoSummary(
                requires_proxy_auth=not each.data.http_config.unauthenticated, is_sessioned=each.data.is_sessioned
            )
            for each in definitions
        }
        return pb.AppGetInfoResponse(info=app.metadata(), function_info_summaries=summaries)

    async def app_get_lifecycle(self, request: pb.AppGetLifecycleRequest, caller: Caller) -> pb.AppGetLifecycleResponse:
        return pb.AppGetLifecycleResponse(lifecycle=self._workspace.app(request.app_id).lifecycle())

    async def app_set_tags(self, request: pb.AppSetTagsRequest, caller: Caller) -> None:
        self._workspace.app(request.app_id).tags = dict(request.tags)

    async def app_get_tags(self, request: pb.AppGetTagsRequest, caller: Caller) -> pb.AppGetTagsResponse:
        tags = self._workspace.app(request.app_id).tags
        said = {name: distorted(value, self._faults.recorded) for name, value in tags.items()}
        return pb.AppGetTagsResponse(tags={name: value for name, value in said.items() if value})

    async def app_list(self, request: pb.AppListRequest, caller: Caller) -> pb.AppListResponse:
        environment = self._workspace.environment(request.environment_name)
        found = [app for app in self._workspace.apps.values() if app.environment == environment]
        return pb.AppListResponse(apps=[self._listed(app) for app in found])

    async def client_hello(self, request: Empty, caller: Caller) -> pb.ClientHelloResponse:
        return pb.ClientHelloResponse()

    def _listed(self, app: App) -> pb.AppListResponse.AppListItem:
        return pb.AppListResponse.AppListItem(
            app_id=app.id,
            name=app.name if app.deployed else "",
            description=app.name,
            state=app.state,
            created_at=app.created_at,
            stopped_at=app.stopped_at,
            n_running_tasks=sum(len(fleet.running) for fleet in self._fleets(app)),
            metadata=app.metadata(),
        )


def _page(app: App) -> str:
    return f"https://modal.invalid/apps/{app.id}"
