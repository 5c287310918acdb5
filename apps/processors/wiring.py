"""The composition root: settings → adapters, state, storage. The only importer of adapters."""

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from apps.processors.state import LocalState
from apps.settings import Settings
from apps.storage import select
from apps.storage.base import StorageBackend

if TYPE_CHECKING:
    from apps.processors.adapters.base import (
        BuildRequest,
        Engine,
        ImageBuilder,
        ImagePusher,
        ImageRegistry,
        Progress,
        Rebuilder,
    )
    from apps.processors.adapters.target import Target
    from apps.processors.modal_state import ModalState
    from apps.processors.proving import Inventory, ProvenanceSource, Prover
    from apps.processors.spec import ProcessorSpec


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


def rebuilder(settings: Settings) -> "Rebuilder | None":
    """What builds images without cache; None on an engine without images."""
    if settings.engine == "process":
        return None
    from apps.processors.adapters.buildx import BuildxBuilder

    return BuildxBuilder(settings.environment, settings.build_contexts, settings.build_secrets, settings.caller)


def image_registry(settings: Settings) -> "ImageRegistry":
    """What asks image registries, with the logins of Docker's own configuration."""
    from apps.processors.adapters.oci_registry import OciRegistry

    return OciRegistry(settings.environment)


def pusher(settings: Settings) -> "ImagePusher":
    """What sends images of the Docker Engine."""
    from apps.processors.adapters.docker_push import DockerPusher

    return DockerPusher(settings.environment)


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


def prover(
    settings: Settings, spec: "ProcessorSpec", registry: "ImageRegistry", *, progress: "Progress", detail: "Progress"
) -> "Prover":
    """What stores beside the images of `spec` how they were built and what is in them."""
    from apps.processors import images
    from apps.processors.proving import Prover
    from apps.processors.reference import PLATFORMS

    def request() -> "BuildRequest":
        # `build` has told already what is to be told.
        return images.request(spec, PLATFORMS, settings=settings, builder=builder(settings), progress=lambda _: None)

    return Prover(
        source=provenance_source(settings),
        inventory=inventory(settings),
        request=cache(request),
        registry=registry,
        progress=progress,
        detail=detail,
    )


def target(environment: str) -> "Target":
    """The environment of that name on Modal."""
    from apps.processors.adapters.modal import ModalTarget

    return ModalTarget(environment)


def modal_state(settings: Settings) -> "ModalState":
    from apps.processors.modal_state import ModalState

    return ModalState(settings.state)


def storage(settings: Settings) -> StorageBackend:
    if settings.bucket is None:
        return select.backend(settings.storage_backend, artifacts_root=settings.artifacts_root)
    from apps.storage.bucket import Local

    return select.backend(
        settings.storage_backend,
        artifacts_root=settings.artifacts_root,
        bucket=settings.bucket,
        local=Local(settings.state / "spool", state(settings)),
    )
