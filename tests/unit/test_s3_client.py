"""For which address, for how long and with whose credentials requests are signed."""

import json
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from apps.errors import ConfigurationError, StorageFailed
from apps.processors.state import LocalState
from apps.settings import BucketSettings
from apps.storage import minio, s3, s3_client
from apps.storage.bucket import BucketBackend, Local
from tests.stores import fake_store

DIGEST = "sha256:" + "ab" * 32
HERE = "http://127.0.0.1:9000"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without AWS credentials of any kind."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "DEFAULT_REGION", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHETEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")


def backend(tmp_path: Path, **bucket: Any) -> BucketBackend:
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    proofs = LocalState(state)
    settings = BucketSettings(**{"name": "theory-artifacts", "region": "eu-west-1", **bucket})
    for place in (HERE, "http://store.example", "https://s3.eu-west-1.amazonaws.com"):
        proofs.record_proof(f"{place}/theory-artifacts", {"digest": True, "once": True})
    return s3.backend(settings, Local(tmp_path / "spool", proofs))


def url(made: BucketBackend, loopback: str | None = None) -> str:
    grant = made.grants(loopback).upload("artifacts/a", size_bytes=1, digest=DIGEST, mime="text/plain")
    return grant.requests[0].url


def expires_s(url: str) -> int:
    return int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0])


@pytest.mark.parametrize(
    ("bucket", "loopback", "place"),
    [
        ({"endpoint": HERE}, None, "http://127.0.0.1:9000/theory-artifacts"),
        ({"endpoint": HERE}, "host.docker.internal", "http://host.docker.internal:9000/theory-artifacts"),
        ({"endpoint": "http://store.example"}, "host.docker.internal", "http://store.example/theory-artifacts"),
        (
            {"endpoint": HERE, "container_endpoint": "https://store:1"},
            "host.docker.internal",
            "https://store:1/theory-artifacts",
        ),
        ({}, "host.docker.internal", "https://theory-artifacts.s3.eu-west-1.amazonaws.com"),
    ],
)
@pytest.mark.usefixtures("keys")
def test_a_grant_is_for_the_address_that_the_container_uses(
    tmp_path: Path, bucket: dict[str, str], loopback: str | None, place: str
) -> None:
    assert url(backend(tmp_path, **bucket), loopback).startswith(f"{place}/artifacts/a?X-Amz-Algorithm=")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "a.localhost"])
def test_what_is_loopback_here_has_another_name_in_a_container(host: str) -> None:
    bucket = BucketSettings("b", "us-east-1", endpoint=f"http://{host}:9000")

    assert s3_client.container_endpoint(bucket, "host.docker.internal") == "http://host.docker.internal:9000"
    assert s3_client.container_endpoint(bucket, None) == f"http://{host}:9000"


@pytest.mark.parametrize("host", ["minio.local", "192.0.2.7", "store.example"])
def test_any_other_name_stays(host: str) -> None:
    bucket = BucketSettings("b", "us-east-1", endpoint=f"http://{host}:9000")

    assert s3_client.container_endpoint(bucket, "host.docker.internal") == f"http://{host}:9000"


# Credentials


@pytest.mark.usefixtures("keys")
def test_a_grant_is_good_for_a_quarter_of_an_hour(tmp_path: Path) -> None:
    assert expires_s(url(backend(tmp_path, endpoint=HERE))) == 900


@pytest.mark.parametrize(("minutes", "expires"), [(60, 900), (16, 900), (12, 600), (7, 300), (2, 60)])
def test_a_grant_never_outlives_temporary_credentials(tmp_path: Path, minutes: int, expires: int) -> None:
    profile(tmp_path, minutes=minutes)

    assert expires_s(url(backend(tmp_path, endpoint=HERE, profile="role"))) == expires


@pytest.mark.parametrize("minutes", [0.5, -1])
def test_credentials_that_end_give_no_grant(tmp_path: Path, minutes: float) -> None:
    profile(tmp_path, minutes=minutes)

    with pytest.raises(StorageFailed, match="temporary credentials"):
        url(backend(tmp_path, endpoint=HERE, profile="role"))


def test_a_profile_gives_credentials(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[dev]\naws_access_key_id = AKIADEV\naws_secret_access_key = x\n")

    assert "X-Amz-Credential=AKIADEV%2F" in url(backend(tmp_path, endpoint=HERE, profile="dev"))


def test_an_absent_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nobody") as caught:
        url(backend(tmp_path, endpoint=HERE, profile="nobody"))

    assert "AWS_PROFILE" in caught.value.hint


def test_an_empty_profile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: None) -> None:
    monkeypatch.setenv("AWS_PROFILE", "")

    assert "AKIAOFTHETEST" in url(backend(tmp_path, endpoint=HERE))


def test_no_credentials_are_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no credentials for the bucket 'theory-artifacts'") as caught:
        backend(tmp_path, endpoint=HERE).check()

    assert caught.value.hint == "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def test_half_of_the_credentials_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHETEST")

    with pytest.raises(ConfigurationError, match="no credentials"):
        backend(tmp_path, endpoint=HERE).check()


def test_minio_keys_stand_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    made = backend(tmp_path, endpoint=HERE, access_key="minioadmin", secret_key="minioadmin")

    found = url(made)

    assert "X-Amz-Credential=minioadmin%2F" in found
    assert "X-Amz-Security-Token" not in found


def profile(tmp_path: Path, *, minutes: float) -> None:
    """The profile `role`, whose temporary credentials end in so many minutes."""
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    login = {
        "Version": 1,
        "AccessKeyId": "ASIAROLE",
        "SecretAccessKey": "x",
        "SessionToken": "t",
        "Expiration": until.isoformat(),
    }
    script = tmp_path / "login.py"
    script.write_text(f"print({json.dumps(json.dumps(login))})\n")
    (tmp_path / "config").write_text(f"[profile role]\ncredential_process = {sys.executable} {script}\n")


def test_a_traceback_shows_no_signed_url(tmp_path: Path, keys: None) -> None:
    (tmp_path / "state").mkdir()
    settings = BucketSettings("theory-artifacts", "eu-west-1", endpoint="http://127.0.0.1:1")
    made = s3.backend(settings, Local(tmp_path / "spool", LocalState(tmp_path / "state")))

    with pytest.raises(StorageFailed, match="does not answer: Connection refused") as caught:
        made.grants(None).upload("artifacts/a", size_bytes=1, digest=DIGEST, mime="text/plain")

    assert "X-Amz-" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("make", [minio.backend, s3.backend])
def test_a_server_without_tls_is_told_from_one_that_is_not_trusted(
    tmp_path: Path, keys: None, make: Callable[[BucketSettings, Local], BucketBackend]
) -> None:
    with fake_store() as store:
        settings = BucketSettings(
            "theory-artifacts", "eu-west-1", f"https://127.0.0.1:{store.port}", access_key="a", secret_key="b"
        )
        made = make(settings, Local(tmp_path / "spool", LocalState(tmp_path)))
        with pytest.raises(StorageFailed, match="does not speak TLS as it should") as caught:
            made.check()

    assert caught.value.hint.startswith("look at ")
