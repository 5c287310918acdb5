"""One call to a registry: its requests share a deadline, the way in, and the repeats that may help."""

import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote

from apps.errors import OperationError
from apps.processors.adapters.oci_auth import TOKEN_LIMIT_BYTES, Keys
from apps.processors.adapters.oci_errors import PASSING, is_full, refusal
from apps.processors.adapters.oci_faults import Broken, origin
from apps.processors.adapters.oci_http import Answer, Http, Patience
from apps.processors.adapters.oci_place import Place

DOCUMENT_LIMIT_BYTES: Final = 4 * 1024**2
"""Of a manifest or an index: what the distribution spec asks registries to take."""
_LONGEST_WAIT_S: Final = 10.0


class Session:
    """Requests about one repository. Made for one call, and not used after it.

    Args:
        base: scheme://host[:port] of the registry.
        deadline: of `time.monotonic()`.
    """

    def __init__(self, http: Http, keys: Keys, place: Place, base: str, patience: Patience, deadline: float) -> None:
        self.place = place
        self._http, self._keys, self._base = http, keys, base
        self._patience, self._deadline = patience, deadline

    def url(self, rest: str) -> str:
        """The address of something of the repository, e.g. `manifests/latest`."""
        return f"{self._base}/v2/{quote(self.place.path)}/{rest}"

    @property
    def root(self) -> str:
        """The address that every registry answers at, after a login where it wants one."""
        return f"{self._base}/v2/"

    def get(self, rest: str, *, accept: str = "*/*", limit_bytes: int = DOCUMENT_LIMIT_BYTES) -> Answer:
        """Ask for something of the repository, or for a whole address."""
        url = rest if "://" in rest else self.url(rest)
        return self.persist(lambda: self.once("GET", url, {"Accept": accept}, limit_bytes=limit_bytes))

    def once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        body: bytes = b"",
        limit_bytes: int = DOCUMENT_LIMIT_BYTES,
    ) -> Answer:
        """Ask, with a new Authorization when the one we had (or none) does not do. Raises what `Http.send` does."""
        write = method not in ("GET", "HEAD")
        known = self._keys.header(self.place)
        answer = self._send(method, url, headers or {}, known, body, limit_bytes)
        if answer.status != 401:
            return answer
        renewed = self._keys.renew(self.place, answer, write=write, ask=self._ask)
        return self._send(method, url, headers or {}, renewed, body, limit_bytes) if renewed else answer

    def persist(self, attempt: Callable[[], Answer]) -> Answer:
        """Repeat `attempt` while the registry is overloaded or the connection breaks off: a few times, ever slower.

        `attempt` must be harmless to repeat. Returns its last answer; raises its last error.
        """
        for repeat in range(self._patience.repeats):
            pause_s = self._patience.backoff_s * 2**repeat
            try:
                answer = attempt()
            except Broken:
                if self._is_over(pause_s):
                    raise
            else:
                pause_s = max(pause_s, _retry_after_s(answer))
                if answer.status not in PASSING or is_full(answer) or self._is_over(pause_s):
                    return answer
            time.sleep(pause_s)
        return attempt()

    def _is_over(self, pause_s: float) -> bool:
        return time.monotonic() + pause_s >= self._deadline

    def refused(self, answer: Answer, doing: str, *, write: bool) -> OperationError:
        """The error that `answer` means."""
        has_login = answer.status in (401, 403) and self._keys.has_login(self.place)
        return refusal(answer, self.place, doing, write=write, has_login=has_login)

    def _ask(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """A request to the token server."""
        return self.persist(lambda: self._send(method, url, headers, None, body, TOKEN_LIMIT_BYTES))

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], authorization: str | None, body: bytes, limit: int
    ) -> Answer:
        # An upload may go on at another server, which has no business with our login.
        ours = authorization and origin(url) == self._base
        sent = {**headers, "Authorization": authorization} if authorization and ours else headers
        return self._http.send(method, url, headers=sent, body=body, limit_bytes=limit, deadline=self._deadline)


def _retry_after_s(answer: Answer) -> float:
    seconds = answer.headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_WAIT_S) if seconds.isascii() and seconds.isdigit() else 0.0
