"""Places for more than one module of these tests."""

from collections.abc import Iterator

import pytest

from tests.integration.modal_services import ModalService, running_modal_service


@pytest.fixture
def modal_service() -> Iterator[ModalService]:
    """A peer of Modal's SDK that runs what is deployed to it; for tests marked `docker`."""
    with running_modal_service() as made:
        yield made
