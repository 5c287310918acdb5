"""The S3 server of the tests: it refuses what S3 refuses, and outlives a kill."""

from pathlib import Path

import pytest

from tests.integration import bucket_canary
from tests.integration.buckets import Bucket, BucketServer, bucket_server

pytestmark = pytest.mark.bucket


def test_it_refuses_every_misuse(bucket: Bucket) -> None:
    assert bucket_canary.answers(bucket) == bucket_canary.REFUSALS

    assert bucket.keys() == ["first", "there"]
    assert bucket.read("first") == bucket_canary.BODY


def test_an_absent_bucket_is_not_made_by_a_put(bucket_server: BucketServer) -> None:
    client = bucket_server.client()

    with pytest.raises(client.exceptions.NoSuchBucket):
        client.put_object(Bucket="never-made", Key="a", Body=b"")


def test_a_killed_server_goes_on_with_its_data_on_the_same_port(tmp_path: Path) -> None:
    with bucket_server(tmp_path) as server:
        bucket, port = server.make_bucket(), server.port
        bucket.put("a", b"before")

        server.kill()
        server.start()

        assert (server.port, bucket.read("a")) == (port, b"before")
