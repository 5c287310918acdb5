"""Whom a container runs as, and what its names mean to it."""

import socket

import pytest

from apps.processors.adapters import docker_confinement
from apps.processors.adapters.docker_confinement import NOBODY, user


@pytest.mark.parametrize("name", ["", "root", "0", "00", "root:root", "0:1000", ":1000"])
def test_root_is_replaced(name: str) -> None:
    assert user(name) == NOBODY == "65532:65532"


@pytest.mark.parametrize("name", ["1000", "1000:0", "app", "app:app", "65532:65532"])
def test_the_images_own_user_stays(name: str) -> None:
    assert user(name) == name


@pytest.mark.parametrize(
    ("resolved", "address"),
    [("127.0.0.1", "host-gateway"), ("127.0.1.1", "host-gateway"), ("192.0.2.7", "192.0.2.7"), (None, "host-gateway")],
)
def test_minio_local_is_what_this_machine_says_or_this_machine(
    monkeypatch: pytest.MonkeyPatch, resolved: str | None, address: str
) -> None:
    # A name that resolves to another machine can't be had without changing this one's /etc/hosts.
    def getaddrinfo(*_: object) -> list[tuple[object, ...]]:
        if resolved is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    assert docker_confinement.address("minio.local") == address


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {}),
        ({"NO_PROXY": "example.org"}, {}),
        ({"HTTP_PROXY": "http://proxy"}, {"NO_PROXY": "minio.local,host.docker.internal"}),
        (
            {"https_proxy": "http://proxy", "no_proxy": "localhost"},
            {"no_proxy": "localhost,minio.local,host.docker.internal"},
        ),
    ],
)
def test_no_proxy_is_asked_for_the_hosts_that_a_container_is_told(given: dict[str, str], added: dict[str, str]) -> None:
    assert docker_confinement.past_proxies(given) == added
