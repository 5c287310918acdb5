"""The very text of terraform/'s bucket policy on a real S3 server, which enforces it: over plain HTTP and over TLS."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionError

from tests.architecture.terraform import policy
from tests.integration import certificates
from tests.integration.buckets import REGION, WEED, Bucket, BucketServer

pytestmark = pytest.mark.bucket

KEY = "artifacts/outputs/a/b/text.txt"
CALLS: dict[str, Callable[[Any, str], object]] = {
    "list": lambda client, name: client.list_objects_v2(Bucket=name),
    "read": lambda client, name: client.get_object(Bucket=name, Key=KEY)["Body"].close(),
    "look": lambda client, name: client.head_object(Bucket=name, Key=KEY),
    "write": lambda client, name: client.put_object(Bucket=name, Key=KEY, Body=b"again"),
    "begin parts": lambda client, name: client.create_multipart_upload(Bucket=name, Key=KEY),
    "remove": lambda client, name: client.delete_object(Bucket=name, Key=KEY),
}


@pytest.fixture(scope="module")
def tls(bucket_server: BucketServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the owner that reaches the same buckets over TLS: by a second gateway to the same server."""
    folder = tmp_path_factory.mktemp("tls")
    made = certificates.issue(folder, "127.0.0.1")
    ports = _free_ports()
    with (folder / "log").open("wb") as log:
        gateway = subprocess.Popen(_gateway(bucket_server, folder, made, ports), stdout=log, stderr=log)
    client = boto3.client(
        "s3",
        endpoint_url=f"https://127.0.0.1:{ports[0]}",
        verify=str(made.authority),
        region_name=REGION,
        aws_access_key_id=bucket_server.owner.access_key,
        aws_secret_access_key=bucket_server.owner.secret_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
    )
    try:
        _wait(client, folder / "log")
        yield client
    finally:
        client.close()
        gateway.kill()
        gateway.wait()


def _free_ports() -> list[int]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]


def _gateway(server: BucketServer, folder: Path, made: certificates.Certificate, ports: list[int]) -> list[str]:
    filer = f"127.0.0.1:{server.ports['filer']}.{server.ports['filer grpc']}"
    addresses = ["-ip.bind=127.0.0.1", f"-port={ports[0]}", f"-port.grpc={ports[1]}", f"-localSocket={folder}/s3.sock"]
    encrypted = [f"-cert.file={made.certificate}", f"-key.file={made.key}"]
    unused = ["-port.iceberg=0", "-port.lance=0", "-iam=false", "-allowedOrigins="]
    start = [str(WEED), "-logtostderr=true", "s3", f"-filer={filer}", f"-config={server.folder}/s3.json"]
    return [*start, *addresses, *encrypted, *unused]


def _wait(client: Any, log: Path) -> None:
    deadline = time.monotonic() + 30
    while not _answers(client):
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
        time.sleep(0.1)


def _answers(client: Any) -> bool:
    try:
        client.list_buckets()
    except (ClientError, ConnectionError):
        return False
    return True


@pytest.fixture
def filled(bucket: Bucket, tls: Any) -> Iterator[Bucket]:
    """A bucket with an output in it."""
    bucket.put(KEY, b"there")
    yield bucket
    for client in (bucket.server.client(), tls):  # else the one or the other may not empty it
        with suppress(ClientError):
            client.delete_bucket_policy(Bucket=bucket.name)


def _give(bucket: Bucket, text: str) -> None:
    bucket.server.client().put_bucket_policy(Bucket=bucket.name, Policy=text)


def _text(bucket: Bucket) -> str:
    return policy("aws_s3_bucket_policy.artifacts").text({"bucket_arn": f"arn:aws:s3:::{bucket.name}"})


def _refused(bucket: Bucket, client: Any) -> dict[str, int]:
    """Each call that was refused, with the status."""
    found = {}
    for name, call in CALLS.items():
        try:
            call(client, bucket.name)
        except ClientError as exc:
            found[name] = exc.response["ResponseMetadata"]["HTTPStatusCode"]
    return found


def test_without_the_policy_plain_http_is_allowed(filled: Bucket) -> None:
    assert _refused(filled, filled.server.client()) == {}


def test_over_plain_http_even_its_owner_is_denied_everything(filled: Bucket) -> None:
    _give(filled, _text(filled))

    assert _refused(filled, filled.server.client()) == dict.fromkeys(CALLS, 403)


def test_over_tls_the_policy_denies_nothing(filled: Bucket, tls: Any) -> None:
    _give(filled, _text(filled))

    assert _refused(filled, tls) == {}


def test_over_plain_http_a_presigned_upload_is_denied(filled: Bucket) -> None:
    client = filled.server.client()
    url = client.generate_presigned_url("put_object", Params={"Bucket": filled.name, "Key": f"{KEY}.2"})

    with urllib3.PoolManager(retries=False) as http:
        before = http.request("PUT", url, body=b"x").status
        _give(filled, _text(filled))
        after = http.request("PUT", url, body=b"x").status

    assert (before, after) == (200, 403)


def test_the_policy_turned_round_would_be_noticed(filled: Bucket, tls: Any) -> None:
    document = json.loads(_text(filled))
    document["Statement"][0]["Condition"] = {"Bool": {"aws:SecureTransport": "true"}}
    _give(filled, json.dumps(document))

    assert _refused(filled, filled.server.client()) == {}
    assert _refused(filled, tls) == dict.fromkeys(CALLS, 403)
