"""RPCs about servers, which are functions on the wire: their definitions, their URLs, their containers."""

import base64
import json
import secrets
import time
from collections.abc import Callable

from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.faults import FALSIFIED, REMOVED, Faults
from tests.modal_service.fleet import Fleet
from tests.modal_service.gate import Gate
from tests.modal_service.workspace import App, Caller, Definition, Workspace, new_id, refuse

_COPIED = {
    "module_name",
    "function_name",
    "implementation_name",
    "function_type",
    "timeout_secs",
    "startup_timeout_secs",
    "autoscaler_settings",
    "http_config",
    "is_server",
    "is_sessioned",
    "routing_region",
    "experimental_options",
}
_TOKEN_S = 20 * 60


class Functions:
    def __init__(self, workspace: Workspace, faults: Faults, gate: Callable[[App], Gate]) -> None:
        """`gate` makes one for a new server."""
        self._workspace, self._faults, self._new_gate = workspace, faults, gate
        self.gates: dict[str, Gate] = {}
        """By function id."""

    def fleets(self, app: App) -> list[Fleet]:
        return [self.gates[function_id].fleet for function_id in app.functions.values()]

    async def function_precreate(
        self, request: pb.FunctionPrecreateRequest, caller: Caller
    ) -> pb.FunctionPrecreateResponse:
        app = self._workspace.app(request.app_id)
        function_id = request.existing_function_id or app.functions.get(request.function_name) or new_id("fu")
        app.functions[request.function_name] = function_id
        metadata = await self._metadata(app, request.function_name)
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    async def function_create(self, request: pb.FunctionCreateRequest, caller: Caller) -> pb.FunctionCreateResponse:
        app = self._workspace.app(request.app_id)
        data = _data(request)
        if not data.http_config.HasField("lift_and_shift_config"):
            refuse(Status.UNIMPLEMENTED, "only Servers that run an image as it is are known here")
        name = data.function_name
        metadata = await self._metadata(app, name)
        function_id = app.functions[name]
        data.flash_service_urls[:] = metadata._experimental_flash_urls
        definition = Definition(new_id("de"), function_id, app.id, name, data)
        self._workspace.definitions[definition.id] = definition
        metadata.definition_id = definition.id
        return pb.FunctionCreateResponse(
            function_id=function_id, function=definition.function, function_data=data, handle_metadata=metadata
        )

    async def function_get(self, request: pb.FunctionGetRequest, caller: Caller) -> pb.FunctionGetResponse:
        app = self._workspace.deployed_app(request.app_name, request.environment_name)
        definition = app.live.definitions.get(request.object_tag) if app.live else None
        if definition is None:
            refuse(Status.NOT_FOUND, f"App '{app.name}' has no Server '{request.object_tag}'")
        return pb.FunctionGetResponse(
            function_id=definition.function_id,
            handle_metadata=await self._metadata(app, definition.name),
            function=self._live(definition),
        )

    async def function_get_by_id(
        self, request: pb.FunctionGetByIdRequest, caller: Caller
    ) -> pb.FunctionGetByIdResponse:
        app, definition = self._by_id(request.function_id)
        metadata = await self._metadata(app, definition.name)
        return pb.FunctionGetByIdResponse(handle_metadata=metadata, function=self._live(definition))

    async def function_get_scheduling_params(
        self, request: pb.FunctionGetSchedulingParamsRequest, caller: Caller
    ) -> pb.FunctionGetSchedulingParamsResponse:
        settings = self._by_id(request.function_id)[1].data.autoscaler_settings
        configuration = pb.AutoscalerConfiguration(settings=settings, static_settings=settings)
        return pb.FunctionGetSchedulingParamsResponse(autoscaler_configuration=configuration)

    async def function_get_flash_auth_token(
        self, request: pb.FunctionGetFlashAuthTokenRequest, caller: Caller
    ) -> pb.FunctionGetFlashAuthTokenResponse:
        self._by_id(request.function_id)
        claims = {"exp": int(time.time()) + _TOKEN_S, "jti": secrets.token_hex(8)}
        token = ".".join((_encoded({"alg": "none"}), _encoded(claims), secrets.token_urlsafe(16)))
        self.gates[request.function_id].tokens.add(token)
        return pb.FunctionGetFlashAuthTokenResponse(token=token)

    async def flash_container_list(
        self, request: pb.FlashContainerListRequest, caller: Caller
    ) -> pb.FlashContainerListResponse:
        self._by_id(request.function_id)
        serving = self.gates[request.function_id].fleet.serving
        found = [
            pb.FlashContainerListResponse.Container(task_id=each.task_id, host="127.0.0.1", port=each.host_port)
            for each in serving
        ]
        return pb.FlashContainerListResponse(containers=found)

    def _by_id(self, function_id: str) -> tuple[App, Definition]:
        app = next((app for app in self._workspace.apps.values() if function_id in app.functions.values()), None)
        live = app.live.definitions.values() if app and app.live else ()
        definition = next((each for each in live if each.function_id == function_id), None)
        if app is None or definition is None:
            refuse(Status.NOT_FOUND, f"Function '{function_id}' not found")
        return app, definition

    async def _metadata(self, app: App, name: str) -> pb.FunctionHandleMetadata:
        function_id = app.functions.setdefault(name, new_id("fu"))
        gate = self.gates.get(function_id) or self.gates.setdefault(function_id, self._new_gate(app))
        live = app.live.definitions.get(name) if app.live else None
        return pb.FunctionHandleMetadata(
            function_name=name,
            function_type=pb.Function.FUNCTION_TYPE_FUNCTION,
            app_id=app.id,
            definition_id=live.id if live else "",
            _experimental_flash_urls=[await gate.listen()],
        )

    def _live(self, definition: Definition) -> pb.FunctionData:
        """What the service says runs, and for the image what a fault has it say."""
        if self._faults.image_id not in (FALSIFIED, REMOVED):
            return definition.data
        said = pb.FunctionData()
        said.CopyFrom(definition.data)
        for ranked in said.ranked_functions:
            ranked.function.image_id = new_id("im") if self._faults.image_id == FALSIFIED else ""
        return said


def _data(request: pb.FunctionCreateRequest) -> pb.FunctionData:
    """The one description of a server, whichever of the two the SDK sent."""
    if request.HasField("function_data"):
        return request.function_data
    function = request.function
    copied = {
        field.name: value
        for field, value in function.ListFields()
        if field.name in _COPIED and field.name != "experimental_options"
    }
    data = pb.FunctionData(**copied, experimental_options=function.experimental_options)
    data.ranked_functions.add(rank=0, function=function)
    return data


def _encoded(document: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()
