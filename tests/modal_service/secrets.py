"""RPCs about secrets: names and keys can be read, values only be handed to containers."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from grpclib import Status
from modal_proto import api_pb2 as pb

from tests.modal_service.workspace import Caller, Workspace, new_id, refuse


@dataclass
class Secret:
    id: str
    name: str
    """Empty for one that belongs to an app alone."""
    environment: str
    values: dict[str, str]
    created_at: float = field(default_factory=time.time)
    last_used_at: float = 0.0

    def metadata(self) -> pb.SecretMetadata:
        return pb.SecretMetadata(
            name=self.name,
            creation_info=pb.CreationInfo(created_at=self.created_at),
            keys=sorted(self.values),
            environment_name=self.environment,
            last_used_at=self.last_used_at,
        )


class Secrets:
    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._secrets: dict[str, Secret] = {}

    def environment(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """The variables that these secrets give a container; later ones win. Raises KeyError for a deleted one."""
        variables: dict[str, str] = {}
        for secret in [self._secrets[secret_id] for secret_id in secret_ids]:
            secret.last_used_at = time.time()
            variables |= secret.values
        return variables

    async def secret_get_or_create(
        self, request: pb.SecretGetOrCreateRequest, caller: Caller
    ) -> pb.SecretGetOrCreateResponse:
        environment = self._workspace.environment(request.environment_name)
        found = self._named(request.deployment_name, environment)
        kind = request.object_creation_type
        if not request.deployment_name or kind == pb.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
            found = self._add("", environment, request)
        elif found and kind == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            refuse(Status.ALREADY_EXISTS, f"Secret '{request.deployment_name}' already exists")
        elif found and kind == pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            found.values = dict(request.env_dict)
        elif not found and kind == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            refuse(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found in environment '{environment}'")
        elif not found:
            found = self._add(request.deployment_name, environment, request)
        if missing := [key for key in request.required_keys if key not in found.values]:
            refuse(Status.NOT_FOUND, f"Secret is missing key(s): {', '.join(missing)}")
        return pb.SecretGetOrCreateResponse(secret_id=found.id, metadata=found.metadata())

    async def secret_get_info(self, request: pb.SecretGetInfoRequest, caller: Caller) -> pb.SecretGetInfoResponse:
        return pb.SecretGetInfoResponse(metadata=self._secret(request.secret_id).metadata())

    async def secret_update(self, request: pb.SecretUpdateRequest, caller: Caller) -> None:
        # Containers that already run keep what they were given: whether the service does more is nowhere said.
        secret = self._secret(request.secret_id)
        for update in request.updates:
            if update.HasField("value"):
                secret.values[update.key] = update.value
            else:
                secret.values.pop(update.key, None)

    async def secret_list(self, request: pb.SecretListRequest, caller: Caller) -> pb.SecretListResponse:
        environment = self._workspace.environment(request.environment_name)
        before = request.pagination.created_before or float("inf")
        found = [
            secret
            for secret in self._secrets.values()
            if secret.name and secret.environment == environment and secret.created_at < before
        ]
        found.sort(key=lambda secret: secret.created_at, reverse=True)
        page = found[: request.pagination.max_objects or None]
        return pb.SecretListResponse(items=[_listed(secret) for secret in page], environment_name=environment)

    async def secret_delete(self, request: pb.SecretDeleteRequest, caller: Caller) -> None:
        del self._secrets[self._secret(request.secret_id).id]

    def _named(self, name: str, environment: str) -> Secret | None:
        wanted = (name, environment)
        return next((each for each in self._secrets.values() if (each.name, each.environment) == wanted), None)

    def _add(self, name: str, environment: str, request: pb.SecretGetOrCreateRequest) -> Secret:
        secret = Secret(new_id("st"), name, environment, dict(request.env_dict))
        self._secrets[secret.id] = secret
        return secret

    def _secret(self, secret_id: str) -> Secret:
        if secret_id not in self._secrets:
            refuse(Status.NOT_FOUND, f"Secret '{secret_id}' not found")
        return self._secrets[secret_id]


def _listed(secret: Secret) -> pb.SecretListItem:
    return pb.SecretListItem(
        label=secret.name,
        created_at=secret.created_at,
        last_used_at=secret.last_used_at,
        environment_name=secret.environment,
        secret_id=secret.id,
        metadata=secret.metadata(),
    )
