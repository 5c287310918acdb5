"""The CLI reference's two examples of a bucket as they stand there: on the process engine, and from a container."""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

from tests.integration.buckets import Bucket, BucketServer, Login, bucket_server
from tests.integration.test_reference_loop import BUILD, START, remove_images
from tests.places import knowing_hosts
from tests.processors import runtime_lock
from tests.shell import Shell, copy_checkout
from tests.typist import Typist

pytestmark = pytest.mark.bucket

MINIO = r"""
STORAGE_BACKEND=minio \
MINIO_STORAGE_ENDPOINT=minio.local:9000 \
MINIO_STORAGE_ACCESS_KEY=minioadmin \
MINIO_STORAGE_SECRET_KEY=minioadmin \
MINIO_STORAGE_USE_HTTPS=false \
localctl run --ref llm/litellm@1 --mode mock --json
"""
S3 = r"""
STORAGE_BACKEND=s3 \
AWS_ACCESS_KEY_ID=your-access-key-id \
AWS_SECRET_ACCESS_KEY=your-secret-access-key \
ARTIFACTS_BUCKET=theory-artifacts-dev \
ARTIFACTS_REGION=us-east-1 \
localctl run --ref llm/litellm@1 --mode mock --json
"""


class HostsTypist(Typist):
    """To whom minio.local is a name of this machine."""

    prefix: tuple[str, ...] = ()
    further: Mapping[str, str] = {}
    """Added to the environment."""

    def _call(self, text: str) -> dict[str, Any]:
        call = super()._call(text)
        return {**call, "args": [*self.prefix, *call["args"]], "env": {**call["env"], **self.further}}


@dataclass(frozen=True, slots=True)
class Place:
    """llm/litellm@1, built and started by the reference's first two steps, and the terminal that did it."""

    engine: str
    typed: HostsTypist


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "hosts").write_text("127.0.0.1 localhost minio.local\n")
    root = copy_checkout(folder / "checkout")
    repository = f"localhost:5000/test-bucket-{secrets.token_hex(4)}"
    variables = {"PROCESSOR_REPOSITORY_PREFIX": repository}
    if request.param == "process":  # its mock needs no LiteLLM, which takes half a minute to install
        (root / "code/processors/llm/litellm/1/requirements.lock").write_text(runtime_lock())
        variables["LOCAL_ENGINE"] = "process"
    shell = Shell(root, home=folder, variables=variables)
    typist = HostsTypist(shell)
    typist.prefix = tuple(knowing_hosts(folder / "hosts"))
    try:
        typist(BUILD)
        typist(START)
        yield Place(request.param, typist)
    finally:
        shell.close()
        if request.param == "docker":
            remove_images(shell, repository)


@pytest.fixture(scope="module")
def dev_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    """What a developer has at minio.local:9000."""
    login = Login("minioadmin", "minioadmin")
    with bucket_server(tmp_path_factory.mktemp("dev-server"), owner=login, port=9000) as server:
        yield server


@pytest.fixture(scope="module")
def prod_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    """What stands for AWS."""
    login = Login("your-access-key-id", "your-secret-access-key")
    with bucket_server(tmp_path_factory.mktemp("prod-server"), owner=login) as server:
        server.make_bucket("theory-artifacts-dev")
        yield server


def check(envelope: dict[str, Any], bucket: Bucket, place: Place, backend: str) -> None:
    """All that the envelope says is in the bucket, whole."""
    meta = envelope["meta"]
    assert (meta["storage"], meta["transfer"], meta["engine"]) == (backend, "direct", place.engine)
    folder = f"artifacts/outputs/llm-litellm-v1/{envelope['execution_id']}/"
    names = ["outputs.json", "receipt.json", "text/response.txt", "usage.json"]
    assert bucket.keys(folder) == [folder + name for name in names]
    for output in envelope["outputs"]:
        content = bucket.read(output["path"][1:]) or b""
        assert f"sha256:{sha256(content).hexdigest()}" == output["digest"]
    assert json.loads(bucket.read(f"{folder}receipt.json") or b"") == envelope
    assert json.loads(bucket.read(f"{folder}outputs.json") or b"")["outputs"] == envelope["outputs"]


def test_the_example_of_minio(place: Place, dev_server: BucketServer) -> None:
    envelope = json.loads(place.typed(MINIO).stdout)

    check(envelope, Bucket(dev_server, "theory-artifacts"), place, "minio")


def test_minio_local_is_this_machine_where_nothing_knows_the_name(
    place: Place, dev_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.typed, "prefix", ())

    envelope = json.loads(place.typed(MINIO).stdout)

    check(envelope, Bucket(dev_server, "theory-artifacts"), place, "minio")


def test_the_example_of_s3_with_an_endpoint_added(place: Place, prod_server: BucketServer) -> None:
    place.typed.further = {"AWS_ENDPOINT_URL_S3": prod_server.endpoint}
    envelope = json.loads(place.typed(S3).stdout)

    check(envelope, Bucket(prod_server, "theory-artifacts-dev"), place, "s3")
