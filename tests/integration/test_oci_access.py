"""How OciRegistry gets in: TLS, logins of every kind, tokens that expire, proxies; and whom it never tells a login."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.errors import ConfigurationError, ImageRegistryFailed, OperationError, Unauthorized
from apps.processors.adapters.oci_http import Patience
from apps.processors.adapters.oci_registry import OciRegistry
from tests.integration.certificates import issue
from tests.integration.middlemen import Answer, Asked, middleman
from tests.integration.proxies import proxy
from tests.integration.registries import (
    PASSWORD,
    USER,
    Registry,
    docker_config,
    docker_config_of_helper,
    docker_config_of_identity,
    own_address,
    registry,
)

QUICK = Patience(backoff_s=0.01)
SECRETS = (PASSWORD, "cm9ib3Q6b3BlbiBzZXNhbWU=")  # and as Basic sends it


@pytest.fixture(scope="module")
def by_password() -> Iterator[Registry]:
    with registry(host=own_address(), tls=True, login="password") as made:
        yield made


@pytest.fixture
def by_token() -> Iterator[Registry]:
    """Made anew: tests change what its token server does."""
    with registry(host=own_address(), tls=True, login="token") as made:
        yield made


@pytest.fixture(params=["by_password", "by_token"])
def guarded(request: pytest.FixtureRequest) -> Registry:
    """TLS, on an address where the certificate must be right, and a login."""
    made: Registry = request.getfixturevalue(request.param)
    return made


def login(made: Registry, folder: Path, password: str = PASSWORD) -> dict[str, str]:
    """The environment of somebody who trusts the registry and logged in."""
    return made.environment | {"DOCKER_CONFIG": str(docker_config(folder, made.address, password=password))}


def use(made: Registry, environment: dict[str, str]) -> bytes:
    """Write and read."""
    client = OciRegistry(environment, QUICK)
    client.check_push(made.repository())
    return client.blob(made.repository(), client.put_blob(made.repository(), b"data"), limit_bytes=4)


def test_a_login_lets_in(guarded: Registry, tmp_path: Path) -> None:
    assert use(guarded, login(guarded, tmp_path)) == b"data"


def test_a_credential_helper_lets_in(guarded: Registry, tmp_path: Path) -> None:
    answer = json.dumps({"ServerURL": "", "Username": USER, "Secret": PASSWORD})
    helper = docker_config_of_helper(tmp_path, guarded.address, f"echo '{answer}'")

    assert use(guarded, guarded.environment | helper) == b"data"


def test_a_credential_helper_is_asked_once(guarded: Registry, tmp_path: Path) -> None:
    answer = json.dumps({"ServerURL": "", "Username": USER, "Secret": PASSWORD})
    helper = docker_config_of_helper(tmp_path, guarded.address, f"echo asked >>{tmp_path}/asked; echo '{answer}'")

    use(guarded, guarded.environment | helper)

    assert (tmp_path / "asked").read_text() == "asked\n"


def test_without_a_login_the_error_says_what_to_type(guarded: Registry) -> None:
    with pytest.raises(Unauthorized, match=f"{guarded.address} asks for a login") as caught:
        use(guarded, guarded.environment)

    assert caught.value.hint == f"docker login {guarded.address}"


def test_a_wrong_password_is_refused_and_not_shown(guarded: Registry, tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="refuses the login in Docker's configuration") as caught:
        use(guarded, login(guarded, tmp_path, password="wrong password"))

    assert caught.value.hint == f"docker login {guarded.address}"
    assert "wrong password" not in str(caught.value.words())


def test_an_unknown_authority_is_refused_and_the_error_says_where_to_name_it(by_password: Registry) -> None:
    with pytest.raises(ImageRegistryFailed, match="is not to be trusted: unable to get local issuer") as caught:
        use(by_password, {})

    assert f"/etc/docker/certs.d/{by_password.address}/ca.crt" in caught.value.hint


def test_the_processs_own_authorities_are_not_taken(by_password: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", by_password.environment["SSL_CERT_FILE"])

    with pytest.raises(ImageRegistryFailed, match="is not to be trusted"):
        use(by_password, {})


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    other = issue(tmp_path, "registry.example.com")

    with (
        registry(host=own_address(), tls=other) as made,
        pytest.raises(ImageRegistryFailed, match="IP address mismatch"),
    ):
        use(made, made.environment)


def test_an_authority_in_dockers_own_folder_is_trusted(by_password: Registry, tmp_path: Path) -> None:
    assert by_password.tls
    folder = tmp_path / ".config" / "docker" / "certs.d" / by_password.address
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(by_password.tls.authority.read_bytes())
    docker_config(tmp_path / ".docker", by_password.address)

    assert use(by_password, {"HOME": str(tmp_path)}) == b"data"


def test_loopback_may_speak_tls_by_any_certificate() -> None:
    with registry(tls=True) as made:
        assert use(made, {}) == b"data"
        assert made.requests()[0][1] == "/v2/"


def test_an_identity_token_lets_in(by_token: Registry, tmp_path: Path) -> None:
    assert by_token.tokens
    config = docker_config_of_identity(tmp_path, by_token.address, by_token.tokens.identity_token)

    assert use(by_token, by_token.environment | {"DOCKER_CONFIG": str(config)}) == b"data"

    method, fields = by_token.tokens.asked[-1]
    assert (method, fields["grant_type"]) == ("POST", ["refresh_token"])


def test_an_identity_token_that_is_refused_asks_for_a_login(by_token: Registry, tmp_path: Path) -> None:
    config = docker_config_of_identity(tmp_path, by_token.address, "stale")

    with pytest.raises(Unauthorized, match="refuses the login"):
        use(by_token, by_token.environment | {"DOCKER_CONFIG": str(config)})


def test_one_token_serves_until_it_allows_too_little(by_token: Registry, tmp_path: Path) -> None:
    assert by_token.tokens
    client = OciRegistry(login(by_token, tmp_path), QUICK)

    for _ in range(2):
        client.manifest(by_token.repository(), "1")
    for _ in range(2):
        client.put_blob(by_token.repository(), b"data")
    client.manifest(by_token.repository(), "1")

    actions = [fields["scope"][0].rpartition(":")[2] for _, fields in by_token.tokens.asked]
    assert [set(each.split(",")) for each in actions] == [{"pull"}, {"pull", "push"}]


def test_a_token_that_expired_is_renewed_once(by_token: Registry, tmp_path: Path) -> None:
    assert by_token.tokens
    client = OciRegistry(login(by_token, tmp_path), QUICK)
    by_token.tokens.lifetime_s = -58  # of the 60 s that the registry forgives
    client.manifest(by_token.repository(), "1")
    time.sleep(3)

    assert client.manifest(by_token.repository(), "1") is None

    assert len(by_token.tokens.asked) == 2


def test_a_token_server_that_gives_only_expired_tokens_is_not_asked_for_ever(
    by_token: Registry, tmp_path: Path
) -> None:
    assert by_token.tokens
    by_token.tokens.lifetime_s = -120

    with pytest.raises(Unauthorized):
        OciRegistry(login(by_token, tmp_path), QUICK).manifest(by_token.repository(), "1")

    assert len(by_token.tokens.asked) == 1


def test_a_login_that_may_only_read_may_not_push(by_token: Registry, tmp_path: Path) -> None:
    assert by_token.tokens
    by_token.tokens.actions = {"pull"}
    client = OciRegistry(login(by_token, tmp_path), QUICK)

    assert client.manifest(by_token.repository(), "1") is None
    with pytest.raises(Unauthorized, match="does not allow to take images for org/image") as caught:
        client.check_push(by_token.repository())

    assert caught.value.hint.startswith(f"docker login {by_token.address} as somebody who may")


def test_whoever_may_read_needs_no_login(by_token: Registry) -> None:
    assert by_token.tokens
    by_token.tokens.anonymous = {"pull"}
    client = OciRegistry(by_token.environment, QUICK)

    assert client.manifest(by_token.repository(), "1") is None
    with pytest.raises(Unauthorized, match="asks for a login"):
        client.check_push(by_token.repository())


def test_a_token_server_that_is_down_is_the_registrys_failure(by_token: Registry, tmp_path: Path) -> None:
    assert by_token.tokens
    by_token.tokens.refusal = 503

    with pytest.raises(ImageRegistryFailed, match=r"gave no token \(status 503\)"):
        use(by_token, login(by_token, tmp_path))

    assert len(by_token.tokens.asked) == 1 + QUICK.repeats


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("Bearer service=x", "names no token server"),
        ('Bearer realm="ftp://elsewhere/token"', "sends us to no address of HTTP"),
        ("Negotiate", "asks for a login"),
        ("", "asks for a login"),
    ],
)
def test_a_challenge_that_can_not_be_met_is_told(challenge: str, words: str) -> None:
    refusal = Answer(401, {"www-authenticate": challenge} if challenge else {})

    with middleman("", answer=lambda asked: refusal) as odd, pytest.raises(OperationError, match=words):
        OciRegistry({}, QUICK).manifest(odd.repository(), "1")


@pytest.mark.parametrize("token", ["two\r\nlines", "", 7, None])
def test_a_token_that_is_none_is_not_sent(token: object) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(200, {}, json.dumps({"token": token}).encode())
        return Answer(401, {"www-authenticate": f'Bearer realm="http://{asked.headers["host"]}/token"'})

    with middleman("", answer=answer) as odd, pytest.raises(ImageRegistryFailed, match="gave no token"):
        OciRegistry({}, QUICK).manifest(odd.repository(), "1")


def _logged_in(address: str, folder: Path) -> OciRegistry:
    return OciRegistry({"DOCKER_CONFIG": str(docker_config(folder, address))}, QUICK)


def _basic_until(then: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """Wants a password, and then does `then`."""

    def answer(asked: Asked) -> Answer:
        if "authorization" not in asked.headers:
            return Answer(401, {"www-authenticate": "Basic realm=x"})
        return then(asked)

    return answer


def test_a_redirect_elsewhere_takes_no_login_along(tmp_path: Path) -> None:
    with middleman("", answer=lambda asked: Answer(404)) as elsewhere:
        target = f"http://{elsewhere.address}/store/blob?signature=x"
        answer = _basic_until(lambda asked: Answer(307, {"location": target}))
        with middleman("", answer=answer) as first, pytest.raises(ImageRegistryFailed):
            _logged_in(first.address, tmp_path).blob(first.repository(), "sha256:" + "0" * 64, limit_bytes=1)

    assert [asked.path for asked, _ in elsewhere.asked] == ["/store/blob?signature=x"]
    assert "authorization" not in elsewhere.asked[0][0].headers


def test_an_upload_that_goes_on_elsewhere_takes_no_login_along(tmp_path: Path) -> None:
    def then(asked: Asked) -> Answer:
        return (
            Answer(404) if asked.method == "HEAD" else Answer(202, {"location": f"http://{elsewhere.address}/up?a=b"})
        )

    with (
        middleman("", answer=lambda asked: Answer(201)) as elsewhere,
        middleman("", answer=_basic_until(then)) as first,
    ):
        _logged_in(first.address, tmp_path).put_blob(first.repository(), b"data")

    (asked, _), *others = elsewhere.asked
    assert (asked.method, asked.body, others) == ("PUT", b"data", [])
    assert asked.path.startswith("/up?a=b&digest=sha256%3A")
    assert "authorization" not in asked.headers


def test_a_proxy_makes_the_way(by_password: Registry, tmp_path: Path) -> None:
    with proxy() as way:
        environment = login(by_password, tmp_path) | {"HTTPS_PROXY": f"http://me:pass%20word@{way.address}"}
        assert use(by_password, environment) == b"data"

    assert way.heads[0].startswith(f"CONNECT {by_password.address} HTTP/1.")
    assert "Basic bWU6cGFzcyB3b3Jk" in way.heads[0]


def test_no_proxy_goes_round_it(by_password: Registry, tmp_path: Path) -> None:
    with proxy() as way:
        environment = login(by_password, tmp_path) | {"HTTPS_PROXY": way.address, "NO_PROXY": own_address()}
        use(by_password, environment)

    assert way.heads == []


def test_the_processs_own_proxy_is_not_taken(
    by_password: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    assert use(by_password, login(by_password, tmp_path)) == b"data"


def test_a_proxy_that_refuses_is_told_without_its_password(by_password: Registry, tmp_path: Path) -> None:
    with proxy(refusal="407 Proxy Authentication Required") as way:
        environment = login(by_password, tmp_path) | {"HTTPS_PROXY": f"http://me:{PASSWORD}@{way.address}"}
        with pytest.raises(ImageRegistryFailed, match=r"the proxy to .* does not let us through: .*407") as caught:
            use(by_password, environment)

    assert caught.value.hint == "check HTTPS_PROXY and NO_PROXY"
    assert PASSWORD not in str(caught.value.words())


def test_a_broken_configuration_is_named(by_password: Registry, tmp_path: Path) -> None:
    environment = login(by_password, tmp_path)
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(ConfigurationError, match=r"config\.json is not JSON"):
        use(by_password, environment)
