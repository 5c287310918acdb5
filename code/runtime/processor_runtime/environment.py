"""What the engine tells the runtime: the variables of its environment, read once, and the spec among them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from processor_runtime import system

GIB: Final = 1024**3
MIN_REDACTED_CHARACTERS: Final = 6  # a shorter value would blank half of every message


class BadEnvironment(Exception):
    """A variable is missing or wrong; the message names it."""


@dataclass(frozen=True, slots=True)
class OutputRule:
    """One entry of `outputs`: a path, plain or a glob, and its media type."""

    path: str
    mime: str | None

    @property
    def is_glob(self) -> bool:
        return any(character in self.path for character in "*?[")


@dataclass(frozen=True, slots=True)
class Spec:
    """The parts of registry.yaml that concern a running processor."""

    ref: str
    canonical: bytes
    concurrency: int
    memory_bytes: int | None
    """Of one worker; None with a GPU, whose drivers reserve address space far beyond their use."""
    scratch_bytes: int
    required_secrets: tuple[str, ...]
    optional_secrets: tuple[str, ...]
    inputs: Mapping[str, Any]
    outputs: tuple[OutputRule, ...]

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """From the JSON of THEORY_SPEC. Raises BadEnvironment."""
        try:
            document = json.loads(text)
            runtime, secrets = document["runtime"], document.get("secrets") or {}
            return cls(
                ref=str(document["ref"]),
                canonical=text.encode(),
                concurrency=int(runtime["concurrency"]),
                memory_bytes=None if runtime.get("gpu") else int(runtime["memory_gb"] * GIB),
                scratch_bytes=int(runtime["scratch_gb"] * GIB),
                required_secrets=tuple(secrets.get("required") or ()),
                optional_secrets=tuple(secrets.get("optional") or ()),
                inputs=document["inputs"],
                outputs=tuple(OutputRule(rule["path"], rule.get("mime")) for rule in document["outputs"]),
            )
        except KeyError as exc:
            raise BadEnvironment(f"THEORY_SPEC has no {exc}") from exc
        except (ValueError, TypeError, AttributeError) as exc:
            raise BadEnvironment(f"THEORY_SPEC is not a spec: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything the runtime was told, secrets excepted."""

    port: int
    bind: str
    scratch: Path
    spec: Spec
    image_digest: str
    source: str
    token: str
    """Empty: the door asks for none."""

    @property
    def in_container(self) -> bool:
        """Whether the machine around us is ours alone, /tmp included."""
        return self.bind == "0.0.0.0"  # noqa: S104

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Environment":
        """From PORT and the THEORY_ variables. Raises BadEnvironment."""
        source = environ.get("THEORY_SOURCE") or "build"
        if source not in ("pin", "build"):
            raise BadEnvironment(f"THEORY_SOURCE is {source!r}, not pin or build")
        return cls(
            port=_port(_needed(environ, "PORT")),
            bind=_needed(environ, "THEORY_BIND"),
            scratch=Path(_needed(environ, "THEORY_SCRATCH")).absolute(),
            spec=Spec.parse(_needed(environ, "THEORY_SPEC")),
            image_digest=_needed(environ, "THEORY_IMAGE_DIGEST"),
            source=source,
            token=environ.get("THEORY_RUN_TOKEN", ""),
        )


def _needed(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise BadEnvironment(f"{name} is not set")
    return value


def _port(text: str) -> int:
    """0 asks the kernel for a free one."""
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise BadEnvironment(f"PORT is {text!r}, not a port number")
    return int(text)


def take_secrets(spec: Spec) -> dict[str, str]:
    """Move the declared secrets, and the run token, out of this process's environment. Empty ones count as absent."""
    found = {}
    for name in (*spec.required_secrets, *spec.optional_secrets):
        value = os.environ.get(name)
        if value is not None:
            system.wipe_variable(name, value)
        if value:
            found[name] = value
    token = os.environ.get("THEORY_RUN_TOKEN")
    if token is not None:
        system.wipe_variable("THEORY_RUN_TOKEN", token)
    return found


def redact(text: str, values: tuple[str, ...]) -> str:
    """`text` with every secret value in it replaced by `***`; the longest first, as one may hold another."""
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_REDACTED_CHARACTERS:
            text = text.replace(value, "***")
    return text
