"""Secrets on Modal: which variables they hold, set and removed. Values go in and never come back."""

from collections.abc import Mapping

from apps.errors import ModalFailed
from apps.processors.adapters import modal_rpc
from apps.processors.adapters.modal_line import Line
from apps.processors.adapters.target import Unavailable


def exists(line: Line, name: str) -> bool:
    async def ask() -> bool:
        import modal

        await modal.Secret.from_name(name, environment_name=line.environment).hydrate.aio()
        return True

    return bool(line.find(ask, doing=f"look up the secret {name}"))


def names(line: Line, name: str) -> frozenset[str] | None:
    """Of the variables in the secret; None when there is none. Raises Unavailable."""

    async def ask() -> frozenset[str]:
        import modal

        secret = modal.Secret.from_name(name, environment_name=line.environment)
        await secret.hydrate.aio()
        keys = getattr(secret, "_get_keys", None)
        if keys is None:
            raise Unavailable("this version of Modal's SDK does not tell what is in a secret")
        return frozenset(await keys.aio())

    return line.find(ask, doing=f"tell what is in the secret {name}")


def write(line: Line, name: str, values: Mapping[str, str]) -> None:
    """Set variables; others stay. The SDK's own `allow_existing` would keep old values and say nothing."""

    async def work() -> None:
        import modal
        from modal.exception import AlreadyExistsError

        try:
            await modal.Secret.objects.create.aio(name, dict(values), environment_name=line.environment)
        except AlreadyExistsError:
            secret = modal.Secret.from_name(name, environment_name=line.environment)
            await secret.hydrate.aio()
            await secret.update.aio(dict(values))

    line.ask(work, doing=f"write the secret {name}")


def remove(line: Line, name: str, gone: frozenset[str]) -> None:
    """Remove variables, and be sure that they are gone. Raises Unavailable."""

    async def work() -> None:
        import modal

        secret = modal.Secret.from_name(name, environment_name=line.environment)
        await secret.hydrate.aio()
        await modal_rpc.remove_keys(secret.object_id, gone)

    line.ask(work, doing=f"remove from the secret {name}")
    left = (names(line, name) or frozenset()) & gone
    if left:
        raise ModalFailed(
            f"Modal left {', '.join(sorted(left))} in the secret {name}", hint=f"modal secret delete {name}, then sync"
        )
