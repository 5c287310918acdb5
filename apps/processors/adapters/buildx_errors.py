"""What docker and BuildKit say in prose, as our errors, and how they read an image's name."""

import re
from collections.abc import Sequence
from typing import Final

from apps.errors import BuildFailed, EngineFailed, ImageRegistryFailed, OperationError
from apps.processors.adapters.base import BuildRequest
from apps.processors.reference import Platform
from apps.processors.withheld import familiar

LOG_LINES: Final = 30
"""Lines of a failed build that go into its error."""
INSTALL: Final = "install docker and docker-buildx, or build for the embedded engine: LOCAL_ENGINE=process"
IMAGE: Final = "docker-image://"


def no_engine(stderr: str) -> EngineFailed:
    if "permission denied" in stderr.lower():
        hint = "add yourself to the group of the socket (usermod -aG docker), or LOCAL_ENGINE=process"
        return EngineFailed("no permission to talk to the Docker Engine", hint=hint, details={"said": stderr.strip()})
    hint = "start Docker, or build for the embedded engine: LOCAL_ENGINE=process"
    return EngineFailed("the Docker Engine does not answer", hint=hint, details={"said": stderr.strip()})


def unresolved(reference: str, stderr: str) -> OperationError:
    said = (stderr.strip().splitlines() or [""])[-1].removeprefix("ERROR: ")
    if said.endswith(f"{reference}: not found"):
        return BuildFailed(f"the registry has no base image {reference}", hint="see the last FROM of the Dockerfile")
    return ImageRegistryFailed(f"the base image {reference} can't be resolved: {said}", hint=_mirror(reference))


def _mirror(name: str) -> str:
    return f"behind a mirror: PROCESSOR_BUILD_CONTEXTS={name}={IMAGE}<mirror>/{name}"


def translate(request: BuildRequest, platforms: tuple[Platform, ...], lines: Sequence[str]) -> OperationError:
    """The error for a build that failed, from the last lines that it wrote."""
    said = next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1] if lines else "")
    said = said.removeprefix("ERROR: ").removeprefix("failed to solve: ")
    said = re.sub(r'^process ".*" did not complete successfully: ', "", said)  # the step says which process
    step = next((line[3:].rstrip(":") for line in reversed(lines) if line.startswith(" > [")), None)
    where = f" at {step if len(step) <= 100 else step[:99] + '…'}" if step else ""
    # Several platforms: [linux/amd64 2/3] RUN …, or where amd64 works for arm64, [linux/amd64->arm64 2/3] RUN …
    named = re.match(r"\[linux/(?:\w+->)?(\w+) ", step or "")
    platform = f"linux/{named[1]}" if named else ",".join(map(str, platforms))
    details = {"platform": platform, "log": list(lines)[-LOG_LINES:]}
    if found := re.search(r"failed to resolve source metadata for (\S+): ", said):
        hint = _mirror(context_name(found[1]))
        return ImageRegistryFailed(f"{request.ref} for {platform}: {said}", hint=hint, details=details)
    if "Cannot connect to the Docker daemon" in said:
        return EngineFailed("the Docker Engine went away during the build", hint="docker info", details=details)
    hint = f"see the log above; by hand: docker build --platform {platform} -f {request.dockerfile} {request.context}"
    if any("exec format error" in line for line in lines):
        hint = (
            f"{platform} is not executed here: do the work in a stage FROM --platform=$BUILDPLATFORM, and COPY from it"
        )
    return BuildFailed(f"{request.ref} did not build for {platform}{where}: {said}", hint=hint, details=details)


def context_name(name: str) -> str:
    """An image name as BuildKit compares it with those of build contexts: `python`, not docker.io/library/python."""
    return familiar(name).removesuffix(":latest")
