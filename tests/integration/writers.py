"""A processor that writes what it is told to, in a checkout of its own, and what then must be in a bucket."""

import json
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from apps.processors import running, wiring
from apps.processors.asking import Asked
from apps.settings import Settings
from apps.storage.base import StorageBackend
from tests.integration.buckets import Bucket
from tests.processors import add_processor
from tests.shell import Shell, copy_checkout

REF = "test/writes@1"
MIB = 2**20
HANDLER = """
    import random, time

    def pieces(path, size):
        block = random.Random(path).randbytes(2**20)
        return (block[: min(2**20, size - at)] for at in range(0, size, 2**20))

    def run(context):
        for path, size in context.inputs["sizes"].items():
            context.write(path, pieces(path, size))
            time.sleep(context.inputs.get("pause_s", 0))
"""


def digest(path: str, size: int) -> str:
    """What the processor writes under `path`."""
    block, found = random.Random(path).randbytes(MIB), sha256()  # noqa: S311  as the handler
    for at in range(0, size, MIB):
        found.update(block[: min(MIB, size - at)])
    return f"sha256:{found.hexdigest()}"


@dataclass(frozen=True, slots=True)
class Writer:
    """The processor, started, and a terminal beside it."""

    cli: Shell
    engine: str

    @property
    def state(self) -> Path:
        return self.cli.root / "code" / ".theory"

    def words(self, sizes: Mapping[str, int], **inputs: object) -> list[str]:
        return ["localctl", "run", "--ref", REF, "--inputs-json", json.dumps({"sizes": sizes, **inputs}), "--json"]

    def run(self, sizes: Mapping[str, int], env: Mapping[str, str], **inputs: object) -> dict[str, Any]:
        """The envelope of one execution."""
        return self.cli(*self.words(sizes, **inputs), env=env, timeout_s=150).document

    def run_here(
        self,
        sizes: Mapping[str, int],
        env: Mapping[str, str],
        storage_of: Callable[[Settings], StorageBackend] = wiring.storage,
    ) -> dict[str, Any]:
        """The envelope of an execution that is asked for by this very process, which may have changed what it is."""
        variables = self.cli.environment(env)
        ran = running.run(
            Asked(REF, "mock", lambda _: {"sizes": sizes}),
            settings_of=lambda: Settings.read(variables, self.cli.root),
            state_of=wiring.state,
            storage_of=storage_of,
            engine_of=wiring.engine,
            on_event=lambda _: None,
            warn=lambda _: None,
        )
        return ran.envelope

    def spawn(self, sizes: Mapping[str, int], env: Mapping[str, str], **inputs: object) -> "subprocess.Popen[str]":
        """One execution on its way, with its events."""
        return self.cli.spawn(*self.words(sizes, **inputs), "--stream", env=env)


@contextmanager
def writer(folder: Path, engine: str, variables: Mapping[str, str] | None = None) -> Iterator[Writer]:
    root = copy_checkout(folder / "checkout")
    add_processor(root, REF, HANDLER, outputs=("*.bin", "many/*.bin"), runtime={"scratch_gb": 2, "timeout_s": 300})
    cli = Shell(root, home=folder, variables={"LOCAL_ENGINE": engine, **(variables or {})})
    try:
        for words in (("processorctl", "build"), ("localctl", "start")):
            done = cli(*words, "--ref", REF, "--json", timeout_s=600)
            assert done.status == 0, done
        yield Writer(cli, engine)
    finally:
        cli.close()


def last(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The envelope of a spawned run."""
    stdout, stderr = process.communicate(timeout=150)
    assert stdout, stderr
    envelope: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return envelope


def key(envelope: dict[str, Any], name: str) -> str:
    return f"artifacts/outputs/test-writes-v1/{envelope['execution_id']}/{name}"


def hold_together(envelope: dict[str, Any], bucket: Bucket) -> None:
    """What is true of every end: what the envelope lists is there, whole; an index is there after a success alone."""
    listed = envelope["outputs"] if envelope["status"] == "success" else envelope["partial_outputs"]
    for output in listed:
        content = bucket.read(output["path"][1:])
        assert content is not None, output
        assert (len(content), f"sha256:{sha256(content).hexdigest()}") == (output["size_bytes"], output["digest"])
        name = output["path"].partition(f"{envelope['execution_id']}/")[2]
        assert output["digest"] == digest(name, output["size_bytes"])
    index, receipt = (bucket.read(key(envelope, name)) for name in ("outputs.json", "receipt.json"))
    if envelope["status"] == "success":
        assert json.loads(receipt or b"") == envelope
        assert json.loads(index or b"")["outputs"] == envelope["outputs"]
    else:
        assert (index, receipt) == (None, None)
