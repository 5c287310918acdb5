"""The composition root: settings → adapters, state, storage. The only importer of adapters."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from apps.processors.state import LocalState
from apps.settings import Settings
from apps.storage import select
from apps.storage.base import StorageBackend

if TYPE_CHECKING:
    from apps.processors.adapters.base import Engine, ImageBuilder


def root_id(root: Path) -> str:
    """8 hex digits that tell this checkout's containers from another's."""
    return hashlib.sha256(str(root).encode()).hexdigest()[:8]


def state(settings: Settings) -> LocalState:
    return LocalState(settings.state)


def engine(settings: Settings, name: str | None = None) -> "Engine":
    """The engine called `name`, by default the one that LOCAL_ENGINE names."""
    if (name or settings.engine) == "process":
        from apps.processors.adapters.host import HostEngine

        return HostEngine(settings.state, root_id(settings.root))
    from apps.processors.adapters.docker import DockerEngine

    return DockerEngine(root_id(settings.root), environment=settings.environment)


def engines(settings: Settings) -> "list[Engine]":
    """The chosen engine, then every other that this checkout has something on."""
    used = {record.engine for record in state(settings).containers().values()}
    if (settings.state / "processes").is_dir():
        used.add("process")
    return [engine(settings, name) for name in (settings.engine, *sorted(used - {settings.engine}))]


def builder(settings: Settings) -> "ImageBuilder":
    """What makes images for the chosen engine."""
    if settings.engine == "process":
        from apps.processors.adapters.host_build import HostBuilder

        return HostBuilder(settings.state, settings.root, settings.environment)
    from apps.processors.adapters.buildx import BuildxBuilder

    return BuildxBuilder(settings.environment, settings.build_contexts, settings.build_secrets, settings.caller)


def storage(settings: Settings) -> StorageBackend:
    return select.backend(settings.storage_backend, artifacts_root=settings.artifacts_root)
