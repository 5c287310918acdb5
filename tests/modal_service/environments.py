"""RPCs about the workspace: its name, its environments, and its proxy tokens."""

import secrets
import time
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.workspace import DEFAULT_ENVIRONMENT, USER, WORKSPACE, Caller, Workspace, new_id, refuse

BUILDER_VERSION = "2025.06"  # the oldest with which an image from a registry stays as it is


@dataclass
class ProxyToken:
    id: str
    secret: str
    name: str
    scoped: bool
    created_at: float = field(default_factory=time.time)
    environment_ids: set[str] = field(default_factory=set)
    """Where a scoped one is good; one that isn't is good everywhere."""


class Environments:
    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.tokens: dict[str, ProxyToken] = {}

    def admits(self, token_id: str, secret: str, environment: str) -> bool:
        """Whether the proxy credentials open servers of that environment."""
        token = self.tokens.get(token_id)
        if token is None or not secrets.compare_digest(token.secret, secret):
            return False
        return not token.scoped or self._workspace.environments[environment] in token.environment_ids

    async def workspace_name_lookup(self, request: Empty, caller: Caller) -> pb.WorkspaceNameLookupResponse:
        return pb.WorkspaceNameLookupResponse(workspace_name=WORKSPACE, username=USER)

    async def environment_get_or_create(
        self, request: pb.EnvironmentGetOrCreateRequest, caller: Caller
    ) -> pb.EnvironmentGetOrCreateResponse:
        if request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            self._workspace.environments.setdefault(request.deployment_name, new_id("en"))
        name = self._workspace.environment(request.deployment_name)
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        return pb.EnvironmentGetOrCreateResponse(
            environment_id=self._workspace.environments[name],
            metadata=pb.EnvironmentMetadata(name=name, settings=settings),
        )

    async def environment_list(self, request: Empty, caller: Caller) -> pb.EnvironmentListResponse:
        found = self._workspace.environments.items()
        items = [
            pb.EnvironmentListItem(name=name, environment_id=environment_id, default=name == DEFAULT_ENVIRONMENT)
            for name, environment_id in found
        ]
        return pb.EnvironmentListResponse(items=items)

    async def environment_create(self, request: pb.EnvironmentCreateRequest, caller: Caller) -> None:
        if request.name in self._workspace.environments:
            refuse(Status.ALREADY_EXISTS, f"Environment '{request.name}' already exists")
        self._workspace.environments[request.name] = new_id("en")

    async def webhook_token_create(
        self, request: pb.WebhookTokenCreateRequest, caller: Caller
    ) -> pb.TokenCreateResponse:
        token = ProxyToken(new_id("wk"), new_id("ws"), request.name, request.scoped)
        self.tokens[token.id] = token
        return pb.TokenCreateResponse(token_id=token.id, token_secret=token.secret)

    async def webhook_token_list(self, request: Empty, caller: Caller) -> pb.WebhookTokenListResponse:
        return pb.WebhookTokenListResponse(tokens=[_described(token) for token in self.tokens.values()])

    async def webhook_token_list_for_environment(
        self, request: pb.WebhookTokenListForEnvironmentRequest, caller: Caller
    ) -> pb.WebhookTokenListResponse:
        found = self._workspace.environments[self._workspace.environment(request.environment_name)]
        tokens = [token for token in self.tokens.values() if found in token.environment_ids]
        return pb.WebhookTokenListResponse(tokens=[_described(token) for token in tokens])

    async def webhook_token_environment_add(
        self, request: pb.WebhookTokenEnvironmentAddRequest, caller: Caller
    ) -> None:
        token = self._token(request.token_id)
        token.environment_ids.add(request.environment_id)
        token.scoped = True

    async def webhook_token_environment_remove(
        self, request: pb.WebhookTokenEnvironmentRemoveRequest, caller: Caller
    ) -> None:
        self._token(request.token_id).environment_ids.discard(request.environment_id)

    async def webhook_token_delete(self, request: pb.TokenDeleteRequest, caller: Caller) -> None:
        del self.tokens[self._token(request.token_id).id]

    def _token(self, token_id: str) -> ProxyToken:
        if token_id not in self.tokens:
            refuse(Status.NOT_FOUND, f"Proxy token '{token_id}' not found")
        return self.tokens[token_id]


def _described(token: ProxyToken) -> pb.WebhookToken:
    return pb.WebhookToken(
        token_id=token.id,
        created_at=token.created_at,
        scoped=token.scoped,
        name=token.name,
        created_by=pb.UserIdentity(username=USER),
    )
