"""What Modal's SDK does for its own command line alone: history, rollback, rollover, looking up a stopped app.

None of it is public, so each is looked for before it is used: an SDK or a service without it is Unavailable.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from apps.processors.adapters.target import App, Deployed, Unavailable


async def call(method: str, request: str, **fields: Any) -> Any:
    """The answer to one request of Modal's protocol. Raises Unavailable, and what the SDK raises."""
    return await (await _caller())(method, request, fields)


async def _caller() -> Callable[[str, str, dict[str, Any]], Awaitable[Any]]:
    try:
        from modal._utils.async_utils import synchronizer
        from modal.client import _Client
        from modal_proto import api_pb2
    except ImportError as exc:
        raise Unavailable(f"this version of Modal's SDK is not known: {exc}") from exc

    async def send(method: str, request: str, fields: dict[str, Any]) -> Any:
        stub = (await _Client.from_env())._stub
        send, message = getattr(stub, method, None), getattr(api_pb2, request, None)
        if send is None or message is None:
            raise Unavailable(f"this version of Modal's SDK has no {method}")
        return await send(message(**fields))

    # In the SDK's own event loop, where its connections live.
    sender: Any = synchronizer.create_blocking(send)
    found: Callable[[str, str, dict[str, Any]], Awaitable[Any]] = sender.aio
    return found


async def find(name: str, environment: str) -> App | None:
    """The app that has the name, or lately had it."""
    answer = await call(
        "AppGetByDeploymentName", "AppGetByDeploymentNameRequest", name=name, environment_name=environment
    )
    id = answer.app_id or answer.previous_app_id
    if not id:
        return None
    life = answer.lifecycle
    return App(
        id=id,
        state="deployed" if answer.app_id else "stopped",
        version=life.version or None,
        deployed_at=moment(life.deployed_at),
    )


async def history(app_id: str) -> tuple[Deployed, ...]:
    answer = await call("AppDeploymentHistory", "AppDeploymentHistoryRequest", app_id=app_id)
    found = [
        Deployed(
            version=each.version,
            label=each.tag,
            deployed_at=moment(each.deployed_at),
            deployed_by=each.deployed_by or None,
            revision=_revision(each.commit_info),
            rollback_of=each.rollback_version or None,
        )
        for each in answer.app_deployment_histories
    ]
    return tuple(sorted(found, key=lambda each: each.version, reverse=True))


def _revision(commit: Any) -> str | None:
    if not commit.commit_hash:
        return None
    return f"{commit.commit_hash}{'-dirty' if commit.dirty else ''}"


async def roll_back(app_id: str, version: int) -> None:
    await call("AppRollback", "AppRollbackRequest", app_id=app_id, version=version)


async def roll_over(app_id: str) -> None:
    await call("AppRollover", "AppRolloverRequest", app_id=app_id)


async def image_builder(environment: str) -> str:
    """The version of what makes images there."""
    answer = await call("EnvironmentGetOrCreate", "EnvironmentGetOrCreateRequest", deployment_name=environment)
    return str(answer.metadata.settings.image_builder_version)


async def remove_keys(secret_id: str, names: frozenset[str]) -> None:
    """Remove variables of a secret: an update without a value."""
    updates = [{"key": name} for name in sorted(names)]
    await call("SecretUpdate", "SecretUpdateRequest", secret_id=secret_id, updates=updates)


def moment(seconds: float) -> str | None:
    """Seconds since 1970 as RFC 3339, UTC, milliseconds."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
