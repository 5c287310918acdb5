"""Settings: what the environment and the caller's folder say."""

from pathlib import Path

import pytest

from apps.errors import ConfigurationError
from apps.settings import BucketSettings, Settings


def test_a_current_folder_that_is_gone_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(ConfigurationError, match="the current folder can't be had: No such file or directory"):
        Settings.read({})


# Buckets

MINIO = {
    "STORAGE_BACKEND": "minio",
    "MINIO_STORAGE_ENDPOINT": "minio.local:9000",
    "MINIO_STORAGE_ACCESS_KEY": "minioadmin",
    "MINIO_STORAGE_SECRET_KEY": "miniosecret",
    "MINIO_STORAGE_USE_HTTPS": "false",
}
S3 = {"STORAGE_BACKEND": "s3", "ARTIFACTS_BUCKET": "theory-artifacts-dev", "ARTIFACTS_REGION": "eu-west-1"}


def bucket(environ: dict[str, str]) -> BucketSettings:
    found = Settings.read(environ).bucket
    assert found
    return found


def test_a_folder_needs_no_bucket() -> None:
    assert Settings.read({"ARTIFACTS_BUCKET": "unused", "MINIO_STORAGE_ENDPOINT": "::nonsense::"}).bucket is None


def test_minio_is_what_its_variables_say() -> None:
    assert bucket(MINIO) == BucketSettings(
        name="theory-artifacts",
        region="us-east-1",
        endpoint="http://minio.local:9000",
        access_key="minioadmin",
        secret_key="miniosecret",
    )


def test_s3_leaves_credentials_to_the_standard_chain() -> None:
    environ = {**S3, "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_PROFILE": "dev"}

    assert bucket(environ) == BucketSettings("theory-artifacts-dev", "eu-west-1", profile="dev")


@pytest.mark.parametrize(
    ("changed", "endpoint", "container_endpoint"),
    [
        ({"AWS_ENDPOINT_URL_S3": "https://s3.acme.example/"}, "https://s3.acme.example", None),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000", None),
        ({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}, "http://b", None),
        ({"AWS_ENDPOINT_URL_S3": "", "AWS_ENDPOINT_URL": ""}, None, None),
        ({"ARTIFACTS_CONTAINER_ENDPOINT": "http://store:9000"}, None, "http://store:9000"),
        ({"ARTIFACTS_CONTAINER_ENDPOINT": "store:9000"}, None, "https://store:9000"),
        ({"AWS_ENDPOINT_URL_S3": "http://a", "ARTIFACTS_CONTAINER_ENDPOINT": "b:1"}, "http://a", "http://b:1"),
    ],
)
def test_endpoints_are_urls_without_a_path(
    changed: dict[str, str], endpoint: str | None, container_endpoint: str | None
) -> None:
    found = bucket({**S3, **changed})

    assert (found.endpoint, found.container_endpoint) == (endpoint, container_endpoint)


@pytest.mark.parametrize(("value", "scheme"), [("", "https"), ("true", "https"), ("FALSE", "http"), ("0", "http")])
def test_minio_speaks_https_unless_told_otherwise(value: str, scheme: str) -> None:
    assert bucket({**MINIO, "MINIO_STORAGE_USE_HTTPS": value}).endpoint == f"{scheme}://minio.local:9000"


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_authorities_are_taken_from_the_usual_variables(name: str) -> None:
    assert bucket({**MINIO, name: "/ca.pem"}).ca_file == "/ca.pem"


def test_all_missing_variables_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.read({"STORAGE_BACKEND": "minio", "MINIO_STORAGE_ACCESS_KEY": "", "MINIO_STORAGE_SECRET_KEY": "x"})

    assert "MINIO_STORAGE_ENDPOINT, MINIO_STORAGE_ACCESS_KEY are not set" in caught.value.message


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**S3, "ARTIFACTS_BUCKET": ""}, "ARTIFACTS_BUCKET is not set"),
        ({**S3, "ARTIFACTS_BUCKET": "Upper_Case"}, "ARTIFACTS_BUCKET is 'Upper_Case'"),
        ({**S3, "ARTIFACTS_BUCKET": "a/b"}, "ARTIFACTS_BUCKET is 'a/b'"),
        ({**S3, "AWS_ENDPOINT_URL_S3": "127.0.0.1:9000"}, "AWS_ENDPOINT_URL_S3 is '127.0.0.1:9000'"),
        ({**S3, "AWS_ENDPOINT_URL_S3": "ftp://a"}, "AWS_ENDPOINT_URL_S3 is 'ftp://a'"),
        ({**S3, "AWS_ENDPOINT_URL_S3": "http://a/bucket"}, "AWS_ENDPOINT_URL_S3 is 'http://a/bucket'"),
        ({**S3, "ARTIFACTS_CONTAINER_ENDPOINT": "http://a:b"}, "ARTIFACTS_CONTAINER_ENDPOINT is 'http://a:b'"),
        ({**MINIO, "MINIO_STORAGE_ENDPOINT": "http://a:9000"}, "MINIO_STORAGE_ENDPOINT is 'http://a:9000'"),
        ({**MINIO, "MINIO_STORAGE_ENDPOINT": ":9000"}, "MINIO_STORAGE_ENDPOINT is ':9000'"),
        ({**MINIO, "MINIO_STORAGE_ENDPOINT": "a:99999"}, "MINIO_STORAGE_ENDPOINT is 'a:99999'"),
        ({**MINIO, "MINIO_STORAGE_ENDPOINT": "a b:9000"}, "MINIO_STORAGE_ENDPOINT is 'a b:9000'"),
        ({**S3, "ARTIFACTS_REGION": "eu west"}, "ARTIFACTS_REGION is 'eu west'"),
        ({**MINIO, "MINIO_STORAGE_USE_HTTPS": "maybe"}, "MINIO_STORAGE_USE_HTTPS is 'maybe'"),
    ],
)
def test_a_malformed_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.read(environ)

    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        (MINIO, "MINIO_STORAGE_ACCESS_KEY"),
        (MINIO, "MINIO_STORAGE_SECRET_KEY"),
        (S3, "AWS_ACCESS_KEY_ID"),
        (S3, "AWS_SECRET_ACCESS_KEY"),
        (S3, "AWS_SESSION_TOKEN"),
    ],
)
def test_a_credential_with_a_lines_end_is_named_and_not_shown(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} holds a control character") as caught:
        Settings.read({**environ, name: "hidden\n"})

    assert "hidden" not in str(caught.value.document())


def test_a_password_in_an_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.read({**S3, "AWS_ENDPOINT_URL_S3": "https://ada:hidden@s3.acme.example"})

    assert "hidden" not in caught.value.message + caught.value.hint
