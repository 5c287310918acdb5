"""Processors written for a test, into a checkout of its own: small enough to build in seconds on either engine."""

import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from tests.shell import PROJECT

ORIGINAL = "processors/llm/litellm/1"
# The one step of the original's Dockerfile that knows what its packages hold.
_PRUNING = re.compile(r"^RUN cd /out/deps && rm .*?\\\n    && (?=python -m compileall)", re.MULTILINE | re.DOTALL)


def add_processor(
    root: Path,
    ref: str,
    handler: str,
    *,
    outputs: tuple[str, ...] = (),
    inputs: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
) -> None:
    """Write the processor `ref` into the checkout `root`.

    `handler` is its handler.py; `outputs` are paths or globs; `inputs` is a JSON Schema, by default of any object;
    `runtime` replaces single limits. Its Dockerfile is the one of llm/litellm@1, its lock file the runtime's part
    of requirements-dev.lock.
    """
    name, _, version = ref.partition("@")
    folder = f"processors/{name}/{version}"
    limits = {"port": 8000, "cpu": 1, "memory_gb": 0.5, "scratch_gb": 0.5, "timeout_s": 60, "concurrency": 4}
    document = {
        "schema": 1,
        "ref": ref,
        "image": {"repository": f"localhost:5000/{name}", "platforms": {"amd64": None, "arm64": None}},
        "build": {"context": "code", "dockerfile": f"code/{folder}/Dockerfile"},
        "runtime": {**limits, "gpu": None, **(runtime or {})},
        "secrets": {"required": [], "optional": []},
        "inputs": inputs or {"type": "object", "examples": [{}]},
        "outputs": [{"path": path, "mime": "application/octet-stream"} for path in outputs],
    }
    written = {
        root / "registry" / name / version / "registry.yaml": json.dumps(document),  # JSON is YAML
        root / "code" / folder / "handler.py": textwrap.dedent(handler),
        root / "code" / folder / "requirements.lock": runtime_lock(),
        root / "code" / folder / "Dockerfile": _dockerfile(folder),
        root / "code" / folder / "Dockerfile.dockerignore": _original("Dockerfile.dockerignore", folder),
    }
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def runtime_lock() -> str:
    """A lock file of what the runtime needs and nothing else."""
    project = tomllib.loads((PROJECT / "code" / "runtime" / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w.-]", each)[0] for each in project["dependencies"]}
    entries = re.split(r"^(?=\S+==)", (PROJECT / "requirements-dev.lock").read_text(), flags=re.MULTILINE)
    found = {each.partition("==")[0]: each for each in entries}
    return "".join(found[name] for name in sorted(needed))


def _original(file: str, folder: str) -> str:
    return (PROJECT / "code" / ORIGINAL / file).read_text().replace(ORIGINAL, folder)


def _dockerfile(folder: str) -> str:
    text, pruned = _PRUNING.subn("RUN ", _original("Dockerfile", folder))
    assert pruned == 1, "the Dockerfile of llm/litellm@1 has changed: see _PRUNING"
    return text
