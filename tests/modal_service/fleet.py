"""The containers of one server: started on demand, replaced one deployment by the next, stopped with a grace period."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from docker.errors import DockerException
from modal_proto import api_pb2 as pb

from tests.modal_service.containers import Containers
from tests.modal_service.faults import Faults
from tests.modal_service.images import Images
from tests.modal_service.logs import SYSTEM, Logs
from tests.modal_service.output import Output
from tests.modal_service.secrets import Secrets
from tests.modal_service.workspace import App, Definition, new_id

SCALEDOWN_S = 60.0  # the service's, where a server names none
_LISTENING_S = 0.1
_SILENT_S = 5.0
_TURN_S = 0.1
_RETRY_S, _RETRY_MOST_S = 0.5, 15.0


@dataclass
class Replica:
    """One container of a server. STARTING, SERVING, DRAINING or GONE."""

    task_id: str
    definition: Definition
    generation: int
    enqueued_at: float = field(default_factory=time.time)
    started_at: float = 0.0
    state: str = "STARTING"
    container_id: str = ""
    host_port: int = 0
    connections: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    failure: str = ""
    silent: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its last line is in the logs."""

    def taken(self, change: int) -> None:
        """Count a connection in (1) or out (-1)."""
        self.connections += change
        self.idle_since = time.monotonic()


@dataclass
class Parts:
    """What fleets share."""

    containers: Containers
    images: Images
    secrets: Secrets
    logs: Logs
    faults: Faults


class Fleet:
    """`deploy` says what shall run, `wake` that somebody asked; `turn`, called again and again, does the rest."""

    def __init__(self, app: App, parts: Parts, held: Callable[[Replica], int]) -> None:
        """`held`: how many live sessions a container has."""
        self.app, self._parts, self._held = app, parts, held
        self.definition: Definition | None = None
        self.replicas: list[Replica] = []
        self._generation = 0
        self._awake = False
        self._asked = True
        self._failures = 0  # of this deployment
        self._retry_at = 0.0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def deploy(self, definition: Definition) -> float:
        """From now on new containers are of `definition`, and replace those that run. Returns the moment."""
        self._generation += 1
        self._failures, self._asked = 0, True
        self.definition = definition
        return time.time()

    def wake(self) -> None:
        """Somebody asks for a container. After one that failed, only that brings another, and not at once."""
        self._awake = True
        if not self.serving and time.monotonic() > self._retry_at:
            self._asked = True

    @property
    def serving(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.state == "SERVING"]

    @property
    def running(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.state != "GONE"]

    def turn(self) -> None:
        """Start what is missing, drain what is outdated or idle."""
        if self.definition is None:
            return
        mine = [replica for replica in self.running if replica.generation == self._generation]
        mine = [replica for replica in mine if replica.state != "DRAINING"]
        others = [replica for replica in self.serving if replica.generation != self._generation]
        wanted = self._wanted(others)
        if self._asked:
            for _ in range(wanted - len(mine)):
                self._start(self.definition)
        enough = len([replica for replica in mine if replica.state == "SERVING"]) >= max(wanted, 1)
        if enough and not self._parts.faults.keep_old:
            for replica in others:
                self._drain(replica)
        self._scale_down(mine)

    def scale_to_zero(self) -> None:
        for replica in self.serving:
            self._drain(replica)
        self._awake = False

    async def rest(self) -> None:
        """Scale to zero, and wait for it."""
        self.scale_to_zero()
        await asyncio.gather(*self._tasks)

    async def stop(self, task_id: str, *, graceful: bool) -> None:
        """Stop one container, as `modal container stop` and the deployment strategy "recreate" do."""
        for replica in self.running:
            if replica.task_id == task_id and graceful:
                self._drain(replica)
            elif replica.task_id == task_id:
                await self._remove(replica, grace_s=1)

    async def close(self) -> None:
        """Stop all at once, what is being started too."""
        self.definition, self._closing = None, True
        for replica in self.running:
            replica.state = "DRAINING"
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(self._remove(replica, grace_s=1) for replica in self.running))

    def digest(self, replica: Replica) -> str:
        """Of the image that the container runs."""
        return self._parts.images.image(replica.definition.function.image_id).reference.partition("@")[2]

    def _wanted(self, others: list[Replica]) -> int:
        assert self.definition
        least = max(self.definition.data.autoscaler_settings.min_containers, 0)
        return max(least, self._parts.faults.replicas if self._awake else 0, 1 if self._awake or others else 0)

    def _scale_down(self, mine: list[Replica]) -> None:
        assert self.definition
        settings = self.definition.data.autoscaler_settings
        window_s = settings.scaledown_window or SCALEDOWN_S
        idle = [
            replica
            for replica in mine
            if replica.state == "SERVING" and not replica.connections and not self._held(replica)
        ]
        since = time.monotonic() - window_s
        if idle == mine and not settings.min_containers and mine and all(each.idle_since < since for each in mine):
            self.scale_to_zero()

    def _start(self, definition: Definition) -> None:
        replica = Replica(new_id("ta"), definition, self._generation)
        self.replicas.append(replica)
        self._task(self._run(replica))

    async def _run(self, replica: Replica) -> None:
        data = replica.definition.data
        output = Output(partial(self._log, replica), partial(self._ended, replica))
        try:
            image = self._parts.images.image(replica.definition.function.image_id)
            environment = self._environment(replica)
            container = await asyncio.to_thread(
                self._parts.containers.run,
                image.reference,
                port=data.http_config.port,
                environment=environment,
                labels={"theory.test.app": self.app.name, "theory.test.task": replica.task_id},
                said=output.said,
                ended=output.ended,
            )
        except (DockerException, KeyError) as exc:
            self._fail(replica, f"the container could not be created: {exc}")
            return
        replica.container_id, replica.host_port = container.id, container.host_port
        replica.started_at = time.time()
        if await self._listens(replica, data.http_config.startup_timeout or 30):
            replica.state, replica.idle_since = "SERVING", time.monotonic()
            return
        if replica.state == "STARTING":
            self._fail(replica, f"nothing listens on port {data.http_config.port}: the startup timeout is over")
        await self._remove(replica, grace_s=0)

    def _environment(self, replica: Replica) -> dict[str, str]:
        """The secrets' variables, and a few of those that the service sets. PORT is not among these.

        Raises KeyError where a secret is gone.
        """
        service = {
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": replica.task_id,
            "MODAL_IMAGE_ID": replica.definition.function.image_id,
            "MODAL_ENVIRONMENT": self.app.environment,
            "MODAL_REGION": "us-east-1",
        }
        return service | self._parts.secrets.environment(replica.definition.function.secret_ids)

    def _ended(self, replica: Replica, status: int) -> None:
        replica.silent.set()
        if replica.state in ("STARTING", "SERVING"):
            self._fail(replica, f"the container ended with exit status {status}")
            self._task(self._remove(replica, grace_s=0))

    def _fail(self, replica: Replica, failure: str) -> None:
        if replica.state == "STARTING" and replica.generation == self._generation:
            self._asked = False
            self._retry_at = time.monotonic() + min(_RETRY_S * 2**self._failures, _RETRY_MOST_S)
            self._failures += 1
        replica.state, replica.failure = "GONE", failure
        self._log(replica, f"Runner failed: {failure}\n", SYSTEM)

    def _log(self, replica: Replica, text: str, source: pb.FileDescriptor.ValueType) -> None:
        self._parts.logs.add(
            text,
            app_id=self.app.id,
            function_id=replica.definition.function_id,
            task_id=replica.task_id,
            source=source,
        )

    async def _listens(self, replica: Replica, timeout_s: float) -> bool:
        """Whether it comes to listen in time, and stays cold as long as a fault wants it."""
        faults = self._parts.faults
        never, cold_until = faults.never_listens, time.monotonic() + faults.cold_s
        deadline = max(time.monotonic() + timeout_s, cold_until + 1)
        while time.monotonic() < deadline and replica.state == "STARTING":
            if time.monotonic() >= cold_until and not never and await _open(replica.host_port):
                return replica.state == "STARTING"
            await asyncio.sleep(_LISTENING_S)
        return False

    def _drain(self, replica: Replica) -> None:
        if replica.state == "SERVING":
            replica.state = "DRAINING"
            self._task(self._end(replica))

    async def _end(self, replica: Replica) -> None:
        """Let requests in flight and sessions end, as long as the grace period is."""
        deadline = time.monotonic() + replica.definition.data.http_config.exit_grace_period
        while replica.connections or self._held(replica):
            if self._closing or time.monotonic() > deadline:
                break
            await asyncio.sleep(_TURN_S)
        await self._remove(replica, grace_s=5)

    async def _remove(self, replica: Replica, *, grace_s: float) -> None:
        if replica.state != "GONE":
            replica.state = "DRAINING"
        if replica.container_id:
            await asyncio.to_thread(self._parts.containers.stop, replica.container_id, grace_s=grace_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(replica.silent.wait(), _SILENT_S)
        replica.state = "GONE"

    def _task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _open(port: int) -> bool:
    """Whether somebody listens. The engine's own proxy accepts for a container that doesn't, and hangs up then."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        await asyncio.wait_for(reader.read(1), _LISTENING_S)
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        writer.close()
    return False
