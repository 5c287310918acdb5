"""One deployment on Modal: a Server whose containers are started by the image itself, nothing added to it."""

import asyncio
import contextlib
import math
from typing import Any, Final

from apps.errors import ConfigurationError, ImagePullFailed, ModalFailed
from apps.processors.adapters import modal_rpc
from apps.processors.adapters.base import Progress
from apps.processors.adapters.modal_line import CONTROL_S, Line, words
from apps.processors.adapters.target import Plan, Unavailable

SERVER: Final = "Server"
"""What the one thing in each of our apps is called."""
BUILDER: Final = "2025.06"
"""The oldest image builder that takes an image as it is; older ones install Python packages into it."""
LOG_LINES: Final = 20
_SAY_S: Final = 10
_DISK_GB: Final = 500.0
"""Scratch space that every container has without asking: Modal gives 512 GiB, and less can't be asked for."""


def deploy(line: Line, plan: Plan, *, timeout_s: float, progress: Progress) -> None:
    """As Target.deploy."""
    from modal.exception import ImageBuildError

    failed: list[ImageBuildError] = []

    async def work() -> None:
        app, image = _app(line, plan)
        ticking = asyncio.create_task(_tick(plan, progress))
        try:
            await app.deploy.aio(environment_name=line.environment, tag=plan.label, strategy="rolling")
        except ImageBuildError as exc:  # asked here: the words of the build are on the same line
            failed.append(exc)
            return
        finally:
            ticking.cancel()
        # By this name a later question finds the image of this digest, without having it built again.
        await image.publish.aio(name_of(plan.app, plan.image.digest), environment_name=line.environment)

    progress(f"deploying {plan.image} as {plan.app}; Modal fetches an image it does not have")
    with contextlib.chdir(plan.folder):  # where the SDK asks git for the revision that the history shows
        line.ask(work, timeout_s=timeout_s, doing=f"deploy {plan.app}")
    if failed:
        raise ImagePullFailed(
            f"Modal could not fetch {plan.image}: {words(failed[0])}",
            hint="for a private image set image.pull_secret in registry.yaml to a Modal secret with its credentials"
            if plan.pull_secret is None
            else f"look at the Modal secret {plan.pull_secret}, and at details.log",
            details={"log": _build_log(line, str(failed[0].image_id or ""))},
        ) from failed[0]


async def _tick(plan: Plan, progress: Progress) -> None:
    """A line now and then: a large image takes minutes to fetch."""
    took_s = 0
    while True:
        await asyncio.sleep(_SAY_S)
        took_s += _SAY_S
        progress(f"deploying {plan.app} since {took_s} s")


def name_of(app: str, digest: str) -> str:
    """What the image of a manifest digest is published as."""
    return f"{app}:{digest.removeprefix('sha256:')}"


def _app(line: Line, plan: Plan) -> tuple[Any, Any]:
    import modal

    app = modal.App(plan.app, tags=dict(plan.tags), include_source=False)
    pull = modal.Secret.from_name(plan.pull_secret, environment_name=line.environment) if plan.pull_secret else None
    image = modal.Image.from_registry(str(plan.image), secret=pull)
    kind, sessioned = _kind()
    app.server(
        name=SERVER,
        image=image,
        port=plan.port,
        env=dict(plan.environment),
        secrets=[modal.Secret.from_name(plan.secret, environment_name=line.environment)],
        cpu=plan.cpu,
        memory=plan.memory_mib,
        gpu=plan.gpu,
        ephemeral_disk=math.ceil(plan.scratch_gb * 1024) if plan.scratch_gb > _DISK_GB else None,
        target_concurrency=plan.concurrency,
        max_concurrency=2 * plan.concurrency + 2,  # who waits in the processor's own queue, or comes back, gets in
        max_containers=None if sessioned else 1,  # without sessions a client that comes back might meet another one
        startup_timeout=plan.startup_s,
        exit_grace_period=plan.grace_s,
        include_source=False,
    )(kind)
    return app, image


def _kind() -> tuple[Any, bool]:
    """What makes the SDK leave an image's start alone, and whether it can keep a client on one container."""
    import modal

    try:
        from modal._server import _DirectServerCls as kind
    except ImportError as exc:
        raise ConfigurationError(
            f"Modal's SDK {modal.__version__} can't deploy an image as it is", hint="pip install modal==1.6.4"
        ) from exc
    sessioned = getattr(modal, "sessioned", None) or _sessioned()
    return (kind, False) if sessioned is None else (sessioned()(kind), True)


def _sessioned() -> Any:
    try:
        from modal._partial_function import _sessioned as sessioned
    except ImportError:
        return None
    return sessioned


def refuse_old_builder(line: Line) -> None:
    """Raises ConfigurationError when images would be changed on their way: their digest would prove nothing."""

    async def ask() -> str:
        from modal.config import config

        return str(config.get("image_builder_version") or await modal_rpc.image_builder(line.environment))

    try:
        version = line.ask(ask, timeout_s=CONTROL_S, doing="tell its image builder")
    except Unavailable:
        return  # what is deployed is asked for its digest anyway
    if version and version != "PREVIEW" and version < BUILDER:
        raise ConfigurationError(
            f"the image builder {version} of Modal's environment {line.environment} adds packages to images",
            hint=f"set it to {BUILDER} or later in the environment's settings; unset MODAL_IMAGE_BUILDER_VERSION",
        )


def _build_log(line: Line, image_id: str) -> list[str]:
    async def ask() -> list[str]:
        import modal

        image = modal.Image.from_id(image_id)
        return [entry.message.rstrip("\n") async for entry in image.logs.tail.aio(LOG_LINES)]

    try:
        return line.ask(ask, timeout_s=CONTROL_S, doing="tell the log of the image") if image_id else []
    except ModalFailed:
        return []
