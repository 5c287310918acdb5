"""Settings: what the environment and the caller's folder say."""

from pathlib import Path

import pytest

from apps.errors import ConfigurationError
from apps.settings import Settings


def test_a_current_folder_that_is_gone_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(ConfigurationError, match="the current folder can't be had: No such file or directory"):
        Settings.read({})
