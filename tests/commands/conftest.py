"""One checkout with built test processors for all tests of the commands: its virtual environment takes seconds."""

from collections.abc import Iterator

import pytest

from tests.commands.workshop import Workshop
from tests.shell import Shell, copy_checkout


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A checkout on the process engine. Tests share it: each uses refs of its own, or leaves shared ones running."""
    folder = tmp_path_factory.mktemp("workshop")
    shell = Shell(copy_checkout(folder / "checkout"), home=folder, variables={"LOCAL_ENGINE": "process"})
    yield Workshop(shell)
    shell.close()
