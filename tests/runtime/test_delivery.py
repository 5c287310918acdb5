"""How long a store is given, and what is said when it had time enough. In this process: the pauses are shortened."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processor_runtime import codes, delivery, direct
from processor_runtime.delivery import Delivery, Expired, Failed
from processor_runtime.protocol import Grant

from tests.stores import FakeStore, fake_store


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.3)
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.02)


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with fake_store() as store:
        yield store


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "output").write_bytes(b"x" * 10)
    descriptor = os.open(tmp_path / "output", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def deliver(descriptor: int, *grants: Grant, before: Grant | None = None) -> None:
    """Follow the first grant; each further one after the former has expired."""

    async def scene() -> None:
        connections = direct.Store()
        try:
            if before is not None:
                await Delivery(connections, "before", descriptor, 10).follow(before)
            way = Delivery(connections, "a.bin", descriptor, 10)
            for grant in grants[:-1]:
                with pytest.raises(Expired):
                    await way.follow(grant)
            await way.follow(grants[-1])
        finally:
            connections.close()

    asyncio.run(scene())


def whole(store: FakeStore, path: str = "/a", lifetime_s: float = 0) -> Grant:
    return Grant(1, "direct", request=store.request(path), lifetime_s=lifetime_s)


@pytest.mark.parametrize(
    ("fault", "message", "status"),
    [
        (503, "the upload of 'a.bin' failed: the store answered 503 InternalError", 503),
        ("cut", "the upload of 'a.bin' failed: the store did not answer: ", None),
    ],
)
def test_a_store_that_goes_on_failing_is_err_storage(
    store: FakeStore, descriptor: int, fault: str | int, message: str, status: int | None
) -> None:
    store.always, store.error_code = fault, "InternalError"

    with pytest.raises(Failed) as caught:
        deliver(descriptor, whole(store))

    assert caught.value.failure.code == codes.STORAGE
    assert caught.value.failure.message.startswith(message)
    assert caught.value.failure.details["status"] == status
    assert len(store.requests) > 3


def test_patience_is_not_renewed_by_a_fresh_grant(store: FakeStore, descriptor: int) -> None:
    store.always = 503

    with pytest.raises(Failed):
        deliver(descriptor, *[whole(store, lifetime_s=0.1)] * 3, whole(store))


def test_a_refusal_after_the_end_of_the_grant_asks_for_another(store: FakeStore, descriptor: int) -> None:
    store.faults = [503, 403]

    deliver(descriptor, whole(store, lifetime_s=0.000001), whole(store, lifetime_s=0.000001), whole(store))

    assert store.objects == {"/a": b"x" * 10}


def test_a_grant_that_the_store_calls_expired_is_doubted_once(store: FakeStore, descriptor: int) -> None:
    store.always, store.error_code = 403, "AccessDenied"

    with pytest.raises(Failed):
        deliver(descriptor, whole(store, lifetime_s=900), whole(store, lifetime_s=900))

    assert len(store.requests) == 2


def test_a_store_that_answered_before_may_be_away_for_a_while(store: FakeStore, descriptor: int) -> None:
    nowhere = FakeStore(port=1)

    with pytest.raises(direct.Unreachable):
        deliver(descriptor, whole(nowhere), before=whole(store))


def test_a_store_that_was_taken_already_is_the_controllers_to_judge(store: FakeStore, descriptor: int) -> None:
    store.always = 412

    deliver(descriptor, whole(store))

    assert len(store.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(409, "ConditionalRequestConflict"), (409, "OperationAborted"), (400, "RequestTimeout")]
)
def test_a_store_that_says_to_send_it_again_is_sent_it_again(
    store: FakeStore, descriptor: int, status: int, code: str
) -> None:
    store.faults, store.error_code = [status, status], code

    deliver(descriptor, whole(store))

    assert store.objects == {"/a": b"x" * 10}


def test_another_conflict_is_a_refusal(store: FakeStore, descriptor: int) -> None:
    store.always, store.error_code = 409, "InvalidBucketState"

    with pytest.raises(Failed) as caught:
        deliver(descriptor, whole(store))

    assert caught.value.failure.code == codes.UPLOAD
    assert len(store.requests) == 1


def test_no_message_holds_a_url(descriptor: int) -> None:
    secret = {"method": "PUT", "url": "http://127.0.0.1:1/a\r\n?X-Amz-Signature=0123", "headers": {"A": "b\r\nc"}}

    with pytest.raises((Failed, direct.Unreachable)) as caught:
        deliver(descriptor, Grant(1, "direct", request=secret))

    assert "0123" not in str(caught.value)
