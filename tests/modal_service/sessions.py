"""Sticky sessions: a token for one container, good until nobody used it for a while."""

import secrets
import time
from dataclasses import dataclass

from tests.modal_service.fleet import Replica


@dataclass
class Session:
    id: str
    token: str
    replica: Replica
    idle_timeout_s: float
    connections: int = 0
    idle_since: float = 0.0

    @property
    def live(self) -> bool:
        rested_s = time.monotonic() - self.idle_since
        return self.replica.state != "GONE" and (self.connections > 0 or rested_s < self.idle_timeout_s)

    def taken(self, change: int) -> None:
        """Count a connection in (1) or out (-1)."""
        self.connections += change
        self.idle_since = time.monotonic()


class Sessions:
    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._answered: dict[str, Session] = {}

    def start(self, replica: Replica, *, idle_timeout_s: float, key: str) -> Session:
        """The same `key` gets the same session: a request that is sent again starts no second one."""
        known = self._answered.get(key)
        if known and known.live:
            return known
        made = Session(f"se-{secrets.token_hex(11)}", secrets.token_urlsafe(32), replica, idle_timeout_s)
        made.idle_since = time.monotonic()
        self._sessions[made.token] = made
        if key:
            self._answered[key] = made
        return made

    def find(self, token: str) -> Session | None:
        session = self._sessions.get(token)
        return session if session and session.live else None

    def end(self, token: str) -> bool:
        """Whether there was one."""
        return self._sessions.pop(token, None) is not None

    def held(self, replica: Replica) -> int:
        """How many live sessions the container has."""
        return sum(1 for each in self._sessions.values() if each.replica is replica and each.live)
