"""Proxies and authorities as the environment names them, and no others."""

import ssl
from pathlib import Path

import pytest

from apps.errors import ConfigurationError
from apps.processors.adapters.oci_network import context, proxy
from tests.integration.certificates import Certificate, issue

URL = "https://ghcr.io/v2/"
PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_taken_from_the_environment_given(name: str) -> None:
    assert proxy({name: PROXY}, URL) == PROXY


def test_each_scheme_has_its_own_proxy() -> None:
    assert proxy({"HTTP_PROXY": PROXY}, URL) is None


def test_without_a_variable_the_way_is_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)  # of this process: not asked

    assert proxy({}, URL) is None


def test_a_proxy_without_a_scheme_is_http() -> None:
    assert proxy({"HTTPS_PROXY": "proxy:3128"}, URL) == "http://proxy:3128"


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1", "[::1]:5000"])
def test_this_machine_is_reached_without_a_proxy(host: str) -> None:
    assert proxy({"HTTP_PROXY": PROXY}, f"http://{host}/v2/") is None


@pytest.mark.parametrize(
    ("listed", "host"),
    [
        ("*", "ghcr.io"),
        ("ghcr.io", "ghcr.io"),
        ("GHCR.IO", "ghcr.io"),
        ("example.com, ghcr.io", "ghcr.io"),
        ("example.com ghcr.io", "ghcr.io"),
        ("example.com", "registry.example.com"),
        (".example.com", "registry.example.com"),
        ("*.example.com", "registry.example.com"),
        ("ghcr.io:443", "ghcr.io"),
        ("ghcr.io:5000", "ghcr.io:5000"),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.7"),
        ("2001:db8::/32", "[2001:db8::1]"),
    ],
)
def test_no_proxy_excepts(listed: str, host: str) -> None:
    assert proxy({"HTTPS_PROXY": PROXY, "NO_PROXY": listed}, f"https://{host}/v2/") is None


@pytest.mark.parametrize(
    ("listed", "host"),
    [
        ("hcr.io", "ghcr.io"),
        ("ghcr.io.example.com", "ghcr.io"),
        ("ghcr.io:5000", "ghcr.io"),
        ("192.0.2.0/24", "192.0.3.7"),
        ("192.0.2.0/24", "ghcr.io"),
        (".", "ghcr.io"),
        (",", "ghcr.io"),
    ],
)
def test_no_proxy_excepts_nothing_else(listed: str, host: str) -> None:
    assert proxy({"HTTPS_PROXY": PROXY, "NO_PROXY": listed}, f"https://{host}/v2/") == PROXY


@pytest.mark.parametrize("value", ["socks5://me:secret@proxy:1080", "http://me:secret@", "http://me:secret@proxy:port"])
def test_a_proxy_that_we_can_not_use_is_refused_without_showing_its_password(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        proxy({"HTTPS_PROXY": value}, URL)

    assert "HTTPS_PROXY" in caught.value.message
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return issue(tmp_path_factory.mktemp("tls"), "registry.example.com")


def authorities(made: ssl.SSLContext) -> set[str]:
    return {str(each["subject"]) for each in made.get_ca_certs()}


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_an_authority_that_the_environment_names_is_trusted_alone(name: str, certificate: Certificate) -> None:
    made = context({name: str(certificate.authority)}, "ghcr.io")

    assert len(authorities(made)) == 1
    assert (made.verify_mode, made.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_without_a_word_the_systems_authorities_are_trusted(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))  # of this process: not asked

    assert not any("authority of a test" in each for each in authorities(context({}, "ghcr.io")))


@pytest.mark.parametrize("folder", [".config/docker/certs.d", ".docker/certs.d"])
def test_an_authority_that_docker_was_given_is_trusted_for_its_registry(
    folder: str, certificate: Certificate, tmp_path: Path
) -> None:
    place = tmp_path / folder / "registry.example.com:5000"
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(certificate.authority.read_bytes())
    environment = {"HOME": str(tmp_path)}

    known, other = context(environment, "registry.example.com:5000"), context(environment, "ghcr.io")

    assert any("authority of a test" in each for each in authorities(known))
    assert not any("authority of a test" in each for each in authorities(other))


def test_a_file_of_authorities_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE names /absent/ca\.pem for certificates: No such file"):
        context({"SSL_CERT_FILE": "/absent/ca.pem"}, "ghcr.io")


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")

    with pytest.raises(ConfigurationError, match=r"REQUESTS_CA_BUNDLE names .*ca\.pem for certificates: it holds no"):
        context({"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}, "ghcr.io")


def test_a_folder_of_authorities_that_is_not_there_is_passed_over() -> None:
    assert authorities(context({"SSL_CERT_DIR": "/absent"}, "ghcr.io")) == authorities(context({}, "ghcr.io"))


def test_a_client_certificate_without_its_key_is_named(certificate: Certificate, tmp_path: Path) -> None:
    place = tmp_path / ".docker" / "certs.d" / "ghcr.io"
    place.mkdir(parents=True)
    (place / "client.cert").write_bytes(certificate.certificate.read_bytes())

    with pytest.raises(ConfigurationError, match=r"client\.cert and its key client\.key can't be used"):
        context({"HOME": str(tmp_path)}, "ghcr.io")


def test_loopback_need_not_prove_who_it_is() -> None:
    assert context({}, "localhost:5000").verify_mode == ssl.CERT_NONE
