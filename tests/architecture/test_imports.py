"""The import rules of pyproject.toml hold."""

import subprocess
import sys
from pathlib import Path

from tests.architecture.sources import PROJECT


def test_every_module_imports_only_what_its_place_allows() -> None:
    argv = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]

    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
