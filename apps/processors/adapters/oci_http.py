"""HTTP to image registries: one request, bounded in time and size, that goes where it may."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3 import exceptions as wrong
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

from apps.errors import ImageRegistryFailed
from apps.processors.adapters import oci_network
from apps.processors.adapters.oci_faults import failure, late, origin
from apps.processors.adapters.oci_place import is_loopback

_PIECE: Final = 65536
_REDIRECTS: Final = 5
_MOVED: Final = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long we wait. The last word is `call_s`: for everything that one call of ours asks, repeats included."""

    connect_s: float = 10.0
    silence_s: float = 30.0
    call_s: float = 60.0
    backoff_s: float = 0.5
    """Before the first repeat; doubled before each further one."""
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; of several the last, but see `challenges`."""
    challenges: tuple[str, ...]
    """WWW-Authenticate, as often as it came."""
    body: bytes
    url: str
    """Who answered in the end, after redirects."""


_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class Http:
    """A client that takes proxies and trust from `environment`, nothing from this process's own."""

    def __init__(self, environment: Mapping[str, str], patience: Patience) -> None:
        self._environment, self._patience = environment, patience
        self._managers: dict[str, urllib3.PoolManager] = {}

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        limit_bytes: int,
        deadline: float,
    ) -> Answer:
        """Ask, follow redirects (credentials stay with the server they are for), and read the answer.

        Args:
            limit_bytes: of the answer's body.
            deadline: of `time.monotonic()`.

        Raises Broken, NoTls, Late, ImageRegistryFailed (anything else), ConfigurationError (proxy or CA settings).
        """
        for _ in range(_REDIRECTS):
            with _translating(url, deadline):
                answer = self._once(method, url, dict(headers), body, limit_bytes, deadline)
            if answer.status not in _MOVED or "location" not in answer.headers:
                return answer
            if answer.status < 307 and method not in ("GET", "HEAD"):
                return answer
            target = follow(url, answer.headers["location"])
            if origin(target) != origin(url):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise ImageRegistryFailed(f"{origin(url)} sends us round in circles", hint="ask who runs it")

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: bytes, limit_bytes: int, deadline: float
    ) -> Answer:
        patience, left_s = self._patience, deadline - time.monotonic()
        if left_s <= 0:
            raise late(url)
        if body or method in ("POST", "PUT"):
            headers["Content-Length"] = str(len(body))
        response = self._manager(url).urlopen(
            method,
            url,
            headers={"User-Agent": "processorctl", "Accept-Encoding": "identity", **headers},
            body=_pieces(body, url, deadline) if body else None,
            timeout=urllib3.Timeout(connect=min(patience.connect_s, left_s), read=min(patience.silence_s, left_s)),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        whole = False
        try:
            content = b"" if method == "HEAD" else _read(response, url, limit_bytes, deadline)
            whole = True
        finally:
            if whole:
                response.release_conn()
            else:
                response.close()
        named = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, named, tuple(response.headers.getlist("WWW-Authenticate")), content, url)

    def _manager(self, url: str) -> urllib3.PoolManager:
        base = origin(url)
        if base not in self._managers:
            made = _manager(self._environment, url)
            made.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
            self._managers[base] = made
        return self._managers[base]


def _manager(environment: Mapping[str, str], url: str) -> urllib3.PoolManager:
    context = oci_network.context(environment, urlsplit(url).netloc)
    proxy = oci_network.proxy(environment, url)
    if proxy is None:
        return urllib3.PoolManager(ssl_context=context)
    split = urlsplit(proxy)
    place = split.netloc.rpartition("@")[2]
    login = f"{unquote(split.username or '')}:{unquote(split.password or '')}" if "@" in split.netloc else None
    return urllib3.ProxyManager(
        f"{split.scheme}://{place}",
        proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
        proxy_ssl_context=oci_network.context(environment, place) if split.scheme == "https" else None,
        ssl_context=context,
    )


def follow(url: str, location: str) -> str:
    """The absolute form of a `Location` that `url` answered with. Raises ImageRegistryFailed for one we don't go to."""
    try:
        target = urljoin(url, location)
        split = urlsplit(target)
        sound = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ImageRegistryFailed(f"{origin(url)} sends us to no address of HTTP", hint="ask who runs it")
    if split.scheme == "http" and url.startswith("https:") and not is_loopback(split.hostname or ""):
        raise ImageRegistryFailed(
            f"{origin(url)} sends us to {origin(target)}, without TLS", hint="ask who runs it: its address is wrong"
        )
    return target


def _pieces(body: bytes, url: str, deadline: float) -> Iterator[bytes]:
    for start in range(0, len(body), _PIECE):
        if time.monotonic() > deadline:
            raise late(url)
        yield body[start : start + _PIECE]


def _read(response: Any, url: str, limit_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while piece := response.read1(_PIECE):
        content += piece
        if len(content) > limit_bytes:
            raise ImageRegistryFailed(
                f"{origin(url)} sends more than the {limit_bytes} bytes that this may have", hint="ask who runs it"
            )
        if time.monotonic() > deadline:
            raise late(url)
    return bytes(content)


@contextmanager
def _translating(url: str, deadline: float) -> Iterator[None]:
    reset = _deadline.set(deadline)
    try:
        yield
    except (wrong.HTTPError, OSError) as exc:
        raise failure(exc, url, deadline) from exc
    finally:
        _deadline.reset(reset)


class _Plain(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as in urllib3's own
        with _hanging_up_late(self.sock):
            return super().getresponse()


class _Secure(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.is_verified = True  # or it is loopback, where oci_network wants no proof and urllib3 would warn

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as in urllib3's own
        with _hanging_up_late(self.sock):
            return super().getresponse()


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


@contextmanager
def _hanging_up_late(connection: socket.socket) -> Iterator[None]:
    """Bound the answer's head as a whole: a server that sends it byte by byte never runs into a socket's timeout."""

    def hang_up() -> None:
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS's own would take its state from the reader

    timer = threading.Timer(max(0.0, min(_deadline.get() - time.monotonic(), threading.TIMEOUT_MAX)), hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
