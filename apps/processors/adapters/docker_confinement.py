"""What a processor's container may do, in the Docker Engine's words: nothing that it was not given."""

import io
import ipaddress
import socket
import tarfile
import threading
from collections.abc import Mapping
from typing import Any, Final

from apps.processors.adapters.base import Launch, Limits

MEMORY_HEADROOM_BYTES: Final = 256 * 1024**2
"""On top of the processor's limit, for supervisor, template and /tmp. The runtime itself holds its workers to
the limit, so that the kernel ends a worker, and the container goes on."""
PIDS_LIMIT: Final = 1024
TMP_MIB: Final = 64
NOBODY: Final = "65532:65532"
"""Whom an image runs as that names nobody, or root."""
SCRATCH: Final = "/scratch"
MAPPED: Final = ("minio.local", "host.docker.internal")
"""Names of this machine, or of what it calls so, that a container knows."""
_SCRATCH_FOLDER: Final = "work"
_CPU_PERIOD_US: Final = 100_000
_RESOLVE_S: Final = 1.0


def scratch_volume(name: str) -> str:
    """The volume of the container called `name`."""
    return f"{name}-scratch"


def scratch_folder() -> bytes:
    """What to unpack at SCRATCH before the start, as a tar: a folder in it that any user may write to.

    The volume itself belongs to root, and the image's user may be a name that only the image knows.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo(_SCRATCH_FOLDER)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return archive.getvalue()


def user(image_user: str) -> str:
    """Whom the container runs as: the image's own user, but never root."""
    name = image_user.partition(":")[0]
    is_root = name in ("", "root") or (name.isdecimal() and int(name) == 0)
    return NOBODY if is_root else image_user


def options(api: Any, launch: Launch, image_user: str) -> dict[str, Any]:
    """The keyword arguments of the SDK's `create_container`."""
    port = f"{launch.container_port}/tcp"
    return {
        "image": launch.image,
        "platform": str(launch.platform),
        "name": launch.name,
        "user": user(image_user),
        "environment": {
            **launch.environment,
            **past_proxies(launch.environment),
            "PORT": str(launch.container_port),
            "THEORY_BIND": "0.0.0.0",  # noqa: S104  the port is published on 127.0.0.1 alone
            "THEORY_SCRATCH": f"{SCRATCH}/{_SCRATCH_FOLDER}",
        },
        "labels": dict(launch.labels),
        "ports": [(launch.container_port, "tcp")],
        "stop_signal": "SIGTERM",
        "use_config_proxy": False,  # a proxy comes from the caller's environment, on every engine
        "host_config": api.create_host_config(
            port_bindings={port: ("127.0.0.1", launch.host_port)},
            **_confined(launch),
            **_limited(launch.limits),
        ),
    }


def _confined(launch: Launch) -> dict[str, Any]:
    from docker.types import LogConfig, Mount, Ulimit

    scratch = Mount(SCRATCH, scratch_volume(launch.name), type="volume", no_copy=True, labels=dict(launch.labels))
    return {
        "read_only": True,
        "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={TMP_MIB}m,mode=1777"},  # noqa: S108  the container's
        "mounts": [scratch],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],  # a core file would hold the secrets
        "extra_hosts": dict(zip(MAPPED, (address("minio.local"), "host-gateway"), strict=True)),
        "restart_policy": {"Name": "no"},
        "init": False,  # the runtime reaps
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "10m", "max-file": "2"}),
    }


def _limited(limits: Limits) -> dict[str, Any]:
    memory_bytes = limits.memory_bytes + MEMORY_HEADROOM_BYTES
    return {
        "pids_limit": PIDS_LIMIT,
        "mem_limit": memory_bytes,
        "memswap_limit": memory_bytes,  # memory and swap together: no swap
        # Not nano_cpus: the engine refuses more of those than the machine has.
        "cpu_period": _CPU_PERIOD_US,
        "cpu_quota": max(1000, round(limits.cpu * _CPU_PERIOD_US)),
        "device_requests": _gpus(limits.gpu) if limits.gpu else None,
    }


def _gpus(gpu: str) -> list[Any]:
    """`T4` is one GPU, `T4:2` two; which kind they are is this machine's affair."""
    from docker.types import DeviceRequest

    count = gpu.partition(":")[2]
    return [DeviceRequest(count=int(count) if count.isdecimal() else 1, capabilities=[["gpu"]])]


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY with the hosts that are mapped for a container: no proxy knows them. Empty where none is set."""
    if not any(environment.get(name) for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")):
        return {}
    names = [name for name in ("NO_PROXY", "no_proxy") if environment.get(name)] or ["NO_PROXY"]
    return {name: ",".join(filter(None, (environment.get(name), *MAPPED))) for name in names}


def address(host: str) -> str:
    """What this machine resolves `host` to; the host itself if that is loopback, or nothing within a second."""
    found: list[str] = []

    def resolve() -> None:
        try:
            found.extend(str(answer[4][0]) for answer in socket.getaddrinfo(host, None, socket.AF_INET))
        except OSError:
            return

    # A name in .local can mean five seconds of multicast, and getaddrinfo takes no timeout.
    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_RESOLVE_S)
    if not found or ipaddress.ip_address(found[0]).is_loopback:
        return "host-gateway"
    return found[0]
