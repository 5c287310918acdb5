"""A checkout with processors that do what their inputs say, built once for the process engine."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processors import add_processor
from tests.shell import Outcome, Shell

HANDLER = '''\
"""Does what its inputs say."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from processor_runtime.handler import ProviderError


def run(context):
    params = context.inputs["params"]
    if "marker" in params:
        Path(params["marker"]).write_text(context.execution_id)
    globals()[params.get("do", "echo")](context, params)


def echo(context, params):
    for word in params["text"].split():
        context.token(word + " ")
        time.sleep(params.get("pause_s", 0))
    context.write("text/response.txt", params["text"])


def tell(context, params):
    """One event of each kind."""
    context.token("word")
    context.log("a line", "warning")
    context.progress(1, 2, "step")
    context.metric("answers", 1, "answer")
    context.write("text/response.txt", "told")


def environment(context, params):
    context.write("text/response.txt", json.dumps(dict(os.environ)))


def speak(context, params):
    print("to stdout:", params["text"])
    print("to stderr:", params["text"], file=sys.stderr)
    context.write("text/response.txt", "spoken")


def sleep(context, params):
    context.token("begun")
    time.sleep(60)


def stubborn(context, params):
    """Give up at nothing but SIGTERM."""
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def take_along(context, params):
    """End the whole container, before it said anything of this execution."""
    os.kill(params["pid"], signal.SIGKILL)
    time.sleep(60)


def fail(context, params):
    raise ValueError(params["text"])


def leave(context, params):
    os._exit(3)


def provider(context, params):
    raise ProviderError("acme has too many requests", status=429, provider="acme", retryable=True)


def fill(context, params):
    context.write("text/response.txt", "first")
    time.sleep(0.3)
    context.write("extra/big.bin", bytes(params["size_bytes"]))


def surprise(context, params):
    context.write("surprise.bin", b"")


def forget(context, params):
    context.write("extra/other.bin", b"")


def forge(context, params):
    """Change what was spooled already, so that its digest is another file's."""

    def pieces():
        yield bytes(2**21)
        (spooled,) = Path(os.environ["THEORY_SCRATCH"]).glob("spool-*/*")
        with spooled.open("r+b") as file:
            file.write(b"another")

    context.write("text/response.txt", pieces())
'''

INPUTS = {
    "type": "object",
    "required": ["schema", "params"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": "v1"},
        "params": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "do": {"type": "string"},
                "text": {"type": "string"},
                "marker": {"type": "string"},
                "pause_s": {"type": "number"},
                "size_bytes": {"type": "integer"},
                "pid": {"type": "integer"},
            },
        },
    },
    "examples": [{"schema": "v1", "params": {"text": "the first example"}}],
}
SECRETS = {"optional": ["TEST_KEY"]}
OUTPUTS = [{"path": "text/response.txt", "mime": "text/plain"}, {"path": "extra/*"}]


def inputs(**params: Any) -> str:
    """An inputs document, as --inputs-json takes it."""
    return json.dumps({"schema": "v1", "params": params})


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 20) -> None:
    """Wait for `condition`; fail naming `what` when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Workshop:
    """The checkout `shell` is in, and what was made there."""

    shell: Shell
    made: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        return self.shell.root

    @property
    def state(self) -> Path:
        return self.root / "code" / ".theory"

    @property
    def artifacts(self) -> Path:
        return self.state / "artifacts"

    # making

    def write(self, name: str, handler: str = HANDLER, **sections: Any) -> str:
        """Write the processor test/NAME@1 into the checkout, and return its ref.

        `runtime` replaces single limits, other `sections` of registry.yaml are replaced whole.
        """
        ref, limits = f"test/{name}@1", {"scratch_gb": 0.05, **sections.pop("runtime", {})}
        add_processor(self.root, ref, handler, inputs=INPUTS, runtime=limits)
        file = self.root / f"registry/test/{name}/1/registry.yaml"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "secrets": SECRETS, "outputs": OUTPUTS, **sections})
        )
        return ref

    def build(self, ref: str) -> str:
        done = self.shell("processorctl", "build", "--ref", ref, "--json", timeout_s=300)
        assert done.status == 0, done
        return ref

    def have(self, name: str, handler: str = HANDLER, **sections: Any) -> str:
        """The ref of test/NAME@1, written and built unless it is."""
        if name not in self.made:
            self.build(self.write(name, handler, **sections))
            self.made.add(name)
        return f"test/{name}@1"

    # running

    def running(self, name: str = "echo", *options: str, **sections: Any) -> str:
        """The ref of test/NAME@1, built and started unless it is."""
        ref = self.have(name, **sections)
        if not self.answers(ref):
            done = self.shell("localctl", "start", "--ref", ref, *options)
            assert done.status == 0, done
        return ref

    def answers(self, ref: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port(ref)}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (KeyError, OSError):  # URLError is one; a runtime that was stopped in mid-air answers too late
            return False

    def run(self, ref: str, *options: str, **params: Any) -> Outcome:
        given = ("--inputs-json", inputs(**params)) if params else ()
        return self.shell("localctl", "run", "--ref", ref, *given, *options)

    def stop(self, ref: str) -> None:
        done = self.shell("localctl", "stop", "--ref", ref)
        assert done.status == 0, done

    def port(self, ref: str) -> int:
        """The one that is kept for the ref. Raises KeyError."""
        return int(self.read("local_ports.json")[ref])

    def read(self, name: str) -> dict[str, Any]:
        """A state file; empty when absent."""
        try:
            document: dict[str, Any] = json.loads((self.state / name).read_text())
        except FileNotFoundError:
            return {}
        return document

    def pid(self, ref: str) -> int:
        """Of the runtime's supervisor."""
        name = self.read("containers.json")["containers"][ref]["name"]
        return int(self.read(f"processes/{name}/process.json")["pid"])

    def kill(self, ref: str, number: int = signal.SIGKILL) -> None:
        """Signal the supervisor; after SIGKILL, return once its end is known."""
        name = self.read("containers.json")["containers"][ref]["name"]
        os.kill(self.pid(ref), number)
        if number == signal.SIGKILL:
            until((self.state / "processes" / name / "exit.json").exists, f"end of {name}")
