"""Logins as `docker login` leaves them, and credential helpers in every mood."""

import base64
import json
from pathlib import Path

import pytest

from apps.errors import ConfigurationError, Unauthorized
from apps.processors.adapters import docker_login
from apps.processors.adapters.docker_login import Login, find
from apps.processors.adapters.oci_place import Place

PLACE = Place.parse("ghcr.io/org/image")
SECRET = "hunter22-hunter22"


def config(folder: Path, document: object) -> dict[str, str]:
    (folder / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return {"DOCKER_CONFIG": str(folder), "PATH": f"{folder}:/usr/bin:/bin"}


def auth(user: str = "me", password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def helper(folder: Path, script: str, name: str = "test") -> None:
    file = folder / f"docker-credential-{name}"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


ANSWER = f"""printf '{{"ServerURL":"x","Username":"me","Secret":"{SECRET}"}}'"""


@pytest.mark.parametrize("key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v1/", "http://ghcr.io/v2"])
def test_a_login_is_found_by_its_host(key: str, tmp_path: Path) -> None:
    assert find(config(tmp_path, {"auths": {"other.io": auth("no"), key: auth()}}), PLACE) == Login("me", SECRET)


def test_the_home_folder_has_the_configuration(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    config(tmp_path / ".docker", {"auths": {"ghcr.io": auth()}})

    assert find({"HOME": str(tmp_path)}, PLACE) == Login("me", SECRET)


def test_a_login_to_docker_hub_goes_by_its_old_name(tmp_path: Path) -> None:
    environment = config(tmp_path, {"auths": {"https://index.docker.io/v1/": auth()}})

    assert find(environment, Place.parse("docker.io/org/image")) == Login("me", SECRET)
    assert find(environment, PLACE) is None


def test_a_password_may_hold_colons_and_be_beyond_ascii(tmp_path: Path) -> None:
    assert find(config(tmp_path, {"auths": {"ghcr.io": auth("me", "a:b:ü")}}), PLACE) == Login("me", "a:b:ü")


def test_an_identity_token_goes_before_the_password(tmp_path: Path) -> None:
    entry = auth() | {"identitytoken": "token"}

    assert find(config(tmp_path, {"auths": {"ghcr.io": entry}}), PLACE) == Login(identity_token="token")


@pytest.mark.parametrize("document", [{}, {"auths": {}}, {"auths": {"ghcr.io": {}}}, {"auths": None}, []])
def test_no_login_is_none(document: object, tmp_path: Path) -> None:
    assert find(config(tmp_path, document), PLACE) is None


def test_the_broken_login_of_another_registry_is_no_matter(tmp_path: Path) -> None:
    assert find(config(tmp_path, {"auths": {"other.io": {"auth": "!"}, "ghcr.io": auth()}}), PLACE) == Login(
        "me", SECRET
    )


def test_no_configuration_is_no_login(tmp_path: Path) -> None:
    assert find({"DOCKER_CONFIG": str(tmp_path / "absent")}, PLACE) is None
    assert find({}, PLACE) is None


def test_a_configuration_that_is_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json is not JSON"):
        find(config(tmp_path, "{"), PLACE)


def test_a_configuration_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()

    with pytest.raises(ConfigurationError, match=r"config\.json can't be read: Is a directory"):
        find({"DOCKER_CONFIG": str(tmp_path)}, PLACE)


@pytest.mark.parametrize("broken", ["bm90aGluZw==", "%%%", base64.b64encode(b"\xff:\xff").decode(), 7])
def test_a_broken_login_is_named_and_not_shown(broken: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds a broken login for ghcr\.io") as caught:
        find(config(tmp_path, {"auths": {"ghcr.io": {"auth": broken}}}), PLACE)

    assert caught.value.hint == "docker login ghcr.io"
    assert f"{broken}" not in caught.value.message.replace(str(tmp_path), "")


def test_a_login_does_not_show_when_printed() -> None:
    assert repr(Login("user", SECRET, SECRET)) == "Login()"


@pytest.mark.parametrize("document", [{"credHelpers": {"ghcr.io": "test"}}, {"credsStore": "test"}])
def test_a_helper_is_asked_for_the_registry(document: dict[str, object], tmp_path: Path) -> None:
    helper(tmp_path, f'[ "$1" = get ] && [ "$(cat)" = ghcr.io ] && {ANSWER}')

    assert find(config(tmp_path, document), PLACE) == Login("me", SECRET)


def test_a_registrys_own_helper_goes_before_the_store(tmp_path: Path) -> None:
    helper(tmp_path, ANSWER)

    found = find(config(tmp_path, {"credHelpers": {"ghcr.io": "test"}, "credsStore": "absent"}), PLACE)

    assert found == Login("me", SECRET)


def test_a_helper_runs_in_the_environment_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    helper(tmp_path, f'[ -z "$OURS" ] && [ "$THEIRS" = 1 ] && {ANSWER}')

    assert find(config(tmp_path, {"credsStore": "test"}) | {"THEIRS": "1"}, PLACE) == Login("me", SECRET)


def test_a_helper_may_give_an_identity_token(tmp_path: Path) -> None:
    helper(tmp_path, ANSWER.replace('"me"', '"<token>"'))

    assert find(config(tmp_path, {"credsStore": "test"}), PLACE) == Login(identity_token=SECRET)


def test_what_a_helper_does_not_keep_is_looked_for_in_the_file(tmp_path: Path) -> None:
    helper(tmp_path, "echo credentials not found in native keychain; exit 1")

    assert find(config(tmp_path, {"credsStore": "test"}), PLACE) is None
    assert find(config(tmp_path, {"credsStore": "test", "auths": {"ghcr.io": auth()}}), PLACE) == Login("me", SECRET)


def test_a_helper_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"docker-credential-desktop, which .*config\.json names for ghcr\.io"):
        find(config(tmp_path, {"credsStore": "desktop"}), PLACE)


def test_a_helper_that_fails_says_why(tmp_path: Path) -> None:
    helper(tmp_path, "echo keyring is locked; exit 1")

    with pytest.raises(Unauthorized, match="failed: keyring is locked") as caught:
        find(config(tmp_path, {"credsStore": "test"}), PLACE)

    assert caught.value.hint == "docker login ghcr.io"


def test_a_helper_that_talks_nonsense_is_refused_without_showing_the_secret(tmp_path: Path) -> None:
    helper(tmp_path, f"echo {SECRET}")

    with pytest.raises(Unauthorized, match="gave an answer that can't be read") as caught:
        find(config(tmp_path, {"credsStore": "test"}), PLACE)

    assert SECRET not in str(caught.value.words())
    assert caught.value.__cause__ is None


def test_a_helper_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_login, "_HELPER_S", 0.2)
    helper(tmp_path, "exec sleep 60")

    with pytest.raises(Unauthorized, match=r"did not answer within 0\.2 s"):
        find(config(tmp_path, {"credsStore": "test"}), PLACE)
