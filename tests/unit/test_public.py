"""Which stores a deployment elsewhere may upload to."""

import pytest

from apps.settings import BucketSettings
from apps.storage.public import is_public


@pytest.mark.parametrize(
    ("endpoint", "container_endpoint", "expected"),
    [
        (None, None, True),  # AWS itself
        ("https://8.8.8.8", None, True),
        ("http://127.0.0.1:9000", None, False),
        ("http://localhost:9000", None, False),
        ("http://10.0.0.7:9000", None, False),
        ("http://[::1]:9000", None, False),
        ("http://192.168.1.2:9000", "https://8.8.8.8", True),
        ("https://8.8.8.8", "http://172.17.0.1:9000", False),
        ("http://minio.nowhere.invalid:9000", None, False),
    ],
)
def test_a_store_is_public_by_the_address_that_containers_use(
    endpoint: str | None, container_endpoint: str | None, expected: bool
) -> None:
    bucket = BucketSettings("theory-artifacts", "us-east-1", endpoint, container_endpoint)

    assert is_public(bucket) is expected


def test_a_folder_is_not_public() -> None:
    assert not is_public(None)
