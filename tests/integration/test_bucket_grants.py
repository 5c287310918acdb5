"""Grants as they cross the wire of a live run, misused in every way: the server refuses, or we find out."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import urllib3

from apps.processors.reference import ProcessorRef
from apps.processors.state import LocalState
from apps.storage import s3_client
from tests.integration.buckets import Bucket
from tests.integration.wire_tap import Message, Tap, tap
from tests.integration.writers import REF, Writer, hold_together, key

pytestmark = pytest.mark.bucket

SIZES = {"a.bin": 1000}


@pytest.fixture
def wire(process_writer: Writer) -> Iterator[Tap]:
    """A tap that every run goes through."""
    state, ref = LocalState(process_writer.state), ProcessorRef.parse(REF)
    record = state.container(ref)
    assert record
    with tap(record.port) as made:
        state.record_container(ref, replace(record, port=made.port))
        yield made
    state.record_container(ref, record)


def send(request: dict[str, Any], body: bytes, **changes: Any) -> int:
    """The store's status."""
    changed = {**request, **changes}
    with urllib3.PoolManager(retries=False, timeout=10) as http:
        try:
            return http.request(changed["method"], changed["url"], body=body, headers=changed["headers"]).status
        except urllib3.exceptions.ProtocolError:  # it was refused before it was read to the end
            return 403


def elsewhere(url: str) -> str:
    return url.replace("/a.bin?", "/b.bin?")


@pytest.mark.parametrize("backend", ["minio", "s3"])
def test_the_server_refuses_a_grant_that_is_used_for_anything_else(
    process_writer: Writer, wire: Tap, bucket: Bucket, backend: str
) -> None:
    statuses: dict[str, int] = {}

    def misuse(grant: Message) -> Message:
        request, headers = grant["request"], grant["request"]["headers"]
        sized = {**headers, "content-length": "1001"}
        without = {name: value for name, value in headers.items() if name != "if-none-match"}
        statuses["changed key"] = send(request, bytes(1000), url=elsewhere(request["url"]))
        statuses["changed body"] = send(request, bytes(1000))
        statuses["larger body"] = send(request, bytes(1001), headers=sized)
        statuses["overwriting"] = send(request, bytes(1000), headers=without)
        statuses["reading"] = send(request, b"", method="GET", headers={})
        statuses["removing"] = send(request, b"", method="DELETE", headers={})
        return grant

    wire.alter = misuse

    envelope = process_writer.run(SIZES, bucket.variables(backend))

    assert envelope["status"] == "success", envelope
    assert statuses.pop("changed body") == 400
    assert set(statuses.values()) == {403}, statuses
    assert len(bucket.keys()) == 3, bucket.keys()
    hold_together(envelope, bucket)

    # Once more what was right the first time:
    (grant,) = wire.grants()
    assert send(grant["request"], bucket.read(key(envelope, "a.bin")) or b"") == 412
    hold_together(envelope, bucket)


def test_an_expired_grant_is_refused(
    process_writer: Writer, wire: Tap, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "LIFETIMES_S", (1,))
    statuses: list[int] = []

    def wait(grant: Message) -> Message:
        if not statuses:
            time.sleep(2.1)
            statuses.append(send(grant["request"], bytes(1000)))
        return grant

    wire.alter = wait

    envelope = process_writer.run_here(SIZES, bucket.variables("minio"))

    assert statuses == [403]
    # The runtime, which has it only now, is refused too, and asks for another.
    assert envelope["status"] == "success", envelope
    assert len(wire.grants()) == 2
    hold_together(envelope, bucket)


def test_a_grant_for_another_key_ends_the_run(process_writer: Writer, wire: Tap, bucket: Bucket) -> None:
    wire.alter = lambda grant: {**grant, "request": {**grant["request"], "url": elsewhere(grant["request"]["url"])}}

    envelope = process_writer.run(SIZES, bucket.variables("s3"))

    assert envelope["error"]["code"] == "ERR_UPLOAD", envelope
    assert envelope["error"]["details"]["status"] == 403
    assert envelope["partial_outputs"] == []
    assert bucket.keys() == []


def test_another_executions_grant_ends_the_run(process_writer: Writer, wire: Tap, bucket: Bucket) -> None:
    first = process_writer.run(SIZES, bucket.variables("s3"))
    (theirs,) = wire.grants()
    wire.alter = lambda grant: {**theirs, "upload": grant["upload"]}

    envelope = process_writer.run({"a.bin": 1000}, bucket.variables("s3"))

    assert envelope["error"]["code"] == "ERR_UPLOAD", envelope
    assert "nothing arrived" in envelope["error"]["message"]
    assert envelope["partial_outputs"] == []
    hold_together(envelope, bucket)
    hold_together(first, bucket)


def test_a_runtime_that_says_uploaded_and_sent_nothing_ends_the_run(
    process_writer: Writer, wire: Tap, bucket: Bucket
) -> None:
    wire.alter = lambda grant: None

    envelope = process_writer.run(SIZES, bucket.variables("s3"))

    assert envelope["error"]["code"] == "ERR_UPLOAD", envelope
    assert "nothing arrived" in envelope["error"]["message"]
    assert bucket.keys() == []


def test_a_key_that_others_filled_meanwhile_is_an_output_that_exists(
    process_writer: Writer, wire: Tap, bucket: Bucket
) -> None:
    def fill(grant: Message) -> Message:
        execution_id = next(message["execution_id"] for message in wire.heard if message["type"] == "run")
        bucket.put(f"artifacts/outputs/test-writes-v1/{execution_id}/a.bin", b"theirs")
        return grant

    wire.alter = fill

    envelope = process_writer.run(SIZES, bucket.variables("s3"))

    assert envelope["error"]["code"] == "ERR_OUTPUT_EXISTS", envelope
    assert bucket.read(key(envelope, "a.bin")) == b"theirs"
    hold_together(envelope, bucket)
