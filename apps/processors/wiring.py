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
    from apps.processors.proving import Inventory, ProvenanceSource


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


def provenance_source(settings: Settings) -> "ProvenanceSource":
    """What tells how an image was built: the same BuildKit that built it."""
    from apps.processors.adapters.buildx import BuildxBuilder
    from apps.processors.adapters.buildx_provenance import BuildxProvenance

    builder = BuildxBuilder(settings.environment, settings.build_contexts, settings.build_secrets, settings.caller)
    return BuildxProvenance(builder)


def inventory(settings: Settings) -> "Inventory":
    """What tells what is in an image of the Docker Engine."""
    from apps.processors.adapters.sbom import DockerInventory

    return DockerInventory(settings.environment)


def storage(settings: Settings) -> StorageBackend:
    return select.backend(settings.storage_backend, artifacts_root=settings.artifacts_root)
