"""Which engine is meant: DOCKER_HOST, DOCKER_CONTEXT, the current context; never one on another machine."""

import hashlib
import json
from pathlib import Path

import pytest

from apps.errors import ConfigurationError
from apps.processors.adapters.docker_endpoint import DEFAULT_URL, Endpoint, find


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """DOCKER_CONFIG with the contexts `desk`, `remote` and `secure`; none is current."""
    for name, host in (
        ("desk", "unix:///home/me/.docker/desktop/docker.sock"),
        ("remote", "ssh://me@192.0.2.1"),
        ("secure", "tcp://127.0.0.1:2376"),
    ):
        meta = tmp_path / "contexts" / "meta" / identifier(name)
        meta.mkdir(parents=True)
        endpoints = {"docker": {"Host": host, "SkipTLSVerify": True}}
        (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": endpoints}))
    (tmp_path / "contexts" / "tls" / identifier("secure") / "docker").mkdir(parents=True)
    return tmp_path


def identifier(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def current(config: Path, name: str) -> None:
    (config / "config.json").write_text(json.dumps({"currentContext": name, "auths": {}}))


def test_without_a_word_it_is_the_default_socket(tmp_path: Path) -> None:
    assert find({"HOME": str(tmp_path)}) == find({}) == Endpoint(DEFAULT_URL)


def test_the_current_context_counts(config: Path) -> None:
    current(config, "desk")

    assert find({"DOCKER_CONFIG": str(config)}).url == "unix:///home/me/.docker/desktop/docker.sock"


def test_home_holds_the_configuration(config: Path) -> None:
    current(config, "desk")
    home = config.with_name("home")
    home.mkdir()
    (home / ".docker").symlink_to(config)

    assert find({"HOME": str(home)}).url == "unix:///home/me/.docker/desktop/docker.sock"


def test_a_named_context_counts_more_than_the_current_one_and_a_host_more_than_both(config: Path) -> None:
    current(config, "remote")
    named = {"DOCKER_CONFIG": str(config), "DOCKER_CONTEXT": "desk"}

    assert find(named).url.endswith("desktop/docker.sock")
    assert find({**named, "DOCKER_CONTEXT": "default"}).url == DEFAULT_URL
    assert find({**named, "DOCKER_HOST": "unix:///run/other.sock"}).url == "unix:///run/other.sock"


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:2375", "tcp://localhost:2375", "tcp://[::1]:2375"])
def test_an_engine_behind_a_port_of_this_machine_is_fine(host: str) -> None:
    assert find({"DOCKER_HOST": host}) == Endpoint(host)


def test_tls_is_asked_for_by_variable(tmp_path: Path) -> None:
    host = {"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1"}

    assert find({**host, "DOCKER_CERT_PATH": "/certs"}) == Endpoint(host["DOCKER_HOST"], Path("/certs"))
    assert find({**host, "DOCKER_CONFIG": str(tmp_path)}) == Endpoint(host["DOCKER_HOST"], tmp_path)


def test_tls_comes_with_a_context(config: Path) -> None:
    found = find({"DOCKER_CONFIG": str(config), "DOCKER_CONTEXT": "secure"})

    certificates = config / "contexts" / "tls" / identifier("secure") / "docker"
    assert found == Endpoint("tcp://127.0.0.1:2376", certificates, verify=False)


@pytest.mark.parametrize(
    "host", ["tcp://192.0.2.1:2375", "tcp://docker:2375", "ssh://me@host.example", "https://127.0.0.1.example:1"]
)
def test_an_engine_on_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="DOCKER_HOST names a Docker Engine on another machine") as caught:
        find({"DOCKER_HOST": host})

    assert caught.value.hint.startswith("unset DOCKER_HOST")


def test_a_context_on_another_machine_is_refused_by_its_name(config: Path) -> None:
    current(config, "remote")

    with pytest.raises(ConfigurationError, match=r"context 'remote' names .* ssh://192\.0\.2\.1:") as caught:
        find({"DOCKER_CONFIG": str(config)})

    assert caught.value.hint.startswith("docker context use default")


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find({"DOCKER_HOST": "tcp://me:hunter2@192.0.2.1:2375"})

    assert "hunter2" not in str(caught.value.document())


@pytest.mark.parametrize("host", ["docker.sock", "npipe:////./pipe/docker", "fd://", "tcp://127.0.0.1:x", "tcp://[:1"])
def test_an_address_that_means_nothing_here_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="DOCKER_HOST"):
        find({"DOCKER_HOST": host})


@pytest.mark.parametrize("host", ["docker.sock", "/var/run/docker.sock", "localhost:2375"])
def test_an_address_without_a_kind_is_told_what_one_is(host: str) -> None:
    with pytest.raises(ConfigurationError, match="DOCKER_HOST is an address without a kind, as unix:// is one"):
        find({"DOCKER_HOST": host})


def test_an_unknown_context_is_refused_with_the_line_that_lists_them(config: Path) -> None:
    with pytest.raises(ConfigurationError, match="no docker context 'nowhere'") as caught:
        find({"DOCKER_CONFIG": str(config), "DOCKER_CONTEXT": "nowhere"})

    assert caught.value.hint == "list them: docker context ls"


def test_a_broken_configuration_is_named(config: Path) -> None:
    (config / "config.json").write_text("{")

    with pytest.raises(ConfigurationError, match=r"config\.json is not JSON"):
        find({"DOCKER_CONFIG": str(config)})
