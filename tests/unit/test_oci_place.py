"""What an image's name means: the registry, the repository there, the login; the same as for Docker."""

import pytest

from apps.processors.adapters.oci_place import Place, is_loopback


@pytest.mark.parametrize(
    ("repository", "host", "path"),
    [
        ("ghcr.io/org/image", "ghcr.io", "org/image"),
        ("localhost/image", "localhost", "image"),
        ("localhost:5000/org/deep/image", "localhost:5000", "org/deep/image"),
        ("registry:5000/image", "registry:5000", "image"),
        ("192.0.2.1/org/image", "192.0.2.1", "org/image"),
        ("[::1]:5000/org/image", "[::1]:5000", "org/image"),
        ("Registry/image", "Registry", "image"),
        ("python", "docker.io", "library/python"),
        ("org/image", "docker.io", "org/image"),
        ("docker.io/python", "docker.io", "library/python"),
        ("docker.io/org/image", "docker.io", "org/image"),
        ("index.docker.io/org/image", "docker.io", "org/image"),
    ],
)
def test_a_name_means_what_it_means_to_docker(repository: str, host: str, path: str) -> None:
    assert Place.parse(repository) == Place(host, path)


def test_docker_hub_is_asked_and_logged_in_to_under_other_names() -> None:
    place = Place.parse("org/image")

    assert (place.api, place.login_key) == ("registry-1.docker.io", "https://index.docker.io/v1/")
    assert place.login_line == "docker login"


def test_any_other_registry_goes_by_its_own_name() -> None:
    place = Place.parse("ghcr.io/org/image")

    assert (place.api, place.login_key, place.login_line) == ("ghcr.io", "ghcr.io", "docker login ghcr.io")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "128.0.0.1", "0.0.0.0", "::2", "", "registry"])
def test_all_else_is_another_machine(host: str) -> None:
    assert not is_loopback(host)
