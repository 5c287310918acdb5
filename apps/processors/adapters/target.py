"""What services ask of a place that serves images behind a URL: the Target Protocol, and the values that cross it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from apps.errors import ModalFailed
from apps.processors.adapters.base import LogLine, Progress
from apps.processors.reference import ImageReference


class Unavailable(ModalFailed):
    """The SDK or the service has no such function. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One app to deploy: an image that starts itself, and all that its containers get."""

    app: str
    image: ImageReference
    port: int
    environment: Mapping[str, str] = field(repr=False)
    """All variables but those of the secret."""
    secret: str
    """Name of the secret whose values are variables too. It exists."""
    pull_secret: str | None
    """Name of the secret with the image registry's credentials."""
    cpu: float
    memory_mib: int
    scratch_gb: float
    gpu: str | None
    concurrency: int
    """Connections that a container should have before there is another."""
    grace_s: int
    """What connections get to end before a container goes."""
    startup_s: int
    """What a container gets to listen."""
    tags: Mapping[str, str]
    label: str
    """Of the deployment, kept in the history."""
    folder: Path
    """The checkout, whose revision is kept there too."""


@dataclass(frozen=True, slots=True)
class App:
    """An app as the target knows it now."""

    id: str
    state: str
    """deployed or stopped."""
    version: int | None
    deployed_at: str | None
    """RFC 3339, UTC, milliseconds."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a deployed app is reached, and what it is made from."""

    url: str
    """https, without a path or a last slash."""
    image_id: str | None
    """The target's own id of the image that is live; None: it does not say."""
    sessioned: bool


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment of an app's history."""

    version: int
    label: str
    """As in Plan; empty where it was deployed by something else."""
    deployed_at: str | None
    deployed_by: str | None
    revision: str | None
    """The commit of the folder that it was deployed from, `-dirty` after it where that was changed."""
    rollback_of: int | None
    """The version that it brought back."""


@dataclass(frozen=True, slots=True)
class ProxyToken:
    """What opens the URLs of a workspace."""

    id: str
    secret: str = field(repr=False)


class Target(Protocol):
    """One environment of a place where apps are deployed by digest.

    Every call is bounded in time and raises Unauthorized (no login, a refused one, or one that may not do this),
    ConfigurationError (no such environment, or a machine that can't be used as it is set up), ModalFailed (it does not
    answer, breaks off or answers nonsense) and TimedOut. None prints, none asks back.
    """

    environment: str

    def check(self) -> None:
        """Return when the login is good and the environment exists."""
        ...

    def find(self, app: str) -> App | None:
        """The app of that name, deployed or lately stopped; None when there never was one, or long ago."""
        ...

    def endpoint(self, app: str) -> Endpoint | None:
        """Where the deployed app is reached; None when it is not deployed."""
        ...

    def deploy(self, plan: Plan, *, timeout_s: float, progress: Progress) -> None:
        """Deploy, in the place of what has the name; running containers are replaced one by one.

        After a failure what was deployed before goes on, as a rule; `find` tells by the version.
        Raises ImagePullFailed (details.log) too.
        """
        ...

    def image_id(self, app: str, digest: str) -> str | None:
        """The target's id of the image of that manifest digest, as the last `deploy` of it left it; None: none did."""
        ...

    def tags(self, app: str) -> Mapping[str, str]:
        """What was recorded at the deployed app."""
        ...

    def record(self, app: str, tags: Mapping[str, str]) -> None:
        """Replace all that was recorded at the deployed app."""
        ...

    def history(self, app: App) -> tuple[Deployed, ...]:
        """Every deployment, newest first. Raises Unavailable."""
        ...

    def roll_back(self, app: App, version: int) -> None:
        """Deploy what `version` was once more, as a new version. Raises Unavailable."""
        ...

    def roll_over(self, app: App) -> None:
        """Replace running containers by new ones of the same version. Raises Unavailable."""
        ...

    def containers(self, app: str) -> frozenset[str]:
        """Ids of the containers that serve. Raises Unavailable."""
        ...

    def stop(self, app: App) -> None:
        """Stop it for good: containers end, the name is free. A stopped app is no error."""
        ...

    def logs(self, app: str, *, follow: bool, tail: int | None, since: str | None) -> Iterator[LogLine]:
        """Lines of the deployed app, oldest first: the last `tail` ones, from `since` (RFC 3339, UTC) on.

        With `follow`, goes on until the app stops, over lost connections, each line once.
        """
        ...

    def secret_names(self, secret: str) -> frozenset[str] | None:
        """Names of the variables in a secret; None when there is no such secret. Raises Unavailable."""
        ...

    def has_secret(self, secret: str) -> bool:
        """Whether there is a secret of that name."""
        ...

    def write_secret(self, secret: str, values: Mapping[str, str]) -> None:
        """Set these variables of a secret, which is made when absent; others stay."""
        ...

    def remove_from_secret(self, secret: str, names: frozenset[str]) -> None:
        """Remove variables of a secret. Raises Unavailable."""
        ...

    def new_proxy_token(self, label: str) -> ProxyToken:
        """Make credentials for the URLs of the workspace."""
        ...

    def proxy_token_ids(self) -> frozenset[str]:
        """Ids of the credentials that there are."""
        ...

    def open_session(self, app: str, *, idle_s: int, timeout_s: float) -> str | None:
        """A token that keeps whoever sends it on one container, for as long as it is used; None: no sessions there.

        Waits for a container. Raises TimedOut when none comes up within `timeout_s`.
        """
        ...

    def close_session(self, app: str, token: str) -> None:
        """Let the container go. Never raises."""
        ...
