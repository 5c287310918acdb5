"""Where an image's name points: which registry, which repository there. Pure parsing, as Docker does it."""

import ipaddress
from dataclasses import dataclass
from typing import Final, Self

from apps.processors.reference import names_a_host

DOCKER_HUB: Final = "docker.io"
_HUB_API: Final = "registry-1.docker.io"
_HUB_LOGIN: Final = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class Place:
    """A repository of a registry."""

    host: str
    """host[:port], docker.io for Docker Hub."""
    path: str

    @classmethod
    def parse(cls, repository: str) -> Self:
        """From an image's name without tag and digest, e.g. `ghcr.io/org/image`, `org/image`, `python`.

        Source: https://pkg.go.dev/github.com/distribution/reference#ParseNormalizedNamed
        """
        first, slash, rest = repository.partition("/")
        if not slash or not names_a_host(first):
            first, rest = DOCKER_HUB, repository
        if first in (DOCKER_HUB, "index.docker.io"):
            return cls(DOCKER_HUB, rest if "/" in rest else f"library/{rest}")
        return cls(first, rest)

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"

    @property
    def api(self) -> str:
        """host[:port] that answers for it."""
        return _HUB_API if self.host == DOCKER_HUB else self.host

    @property
    def login_key(self) -> str:
        """What Docker's configuration and credential helpers call it."""
        return _HUB_LOGIN if self.host == DOCKER_HUB else self.host

    @property
    def login_line(self) -> str:
        """What to type for a login."""
        return "docker login" if self.host == DOCKER_HUB else f"docker login {self.host}"


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without port and brackets, is this machine and nobody else.

    Docker asks such a registry by TLS without caring for its certificate, and else without TLS.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
