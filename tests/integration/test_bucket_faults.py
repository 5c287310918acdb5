"""A store, or the way to it, that fails in the middle: whatever happens, no index over missing or wrong objects."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.buckets import Bucket, bucket_server
from tests.integration.middlemen import Answer, Asked, line, middleman
from tests.integration.writers import MIB, Writer, hold_together, key, last
from tests.places import need_program, small_disk

pytestmark = pytest.mark.bucket

LARGE = {"a.bin": 5, "b.bin": 200 * MIB}  # written in the order of their names


def by(bucket: Bucket, address: str) -> dict[str, str]:
    """The variables of a run whose container goes to the bucket by this address, the command by its own."""
    return {**bucket.variables("s3"), "ARTIFACTS_CONTAINER_ENDPOINT": f"http://{address}"}


def until(condition: Callable[[], object], process: "subprocess.Popen[str]", timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def partial(envelope: dict[str, Any]) -> list[str]:
    return [each["path"].rpartition("/")[2] for each in envelope["partial_outputs"]]


def test_a_server_that_is_killed_and_started_again_gets_the_output(process_writer: Writer, tmp_path: Path) -> None:
    with bucket_server(tmp_path) as server, line(server.address) as way:
        bucket = server.make_bucket()
        way.rate_bytes_s = 100 * MIB
        process = process_writer.spawn(LARGE, by(bucket, way.address))
        until(lambda: way.upward_bytes > 50 * MIB, process)

        server.kill()
        server.start()
        envelope = last(process)

        assert envelope["status"] == "success", envelope
        assert envelope["meta"]["transfer"] == "direct"
        hold_together(envelope, bucket)


def test_one_of_three_requests_answered_503_fails_nothing(process_writer: Writer, bucket: Bucket) -> None:
    asked = [0]

    def answer(_: Asked) -> Answer | None:
        asked[0] += 1
        return Answer(503, {"x-amz-request-id": "1"}) if asked[0] % 3 == 0 else None

    with middleman(bucket.server.address, answer=answer) as between:
        envelope = process_writer.run({f"many/{number}.bin": 1000 for number in range(30)}, by(bucket, between.address))

        assert envelope["status"] == "success", envelope
        assert sum(status == 503 for _, status in between.asked) >= 14
    hold_together(envelope, bucket)


def test_an_upload_whose_answer_was_lost_counts(process_writer: Writer, bucket: Bucket) -> None:
    with line(bucket.server.address) as way:
        way.fault("cut", upward=False, connections=1)

        envelope = process_writer.run({"a.bin": 5}, by(bucket, way.address))

        assert envelope["status"] == "success", envelope
        assert envelope["meta"]["transfer"] == "direct"
    hold_together(envelope, bucket)


def test_a_way_that_is_cut_now_and_then_delays_only(process_writer: Writer, bucket: Bucket) -> None:
    with line(bucket.server.address) as way:
        way.fault("cut", after_bytes=60 * MIB, connections=2)

        envelope = process_writer.run(LARGE, by(bucket, way.address))

        assert envelope["status"] == "success", envelope
    hold_together(envelope, bucket)


def test_what_goes_on_failing_ends_the_run_and_leaves_no_index(
    process_writer: Writer, bucket: Bucket, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # Three at once: each is given half a minute before it is given up.
    disk = small_disk(tmp_path / "disk", size="80m")
    full = next(disk)
    request.addfinalizer(lambda: next(disk, None))
    (tmp_path / "server").mkdir()
    gone = bucket.server.make_bucket()
    with line(bucket.server.address) as way, bucket_server(tmp_path / "server", data=full) as small:
        way.cut_every_bytes = 10 * MIB
        narrow = small.make_bucket()
        cut = process_writer.spawn(LARGE, by(bucket, way.address))
        crowded = process_writer.spawn(LARGE, narrow.variables("s3"))
        deserted = process_writer.spawn({"a.bin": 5, "b.bin": 5}, gone.variables("s3"), pause_s=4)
        assert deserted.stdout
        while json.loads(deserted.stdout.readline()).get("event") != "output":
            pass
        gone.remove()

        envelope = last(deserted)
        assert envelope["error"]["code"] == "ERR_STORAGE", envelope
        assert partial(envelope) == ["a.bin"]  # it was there

        envelope = last(cut)
        assert envelope["error"]["code"] == "ERR_STORAGE", envelope
        assert partial(envelope) == ["a.bin"]
        hold_together(envelope, bucket)

        envelope = last(crowded)
        assert envelope["error"]["code"] == "ERR_STORAGE", envelope
        assert partial(envelope) == ["a.bin"]
        assert narrow.read(key(envelope, "outputs.json")) is None


@pytest.mark.parametrize("skew", ["+20m", "-20m"])
def test_clocks_that_differ_are_told_before_anything_is_sent(process_writer: Writer, bucket: Bucket, skew: str) -> None:
    need_program("faketime")
    words = process_writer.words({"a.bin": 5})
    argv = ["faketime", "-f", skew, *process_writer.cli.argv(*words)]
    done = subprocess.run(
        argv,
        cwd=process_writer.cli.root,
        env=process_writer.cli.environment(bucket.variables("s3")),
        capture_output=True,
        timeout=60,
    )

    envelope = json.loads(done.stdout)
    assert envelope["error"]["code"] == "ERR_STORAGE", envelope
    assert "time" in envelope["error"]["message"]
    assert envelope["partial_outputs"] == []
    assert bucket.keys() == []
