"""What it means that a request to an image registry failed before there was an answer."""

import ssl
import time
from urllib.parse import urlsplit

from urllib3 import exceptions as wrong

from apps.errors import ImageRegistryFailed, OperationError


class Broken(ImageRegistryFailed):
    """The connection broke off: the same request again may do."""


class NoTls(ImageRegistryFailed):
    """What answers does not speak TLS."""


class Late(ImageRegistryFailed):
    """It did not answer, or not in full, in the time that it had."""


def origin(url: str) -> str:
    """scheme://host:port of `url`: what a message may show of it. Paths and queries hold signatures."""
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc.rpartition('@')[2]}"


def failure(exc: Exception, url: str, deadline: float) -> OperationError:
    """The error of ours for what urllib3 or a socket raised while `url` was asked. No message holds a path or query."""
    host = urlsplit(url).hostname or ""
    cause = _innermost(exc)
    if time.monotonic() >= deadline:
        return late(url)
    if isinstance(exc, wrong.ProxyError):
        return ImageRegistryFailed(
            f"the proxy to {origin(url)} does not let us through: {_words(cause)}",
            hint="check HTTPS_PROXY and NO_PROXY",
        )
    if isinstance(exc, wrong.NameResolutionError):
        return ImageRegistryFailed(f"there is no host {host!r}", hint="check the name, and the network")
    if isinstance(exc, wrong.NewConnectionError):  # which urllib3 counts among the timeouts
        return ImageRegistryFailed(f"nothing answers at {origin(url)}: {_words(cause)}", hint="is it running there?")
    if isinstance(exc, wrong.TimeoutError) or isinstance(cause, TimeoutError):
        return late(url)
    if isinstance(exc, wrong.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _of_tls(cause, url)
    return Broken(f"the connection to {origin(url)} broke off: {_words(cause)}", hint="try again")


def _of_tls(cause: BaseException, url: str) -> OperationError:
    netloc = urlsplit(url).netloc
    said = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or type(cause).__name__
    if getattr(cause, "verify_message", ""):
        return ImageRegistryFailed(
            f"the certificate of {origin(url)} is not to be trusted: {said}",
            hint=f"put its authority's certificate in /etc/docker/certs.d/{netloc}/ca.crt, or name it: SSL_CERT_FILE",
        )
    return NoTls(f"{origin(url)} does not speak TLS: {said}", hint="a registry without TLS works on localhost alone")


def _innermost(exc: BaseException) -> BaseException:
    """The exception that urllib3 wrapped: by `from`, as an argument, or as `original_error`."""
    inner: list[object] = [getattr(exc, "original_error", None), *exc.args, exc.__cause__, exc.__context__]
    for each in inner:
        if isinstance(each, BaseException) and each is not exc:
            return _innermost(each)
    return exc


def _words(cause: BaseException) -> str:
    """Without what urllib3 adds: its messages hold whole URLs."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__ if isinstance(cause, wrong.HTTPError) else str(cause) or type(cause).__name__


def late(url: str) -> OperationError:
    """What it is when `url` takes too long."""
    return Late(f"{origin(url)} did not answer in time", hint="is it overloaded, or the network slow? try again later")
