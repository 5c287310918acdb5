"""What a container on this machine says of itself at its port."""

import http.client
import json
import time
from typing import Any, Final

from apps.processors.adapters.base import Progress

PROBE_TIMEOUT_S: Final = 2.0
DRAIN_S: Final = 10.0
"""What executions in a container that is about to be replaced get to end by themselves."""
_LOOK_S: Final = 0.1


def probe(port: int) -> str:
    """ready, busy, starting or unhealthy, as /readyz says; unknown when nothing answers there."""
    status, answer = _readyz(port)
    if status == 200:
        return "busy" if answer.get("state") == "busy" else "ready"
    if status is None:
        return "unknown"
    return "starting" if answer.get("state") == "starting" else "unhealthy"


def drain(port: int, *, progress: Progress) -> None:
    """Return when no execution is there any more, after DRAIN_S in any case: what is left then is cancelled."""
    deadline, said = time.monotonic() + DRAIN_S, False
    while (count := _readyz(port)[1].get("executions")) and time.monotonic() < deadline:
        if not said:
            progress(f"waiting up to {DRAIN_S:g} s for {count} executions to end")
            said = True
        time.sleep(_LOOK_S)


def _readyz(port: int) -> tuple[int | None, dict[str, Any]]:
    """Status and answer; no status when nothing answers, or what answers is no runtime."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        answer = json.loads(response.read(65536))
    except (OSError, http.client.HTTPException, ValueError):
        return None, {}
    finally:
        connection.close()
    return (response.status, answer) if isinstance(answer, dict) else (None, {})
