"""What this checkout remembers of Modal: which app a ref is in which environment, and what opens the door."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from apps.processors.atomic import exclusive_lock
from apps.processors.reference import ProcessorRef
from apps.processors.state import LocalState

_APPS, _TOKENS = "modal_apps.json", "modal_tokens.json"
_SESSIONS: Final = 50
"""The newest that are kept: each is of no use any more soon after its last connection."""


@dataclass(frozen=True, slots=True)
class AppRecord:
    """The last deployment of a ref to an environment from this checkout."""

    app: str
    url: str
    image_digest: str
    spec_digest: str
    forced: bool = False
    """`start --allow-drift`: what was deployed counts as the selection until the next start."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{field.name: document[field.name] for field in fields(cls) if field.name in document})


class ModalState(LocalState):
    """The files about Modal; tokens have one of their own, 0600."""

    def deploying(self, env: str, app: str) -> AbstractContextManager[None]:
        """The lock that `start` and `rollback` of one app hold: one that fails must not undo the other's."""
        return exclusive_lock(self.folder / "locks" / f"modal-{env}-{app}.lock")

    def app(self, ref: ProcessorRef, env: str) -> AppRecord | None:
        with self._shaped(_APPS):
            found = self._entries(_APPS, "apps").get(_key(ref, env))
            return AppRecord.read(found) if found else None

    def record_app(self, ref: ProcessorRef, env: str, record: AppRecord) -> None:
        self._change(_APPS, "apps", lambda entries: {**entries, _key(ref, env): asdict(record)})

    def proxy_token(self) -> tuple[str, str] | None:
        """Id and secret that `start` made."""
        found = self._entries(_TOKENS, "tokens").get("proxy")
        return (
            (str(found["id"]), str(found["secret"]))
            if isinstance(found, dict) and {"id", "secret"} <= set(found)
            else None
        )

    def keep_proxy_token(self, id: str, secret: str) -> None:
        self._change_tokens(lambda entries: {**entries, "proxy": {"id": id, "secret": secret}})

    def session(self, app: str, execution_id: str) -> str | None:
        """The session that the execution was sent in, and is still to be found in."""
        found = self._entries(_TOKENS, "tokens").get("sessions")
        token = found.get(f"{app} {execution_id}") if isinstance(found, dict) else None
        return token if isinstance(token, str) else None

    def keep_session(self, app: str, execution_id: str, token: str | None) -> None:
        """Remember it; None: forget it."""

        def change(entries: dict[str, Any]) -> dict[str, Any]:
            kept = entries.get("sessions")
            sessions = {**kept} if isinstance(kept, dict) else {}
            sessions.pop(f"{app} {execution_id}", None)
            if token is not None:
                sessions[f"{app} {execution_id}"] = token
            return {**entries, "sessions": dict(list(sessions.items())[-_SESSIONS:])}

        self._change_tokens(change)

    def _change_tokens(self, change: Any) -> None:
        self._change(_TOKENS, "tokens", change, mode=0o600)


def _key(ref: ProcessorRef, env: str) -> str:
    return f"{ref} {env}"
