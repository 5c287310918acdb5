"""Our commands as a user types them: a subprocess with an environment that the test controls."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent

# What a command may need of the machine it runs on; nothing else of the developer's environment reaches it.
_MACHINE = ("PATH", "DOCKER_HOST", "DOCKER_CONTEXT", "PROCESSOR_BUILD_CONTEXTS", "PROCESSOR_BUILD_SECRETS")
_NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY")
_PREFIXES = ("PIP_", "COVERAGE_")


def copy_checkout(target: Path) -> Path:
    """Copy what is a checkout (registry/ and code/, no local state) to the folder `target`, and return it."""
    for name in ("registry", "code"):
        ignored = shutil.ignore_patterns(".theory", "__pycache__", "*.egg-info", "build")
        shutil.copytree(PROJECT / name, target / name, ignore=ignored, symlinks=True)
    return target


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as exactly one JSON document on one line."""
        assert self.stdout.endswith("\n"), f"no line on stdout; stderr: {self.stderr}"
        assert self.stdout.count("\n") == 1, f"more than one line on stdout: {self.stdout}"
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def documents(self) -> list[dict[str, Any]]:
        """stdout as one JSON object a line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


@dataclass(frozen=True, slots=True)
class Shell:
    """A terminal in `root`. Call it for a command that ends by itself; `spawn` for one that is watched or stopped."""

    root: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    spawned: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes = "",
        cwd: Path | None = None,
        timeout_s: float = 60,
    ) -> Outcome:
        """Run `manage.py WORDS…`. Raises subprocess.TimeoutExpired after `timeout_s`, the command killed.

        A warning in the command (an unclosed socket, say) is an error: it would be on stderr.
        """
        done = subprocess.run(
            self.argv(*words),
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            timeout=timeout_s,
            cwd=cwd or self.root,
            env=self.environment(env),
        )
        outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Exception ignored" not in outcome.stderr, outcome.stderr
        return outcome

    def spawn(
        self, *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start `manage.py WORDS…` with pipes on all three ends; the fixture ends it with the test."""
        process = subprocess.Popen(
            self.argv(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self.root,
            env=self.environment(env),
        )
        self.spawned.append(process)
        return process

    def argv(self, *words: str) -> list[str]:
        # -W and not PYTHONWARNINGS: it must not reach pip and whatever else the command starts.
        return [sys.executable, "-W", "error", str(PROJECT / "manage.py"), *words]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a command: of the caller's only what the machine needs, then the test's."""
        own = os.environ
        machine = {name: own[name] for name in (*_MACHINE, *_NETWORK) if name in own}
        tools = {name: value for name, value in own.items() if name.startswith(_PREFIXES)}
        docker = {"DOCKER_CONFIG": own.get("DOCKER_CONFIG", str(Path.home() / ".docker"))}
        place = {"HOME": str(self.home), "LANG": "C.UTF-8", "THEORY_ROOT": str(self.root)}
        return {**machine, **tools, **docker, **place, **self.variables, **(env or {})}

    def close(self) -> None:
        """End what was spawned and stop whatever processor the commands left running."""
        for process in self.spawned:
            process.kill()
            process.communicate()
        if (self.root / "code" / ".theory" / "containers.json").exists():
            self("localctl", "stop", "--all")
