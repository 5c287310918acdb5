"""A checkout of its own for the figures: registry/ and code/ as they are here, in a temporary folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parent.parent
BIN: Final = Path(sys.executable).parent
REF: Final = "llm/litellm@1"
LOCK: Final = Path("code/processors/llm/litellm/1/requirements.lock")
HANDLER: Final = LOCK.with_name("handler.py")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder that our commands take for a checkout, and the environment that they get."""

    root: Path
    environment: Mapping[str, str]

    def argv(self, command: str, *words: str) -> list[str]:
        return [str(BIN / command), *words]

    def __call__(self, command: str, *words: str) -> dict[str, Any]:
        """The document of a command that is asked for JSON. Raises RuntimeError when it fails."""
        argv = self.argv(command, *words, "--json")
        done = subprocess.run(argv, env=self.environment, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}{done.stderr[-2000:]}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def state(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "code" / ".theory" / name).read_text())
        return document

    @property
    def port(self) -> int:
        return int(self.state("containers.json")["containers"][REF]["port"])

    @property
    def token(self) -> str:
        return str(self.state("run_tokens.json")["tokens"][REF])


@contextmanager
def checkout(engine: str, **variables: str) -> Iterator[Checkout]:
    """Made, and at the end everything in it stopped and removed."""
    with tempfile.TemporaryDirectory(prefix="theory-bench-") as folder:
        root = Path(folder, "checkout")
        for name in ("registry", "code"):
            ignored = shutil.ignore_patterns(".theory", "__pycache__", "*.egg-info", "build")
            shutil.copytree(PROJECT / name, root / name, ignore=ignored)
        variables = {"THEORY_ROOT": str(root), "LOCAL_ENGINE": engine, "STORAGE_BACKEND": "filesystem", **variables}
        made = Checkout(root, {**os.environ, "ARTIFACTS_ROOT": str(root / "artifacts"), **variables})
        try:
            yield made
        finally:
            made("localctl", "stop", "--all")


def leave_out_the_provider(root: Path) -> None:
    """Cut the lock file down to what the runtime itself needs: a mock run uses nothing else, and it installs in s."""
    wanted = {re.match(r"[\w.-]+", each)[0] for each in requires("processor-runtime") or ()}  # type: ignore[index]
    entries = re.split(r"^(?=\S+==)", (root / LOCK).read_text(), flags=re.MULTILINE)
    kept = [entry for entry in entries if entry.partition("==")[0] in wanted]
    (root / LOCK).write_text("".join(kept))
