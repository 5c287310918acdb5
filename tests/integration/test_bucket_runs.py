"""Outputs in a bucket on a real S3 server, whatever it takes."""

import signal
import time

import pytest

from apps.processors.state import LocalState
from apps.settings import Settings
from apps.storage import s3_client, select
from apps.storage.base import StorageBackend
from apps.storage.bucket import Local
from tests.integration.buckets import Bucket
from tests.integration.middlemen import line
from tests.integration.writers import MIB, Writer, digest, hold_together, key, last

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


def in_parts(settings: Settings) -> StorageBackend:
    """The storage of the settings, for which 6 MiB are too much for one PUT."""
    local = Local(settings.state / "spool", LocalState(settings.state), 6 * MIB)
    return select.backend(
        settings.storage_backend, artifacts_root=settings.artifacts_root, bucket=settings.bucket, local=local
    )


def test_an_output_too_large_for_one_put_goes_in_parts_over_a_line_that_is_cut(
    process_writer: Writer, bucket: Bucket
) -> None:
    with line(bucket.server.address) as way:
        way.cut_every_bytes = 10 * MIB  # a whole PUT never came through
        env = {**bucket.variables("minio"), "ARTIFACTS_CONTAINER_ENDPOINT": f"http://{way.address}"}

        envelope = process_writer.run_here({"large.bin": 40 * MIB + 1}, env, in_parts)

    assert (envelope["status"], envelope["meta"]["transfer"]) == ("success", "direct"), envelope
    hold_together(envelope, bucket)
    assert bucket.unfinished() == []


def test_an_output_in_parts_outlives_its_grants(
    process_writer: Writer, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "LIFETIMES_S", (3,))
    with line(bucket.server.address) as way:
        way.rate_bytes_s = 10 * MIB
        env = {**bucket.variables("minio"), "ARTIFACTS_CONTAINER_ENDPOINT": f"http://{way.address}"}

        envelope = process_writer.run_here({"large.bin": 40 * MIB + 1}, env, in_parts)

        assert envelope["status"] == "success", envelope
        assert way.upward_bytes < 50 * MIB  # nothing was sent twice
    hold_together(envelope, bucket)
    assert bucket.unfinished() == []


def test_a_cancel_breaks_an_upload_off_and_leaves_no_index(process_writer: Writer, bucket: Bucket) -> None:
    with line(bucket.server.address) as way:
        way.rate_bytes_s = 20 * MIB
        env = {**bucket.variables("s3"), "ARTIFACTS_CONTAINER_ENDPOINT": f"http://{way.address}"}
        process = process_writer.spawn({"large.bin": 400 * MIB}, env)
        while way.upward_bytes < 10 * MIB:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        began = time.monotonic()

        process.send_signal(signal.SIGINT)
        envelope = last(process)

        assert time.monotonic() - began < 4
    assert process.returncode == 130
    assert envelope["error"]["code"] == "ERR_CANCELLED"
    assert envelope["partial_outputs"] == []
    hold_together(envelope, bucket)
