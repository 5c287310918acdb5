"""RPCs about images: a build is a pull of the one image that a Dockerfile of one line names."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from docker.errors import DockerException
from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.containers import Containers
from tests.modal_service.faults import Faults
from tests.modal_service.logs import STDOUT, Logs
from tests.modal_service.secrets import Secrets
from tests.modal_service.workspace import DEFAULT_ENVIRONMENT, Caller, Workspace, new_id, refuse

SUCCESS = pb.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = pb.GenericResult.GENERIC_STATUS_FAILURE


@dataclass
class Image:
    id: str
    reference: str
    builder_version: str
    lines: list[str] = field(default_factory=list)
    """The build's log."""
    result: pb.GenericResult = field(default_factory=pb.GenericResult)
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    """Set and replaced with each change."""
    app_id: str = field(default_factory=lambda: new_id("ap"))
    """The builder's, under which the service keeps the build's log."""
    task_id: str = field(default_factory=lambda: new_id("ta"))
    started_at: float = field(default_factory=time.time)
    finished_at: float = 0.0

    @property
    def built(self) -> bool:
        return self.result.status == SUCCESS

    def changed(self) -> None:
        self.grown.set()
        self.grown = asyncio.Event()

    def metadata(self) -> pb.ImageMetadata:
        return pb.ImageMetadata(image_builder_version=self.builder_version)


class Images:
    def __init__(
        self, workspace: Workspace, secrets: Secrets, logs: Logs, containers: Containers, faults: Faults
    ) -> None:
        self._workspace, self._secrets, self._logs = workspace, secrets, logs
        self._containers, self._faults = containers, faults
        self._images: dict[str, Image] = {}
        self._definitions: dict[bytes, str] = {}
        self._names: dict[str, str] = {}
        self._builds: set[asyncio.Task[None]] = set()

    def image(self, image_id: str) -> Image:
        if image_id not in self._images:
            refuse(Status.NOT_FOUND, f"Image '{image_id}' not found")
        return self._images[image_id]

    async def image_get_or_create(
        self, request: pb.ImageGetOrCreateRequest, caller: Caller
    ) -> pb.ImageGetOrCreateResponse:
        """The same definition is the same image, unless its build failed."""
        definition = request.image.SerializeToString(deterministic=True) + request.builder_version.encode()
        known = self._images.get(self._definitions.get(definition, ""))
        if known is None or known.result.status == FAILURE or request.force_build:
            known = Image(new_id("im"), _reference(request.image), request.builder_version)
            self._definitions[definition], self._images[known.id] = known.id, known
            login = self._login(request.image.image_registry_config)
            build = asyncio.create_task(self._build(known, login))
            self._builds.add(build)
            build.add_done_callback(self._builds.discard)
        metadata = known.metadata() if known.built else None
        return pb.ImageGetOrCreateResponse(image_id=known.id, result=known.result, metadata=metadata)

    async def image_join_streaming(
        self, request: pb.ImageJoinStreamingRequest, caller: Caller
    ) -> AsyncIterator[pb.ImageJoinStreamingResponse]:
        image = self.image(request.image_id)
        position = int(request.last_entry_id or 0)
        deadline = time.monotonic() + request.timeout
        while True:
            grown = image.grown
            for line in image.lines[position:]:
                position += 1
                yield pb.ImageJoinStreamingResponse(entry_id=str(position), task_logs=[_log(line)])
            if image.result.status:
                yield pb.ImageJoinStreamingResponse(
                    result=image.result, metadata=image.metadata(), entry_id=str(position), eof=True
                )
                return
            try:
                await asyncio.wait_for(grown.wait(), deadline - time.monotonic())
            except TimeoutError:
                return

    async def image_publish(self, request: pb.ImagePublishRequest, caller: Caller) -> pb.ImagePublishResponse:
        image = self.image(request.image_id)
        self._names[self._name(request.tag, request.environment_name)] = image.id
        return pb.ImagePublishResponse(image_id=image.id, revision_id=new_id("ir"))

    async def image_get_by_tag(self, request: pb.ImageGetByTagRequest, caller: Caller) -> pb.ImageGetByTagResponse:
        name = self._name(request.tag, request.environment_name)
        if name not in self._names:
            refuse(Status.NOT_FOUND, f"Image '{request.tag}' not found")
        return pb.ImageGetByTagResponse(image_id=self._names[name])

    async def image_from_id(self, request: pb.ImageFromIdRequest, caller: Caller) -> pb.ImageFromIdResponse:
        image = self.image(request.image_id)
        return pb.ImageFromIdResponse(image_id=image.id, metadata=image.metadata())

    async def image_build_chain_get(
        self, request: pb.ImageBuildChainGetRequest, caller: Caller
    ) -> pb.ImageBuildChainGetResponse:
        """Where the log of the build is."""
        image = self.image(request.image_id)
        step = pb.ImageBuildStep(image_id=image.id, builder_app_id=image.app_id, builder_task_id=image.task_id)
        step.started_at.FromNanoseconds(int(image.started_at * 1e9))
        step.finished_at.FromNanoseconds(int((image.finished_at or time.time()) * 1e9))
        return pb.ImageBuildChainGetResponse(build_steps=[step])

    async def _build(self, image: Image, login: dict[str, str]) -> None:
        self._logs.builders.add(image.app_id)
        self._say(image, f"=> Step 0: FROM {image.reference}")
        try:
            if self._faults.build_failure:
                raise DockerException(self._faults.build_failure)
            lines = await asyncio.to_thread(lambda: list(self._containers.pull(image.reference, login)))
            self._say(image, *lines)
            image.result = pb.GenericResult(status=SUCCESS)
        except DockerException as exc:
            self._say(image, f"Error: {exc}")
            image.result = pb.GenericResult(status=FAILURE, exception=str(exc))
        image.finished_at = time.time()
        image.changed()

    def _say(self, image: Image, *lines: str) -> None:
        image.lines += lines
        for line in lines:
            self._logs.add(f"{line}\n", app_id=image.app_id, function_id="", task_id=image.task_id, source=STDOUT)
        image.changed()

    def _login(self, config: pb.ImageRegistryConfig) -> dict[str, str]:
        """For the registry. Refused where the secret is gone or not a user's and password."""
        if not config.secret_id:
            return {}
        if config.registry_auth_type != pb.REGISTRY_AUTH_TYPE_STATIC_CREDS:
            refuse(Status.UNIMPLEMENTED, "only registries with user and password are known here")
        values = self._secrets.environment([config.secret_id])
        return {"username": values["REGISTRY_USERNAME"], "password": values["REGISTRY_PASSWORD"]}

    def _name(self, tag: str, environment: str) -> str:
        prefix, slash, name = tag.rpartition("/")
        return f"{self._workspace.environment(prefix if slash else environment or DEFAULT_ENVIRONMENT)}/{name}"


def _reference(image: pb.Image) -> str:
    commands = list(image.dockerfile_commands)
    if len(commands) != 1 or not commands[0].startswith("FROM "):
        refuse(Status.UNIMPLEMENTED, f"only images from a registry, as they are, are known here: {commands}")
    return commands[0].removeprefix("FROM ").strip()


def _log(line: str) -> pb.TaskLogs:
    return pb.TaskLogs(data=f"{line}\n", timestamp=time.time(), file_descriptor=pb.FILE_DESCRIPTOR_STDOUT)
