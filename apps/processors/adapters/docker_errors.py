"""What a Docker Engine's failures mean. The only reader of its prose: dockerd, containerd and podman differ in it."""

import re
from collections.abc import Iterator
from typing import Final

from apps.errors import (
    EngineFailed,
    ImageNotFound,
    ImagePullFailed,
    ImageRegistryFailed,
    OperationError,
    PushFailed,
    RuntimeFailed,
    Unauthorized,
)
from apps.processors.adapters.base import NameTaken, PortTaken
from apps.processors.adapters.docker_endpoint import unreachable
from apps.processors.reference import ImageReference

_PORT_TAKEN: Final = ("port is already allocated", "address already in use", "ports are not available")
_NO_IMAGE: Final = (
    "no such image",
    "image not known",
    "does not match the specified platform",
    "does not provide the specified platform",
)
_BAD_COMMAND: Final = ("oci runtime", "failed to create task", "failed to create shim", "executable file not found")
_NETWORK: Final = ("dial tcp", "no such host", "connection refused", "timeout", "tls:", "x509", "toomanyrequests")
_REFUSED: Final = ("unauthorized", "authorization failed", "authentication required", "denied", "no basic auth", "403")
_BROKEN_OFF: Final = ("eof", "connection reset", "broken pipe", "closed network connection", "no route to host")
_READ_ONLY: Final = ("405", "method not allowed", "unsupported", "read-only", "readonly")
_FULL: Final = ("no space left", "507", "insufficient storage", "quota", "disk full")
_DOWN: Final = ("502 ", "503 ", "504 ")
_BROKEN: Final = ("500 ", "internal server error")
_URL: Final = re.compile(r"https?://\S+|sha256:[0-9a-f]+")
_QUERY: Final = re.compile(r"(https?://[^\s\"?]+)\?[^\s\"]*?(?=:?[\s\"]|$)")
_NO_MANIFEST: Final = ("not found", "unknown", "no match for platform", "no matching manifest", "does not exist")


class Gone(EngineFailed):
    """The container or volume is not there any more."""


class Conflict(EngineFailed):
    """The engine is at it already, or something else uses it."""


def translate(exc: Exception, what: str, url: str) -> Exception:
    """The error of ours for what the SDK raised.

    Args:
        what: what it was to do: an infinitive and its object.
        url: where the engine listens.
    """
    import docker.errors
    import requests.exceptions

    if isinstance(exc, requests.exceptions.Timeout):
        return EngineFailed(f"the Docker Engine at {url} took too long to {what}", hint="see what it does: docker info")
    for cause in causes(exc):
        if isinstance(cause, OSError) and not isinstance(cause, requests.exceptions.RequestException):
            return unreachable(url, cause)
    if isinstance(exc, docker.errors.APIError):
        return _of_answer(exc.status_code or 0, str(exc.explanation or exc.args[0]), what)
    return EngineFailed(f"docker could not {what}: {exc}")


def causes(exc: BaseException) -> Iterator[BaseException]:
    """What `exc` wraps, by `raise … from` or, as requests and urllib3 do, as an argument."""
    for inner in (exc.__cause__, *exc.args):
        if isinstance(inner, BaseException):
            yield inner
            yield from causes(inner)


def _of_answer(status: int, text: str, what: str) -> Exception:
    prose = text.lower()
    if "name" in prose and "already in use by" in prose:
        return NameTaken(text)
    if any(words in prose for words in _PORT_TAKEN):
        return PortTaken(text)
    if any(words in prose for words in _NO_IMAGE):
        return ImageNotFound(f"docker could not {what}: {text}", hint="make it: processorctl build --ref REF")
    message = f"docker could not {what}: {text}"
    if status == 404:
        return Gone(message)
    if status == 409:
        return Conflict(message)
    if "no space left on device" in prose:
        return EngineFailed(message, hint="see what takes the space: docker system df")
    if "could not select device driver" in prose:
        return EngineFailed(message, hint="this machine has no GPU that Docker can use: set runtime.gpu to null")
    if any(words in prose for words in _BAD_COMMAND):
        return RuntimeFailed(message, hint="the image's command must be: python -m processor_runtime")
    return EngineFailed(message)


def pull_failure(text: str, image: ImageReference) -> OperationError:
    """The error for what the engine said of a pull, in its answer or amid the progress."""
    prose, host = text.lower(), image.repository.partition("/")[0]
    message = f"can't pull {image}: {text}"
    if "no space left on device" in prose:
        return EngineFailed(message, hint="see what takes the space: docker system df")
    if "server gave http response to https client" in prose:
        return ImagePullFailed(message, hint=f"name {host} in insecure-registries of the engine's daemon.json")
    if any(words in prose for words in _NETWORK):
        return ImagePullFailed(message, hint=f"is {host} reachable from here? try: docker pull {image}")
    if any(words in prose for words in _REFUSED):
        return Unauthorized(message, hint=f"docker login {host}")
    if any(words in prose for words in _NO_MANIFEST):
        return ImageNotFound(message, hint=f"see what is there: docker buildx imagetools inspect {image.repository}")
    return ImagePullFailed(message, hint=f"try: docker pull {image}")


def push_failure(text: str, repository: str) -> OperationError:
    """The error for what the engine said of a push, in its answer or amid the progress."""
    host = repository.partition("/")[0]
    prose = _URL.sub("", text.lower())  # a digest may hold 405
    message = f"can't push to {repository}: {_QUERY.sub(_WITHOUT_QUERY, text)}"
    if any(words in prose for words in _FULL):
        return PushFailed(message, hint=f"make room at {host}; {_AGAIN}")
    if "server gave http response to https client" in prose:
        return ImageRegistryFailed(message, hint=f"name {host} in insecure-registries of the engine's daemon.json")
    if "x509" in prose:
        hint = f"give the engine the registry's CA: /etc/docker/certs.d/{host}/ca.crt"
        return ImageRegistryFailed(message, hint=hint)
    if any(words in prose for words in (*_NETWORK, *_BROKEN_OFF, *_DOWN)):
        return ImageRegistryFailed(message, hint=f"is {host} reachable from the engine, and well? {_AGAIN}")
    if any(words in prose for words in _REFUSED):
        return Unauthorized(message, hint=f"docker login {host}")
    if any(words in prose for words in _READ_ONLY):
        return PushFailed(message, hint=f"{host} takes no pushes: another place is PROCESSOR_REPOSITORY_PREFIX")
    if any(words in prose for words in _BROKEN):
        return PushFailed(message, hint=f"has {host} room left? see its log; {_AGAIN}")
    return PushFailed(message, hint=_AGAIN)


_AGAIN: Final = "the same command again sends only what is missing"
_WITHOUT_QUERY: Final = r"\1"  # an upload's query may be as good as a password
