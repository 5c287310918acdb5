"""Outputs in a bucket on a real S3 server, whatever it takes."""

import pytest

from tests.integration.buckets import Bucket
from tests.integration.writers import MIB, Writer, digest, hold_together, key

pytestmark = pytest.mark.bucket


@pytest.mark.parametrize("backend", ["minio", "s3"])
def test_outputs_go_straight_to_the_bucket(process_writer: Writer, bucket: Bucket, backend: str) -> None:
    sizes = {"small.bin": 5, "empty.bin": 0, "large.bin": 100 * MIB + 1}

    envelope = process_writer.run(sizes, bucket.variables(backend))

    assert envelope["status"] == "success", envelope
    assert (envelope["meta"]["storage"], envelope["meta"]["transfer"]) == (backend, "direct")
    assert {each["path"].rpartition("/")[2]: each["digest"] for each in envelope["outputs"]} == {
        name: digest(name, size) for name, size in sizes.items()
    }
    hold_together(envelope, bucket)


def test_many_small_outputs(process_writer: Writer, bucket: Bucket) -> None:
    envelope = process_writer.run({f"many/{number}.bin": 1024 for number in range(200)}, bucket.variables("s3"))

    assert envelope["status"] == "success", envelope
    assert len(bucket.keys(key(envelope, "many/"))) == 200


def test_a_store_that_only_this_machine_reaches_is_fed_over_the_socket(process_writer: Writer, bucket: Bucket) -> None:
    env = {**bucket.variables("s3"), "ARTIFACTS_CONTAINER_ENDPOINT": "http://store.invalid:9000"}

    envelope = process_writer.run({"a.bin": 5, "b.bin": 12 * MIB}, env)

    assert envelope["status"] == "success", envelope
    assert (envelope["meta"]["storage"], envelope["meta"]["transfer"]) == ("s3", "relay")
    hold_together(envelope, bucket)
