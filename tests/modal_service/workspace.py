"""What the workspace holds, in memory: environments, apps with their deployments, and how things are named."""

import secrets
import string
import time
from dataclasses import dataclass, field
from typing import NoReturn

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

USER = "tester"
WORKSPACE = "test-workspace"
DEFAULT_ENVIRONMENT = "main"

_LETTERS = string.ascii_letters + string.digits


def new_id(prefix: str) -> str:
    """An id as Modal's are: the SDK takes `ap-` and 22 letters or digits for an app's."""
    return f"{prefix}-{''.join(secrets.choice(_LETTERS) for _ in range(22))}"


def refuse(status: Status, message: str) -> NoReturn:
    """Have the RPC fail."""
    raise GRPCError(status, message)


@dataclass(frozen=True)
class Caller:
    """Who calls, by the metadata that comes with every call."""

    client_version: str
    token_id: str
    token_secret: str
    key: str
    """The call's own; the same when it is sent again."""


@dataclass(frozen=True)
class Definition:
    """One server as one FunctionCreate described it."""

    id: str
    function_id: str
    app_id: str
    name: str
    """The server's name in its app."""
    data: pb.FunctionData

    @property
    def function(self) -> pb.Function:
        return self.data.ranked_functions[0].function


@dataclass(frozen=True)
class Deployment:
    """One entry of an app's history."""

    version: int
    definitions: dict[str, Definition]
    """By server name."""
    record: pb.AppDeploymentHistory


@dataclass
class App:
    id: str
    name: str
    environment: str
    state: pb.AppState.ValueType
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    tags: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    """Function id by server name, kept from deployment to deployment."""
    deployments: list[Deployment] = field(default_factory=list)

    @property
    def deployed(self) -> bool:
        return self.state == pb.APP_STATE_DEPLOYED

    @property
    def live(self) -> Deployment | None:
        return self.deployments[-1] if self.deployments else None

    def lifecycle(self) -> pb.AppLifecycle:
        known = pb.AppLifecycle(app_state=self.state, created_at=self.created_at, created_by=USER)
        if self.live:
            known.version, known.deployed_at, known.deployed_by = (
                self.live.version,
                self.live.record.deployed_at,
                USER,
            )
        if self.stopped_at:
            known.stopped_at, known.stopped_by = self.stopped_at, USER
        return known

    def metadata(self) -> pb.AppHandleMetadata:
        return pb.AppHandleMetadata(
            description=self.name,
            app_id=self.id,
            environment_name=self.environment,
            lifecycle=self.lifecycle(),
            servers=self.functions if self.deployed else {},
        )


@dataclass
class Workspace:
    environments: dict[str, str]
    """Environment id by name."""
    apps: dict[str, App] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)

    def environment(self, name: str) -> str:
        """Its name, the default's for "". Refused with NOT_FOUND."""
        name = name or DEFAULT_ENVIRONMENT
        if name not in self.environments:
            refuse(Status.NOT_FOUND, f"Environment '{name}' not found")
        return name

    def app(self, app_id: str) -> App:
        if app_id not in self.apps:
            refuse(Status.NOT_FOUND, f"App '{app_id}' not found")
        return self.apps[app_id]

    def deployed_app(self, name: str, environment: str) -> App:
        environment = self.environment(environment)
        for app in self._named(name, environment):
            if app.deployed:
                return app
        refuse(Status.NOT_FOUND, f"App '{name}' not found in environment '{environment}'")

    def find(self, name: str, environment: str) -> tuple[App | None, App | None]:
        """The app that is deployed under the name, and the one that was stopped last."""
        apps = self._named(name, self.environment(environment))
        deployed = next((app for app in apps if app.deployed), None)
        stopped = [app for app in apps if app.deployments and app.state == pb.APP_STATE_STOPPED]
        return deployed, max(stopped, key=lambda app: app.stopped_at, default=None)

    def _named(self, name: str, environment: str) -> list[App]:
        return [app for app in self.apps.values() if (app.name, app.environment) == (name, environment)]
