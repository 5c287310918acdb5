"""What a test can have go wrong. All of it can be changed while the peer runs."""

import asyncio
import fnmatch
from collections import Counter
from dataclasses import dataclass, field, fields

from grpclib import GRPCError, Status

FALSIFIED, REMOVED = "falsified", "removed"


@dataclass
class Faults:
    """Every field's default is health. Names of RPCs may hold wildcards: `App*`."""

    unreachable: bool = False
    """Nobody listens for gRPC. The servers' URLs go on answering."""
    slow_s: float = 0.0
    """Each RPC waits that long first."""
    slow: str = "*"
    """Which RPCs do."""
    unavailable: str = ""
    """These RPCs answer UNAVAILABLE…"""
    unavailable_times: int = 0
    """…so many times each; 0: always."""
    denied: str = ""
    """These RPCs answer PERMISSION_DENIED."""
    cut_at: str = ""
    """At this RPC, before it does anything, the peer drops all connections and becomes unreachable."""
    cut_after: str = ""
    """The same after it did its work, before it answers."""
    build_failure: str = ""
    """Image builds fail with these words."""
    cold_s: float = 0.0
    """So long a container takes before it serves: 503 meanwhile."""
    never_listens: bool = False
    """No container that starts from now on is ever found to listen."""
    busy: bool = False
    """429 for everything but session control."""
    breaks: list[str] = field(default_factory=list)
    """A connection breaks before the first of these comes from a container, the next before the second, and so on."""
    replicas: int = 0
    """At least so many containers serve a server."""
    keep_old: bool = False
    """Containers of an earlier deployment go on serving beside the new ones: a rolling deployment, held half-way."""
    log_stream_s: float = 55.0
    """A stream of logs lasts no longer…"""
    log_stream_breaks: bool = False
    """…and ends with UNAVAILABLE, not politely."""
    log_backlog: bool = False
    """A new stream of logs begins with what there is already."""
    image_id: str = ""
    """"falsified" or "removed": what the service says the live image is."""
    recorded: str = ""
    """"falsified" or "removed": the app's tags, and the deployments' tags in the history."""
    reported: str = ""
    """"falsified" or "removed": the image's digest in what containers answer."""
    met: Counter[str] = field(default_factory=Counter)
    """How often an RPC met `unavailable`."""

    def change(self, changes: dict[str, object]) -> None:
        """Raises ValueError for a name that is no fault."""
        if unknown := changes.keys() - {each.name for each in fields(self)}:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        for name, value in changes.items():
            setattr(self, name, value)
        self.met.clear()

    def break_before(self, piece: bytes) -> bool:
        """Whether the connection shall break, once for each of `breaks`."""
        if not self.breaks or self.breaks[0].encode() not in piece:
            return False
        del self.breaks[0]
        return True

    async def before(self, rpc: str) -> None:
        """What befalls an RPC on arrival. Raises GRPCError."""
        if self.slow_s and fnmatch.fnmatch(rpc, self.slow):
            await asyncio.sleep(self.slow_s)
        if fnmatch.fnmatch(rpc, self.denied):
            raise GRPCError(Status.PERMISSION_DENIED, "this token may not do that in this workspace")
        if fnmatch.fnmatch(rpc, self.unavailable):
            self.met[rpc] += 1
            if not self.unavailable_times or self.met[rpc] <= self.unavailable_times:
                raise GRPCError(Status.UNAVAILABLE, "the service is unavailable at the moment")


def distorted(text: str, fault: str) -> str:
    """`text` as it is, turned around (what is legal stays legal), or nothing."""
    return {FALSIFIED: text[::-1], REMOVED: ""}.get(fault, text)
