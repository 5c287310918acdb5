"""Bring a container up: on a port that is free, until it answers."""

import http.client
import socket
import time
from dataclasses import replace

from apps.errors import EngineFailed, RuntimeFailed
from apps.processors.adapters.base import Container, Engine, Launch, NameTaken, PortTaken
from apps.processors.containers import GRACE_S, Warn, last_words, of_ref
from apps.processors.probing import PROBE_TIMEOUT_S, probe
from apps.processors.reference import ProcessorRef
from apps.processors.state import LocalState


def launch(wanted: Launch, engine: Engine, state: LocalState, warn: Warn) -> Container:
    """Launch on the port of `wanted`; where something else has that, on a new one, which is kept from then on.

    Raises EngineFailed (also when a container of that name exists that is not ours) and what `Engine.launch` does.
    """
    for _ in range(5):
        try:
            return engine.launch(wanted)
        except PortTaken:
            port = state.allocate_port(wanted.ref, usable=is_free, replace=True)
            warn(f"port {wanted.host_port} is taken by something else; {wanted.ref} has port {port} from now on")
            wanted = replace(wanted, host_port=port)
        except NameTaken as exc:
            _make_way(wanted, engine, exc)
    raise EngineFailed(f"no free port for {wanted.ref} after five tries", hint="try again")


def _make_way(wanted: Launch, engine: Engine, taken: NameTaken) -> None:
    """Remove what has the name: a start that was killed had sent its launch, which is carried out only now."""
    late = of_ref(engine, wanted.ref)
    if not late:
        raise EngineFailed(
            f"a container named {wanted.name} exists that is not ours", hint=f"docker rm -f {wanted.name}"
        ) from taken
    for container in late:
        engine.stop(container, grace_s=GRACE_S)
        engine.remove(container)


def is_free(port: int) -> bool:
    """Whether nothing listens on `port` of 127.0.0.1."""
    with socket.socket() as probe_socket:
        try:
            probe_socket.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def lets_in(port: int, token: str | None) -> bool:
    """Whether the runtime on `port` takes this run token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token or ''}"})
        return connection.getresponse().status != http.HTTPStatus.UNAUTHORIZED
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def await_ready(container: Container, engine: Engine, ref: ProcessorRef, *, timeout_s: float) -> None:
    """Return when it is ready. Raises RuntimeFailed: it ended, or was not ready within `timeout_s`."""
    assert container.host_port is not None  # noqa: S101  just published
    deadline, pause_s, looked = time.monotonic() + timeout_s, 0.01, 0.0
    while True:
        if probe(container.host_port) == "ready":
            return
        now = time.monotonic()
        if now - looked > 0.25:  # asking the engine costs more than asking the port
            looked = now
            alive = next((each for each in engine.containers() if each.id == container.id), None)
            if alive is None or alive.state != "running":
                raise _ended(alive or container, engine, ref, f"{ref} ended before it was ready")
        if now > deadline:
            raise _ended(container, engine, ref, f"{ref} was not ready within {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.2)


def _ended(container: Container, engine: Engine, ref: ProcessorRef, message: str) -> RuntimeFailed:
    """The error for a container that ended or never came up, with its last words."""
    return RuntimeFailed(message, hint=f"localctl logs --ref {ref}", details=last_words(container, engine))
