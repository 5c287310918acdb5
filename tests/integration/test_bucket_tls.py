"""A bucket over TLS: by an authority that the environment names, and told apart from one that nobody trusts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from apps.errors import ConfigurationError, StorageFailed
from apps.processors.state import LocalState
from apps.settings import Settings
from apps.storage import select
from apps.storage.base import StorageBackend
from apps.storage.bucket import Local
from tests.integration.buckets import Bucket, BucketServer, bucket_server
from tests.integration.certificates import Certificate, issue
from tests.integration.registries import free_port

pytestmark = pytest.mark.bucket


@dataclass
class SecureServer(BucketServer):
    """With a second port that speaks TLS."""

    def __post_init__(self) -> None:
        self.certificate: Certificate = issue(self.folder / "tls", "127.0.0.1")
        self.secure_port = free_port()

    def _argv(self) -> list[str]:
        files = [f"-s3.cert.file={self.certificate.certificate}", f"-s3.key.file={self.certificate.key}"]
        return [*super()._argv(), f"-s3.port.https={self.secure_port}", *files]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    with bucket_server(tmp_path_factory.mktemp("secure"), kind=SecureServer) as server:
        assert isinstance(server, SecureServer)
        yield server


@pytest.fixture(params=["minio", "s3"])
def variables(request: pytest.FixtureRequest, secure: SecureServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the environment says, without the authority."""
    bucket = secure.make_bucket()
    found = {
        name: value.replace("http://", "https://").replace(str(secure.port), str(secure.secure_port))
        for name, value in bucket.variables(request.param).items()
    }
    if request.param == "minio":
        found["MINIO_STORAGE_USE_HTTPS"] = "true"
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def backend(tmp_path: Path, variables: dict[str, str]) -> StorageBackend:
    (tmp_path / "state").mkdir(exist_ok=True)
    settings = Settings.read(variables)
    local = Local(tmp_path / "spool", LocalState(tmp_path / "state"))
    return select.backend(settings.storage_backend, artifacts_root=tmp_path, bucket=settings.bucket, local=local)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
def test_an_authority_that_the_environment_names_is_trusted(
    tmp_path: Path, secure: SecureServer, variables: dict[str, str], name: str
) -> None:
    authority, digest = str(secure.certificate.authority), f"sha256:{hashlib.sha256(b'data').hexdigest()}"
    made = backend(tmp_path, {**variables, name: authority})

    made.check()
    writer = made.create("artifacts/a", mime="text/plain")
    writer.write(b"data")
    writer.commit(size_bytes=4, digest=digest)
    grants: Any = made.grants(None)
    grant = grants.upload("artifacts/b", size_bytes=4, digest=digest, mime="text/plain")
    with urllib3.PoolManager(ca_certs=authority, retries=False) as http:
        sent = http.request("PUT", grant.requests[0].url, body=b"data", headers=dict(grant.requests[0].headers))
    grants.accept("artifacts/b", grant, size_bytes=4, digest=digest)

    assert (sent.status, grant.requests[0].url[:8]) == (200, "https://")
    assert Bucket(secure, variables["ARTIFACTS_BUCKET"]).keys() == ["artifacts/a", "artifacts/b"]


def test_an_authority_that_nobody_trusts_is_told(tmp_path: Path, variables: dict[str, str]) -> None:
    with pytest.raises(StorageFailed, match="is not trusted: ") as caught:
        backend(tmp_path, variables).check()

    assert caught.value.hint == "name its authority's certificate in SSL_CERT_FILE"


def test_a_file_of_authorities_that_is_none_is_told(tmp_path: Path, variables: dict[str, str]) -> None:
    (tmp_path / "none.pem").write_text("no certificate")

    for path in ("none.pem", "absent.pem"):
        with pytest.raises(ConfigurationError, match=path):
            backend(tmp_path, {**variables, "SSL_CERT_FILE": str(tmp_path / path)}).check()
