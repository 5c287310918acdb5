"""Places for more than one module of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.modal_services import ModalService, running_modal_service
from tests.integration.modal_shop import ModalShop, opened_modal_shop
from tests.integration.writers import Writer, writer


@pytest.fixture
def modal_service() -> Iterator[ModalService]:
    """A peer of Modal's SDK that runs what is deployed to it; for tests marked `docker`."""
    with running_modal_service() as made:
        yield made


@pytest.fixture(scope="session")
def built_modal_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalShop]:
    """A processor with two images in a registry; for tests marked `docker`."""
    with opened_modal_shop(tmp_path_factory.mktemp("modal-shop")) as made:
        yield made


@pytest.fixture
def modal_shop(built_modal_shop: ModalShop, modal_service: ModalService, tmp_path: Path) -> ModalShop:
    """The same in a checkout of the test's own, with a peer of Modal of its own."""
    return built_modal_shop.at(modal_service, tmp_path)


@pytest.fixture(scope="session")
def process_writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    """A processor on the process engine that writes what it is told to."""
    with writer(tmp_path_factory.mktemp("writer"), "process") as made:
        yield made
