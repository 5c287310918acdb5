"""ProcessorSpec: what registry.yaml says of one processor, and what makes such a document wrong."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import rfc8785

from apps.errors import InvalidReference
from apps.processors.reference import PLATFORMS, ImageReference, Platform, ProcessorRef
from apps.processors.schemas import Path as Steps
from apps.processors.schemas import SchemaError, Validator, Violation, compile_schema, violations

if TYPE_CHECKING:
    from apps.processors.adapters.base import Limits

GIB: Final = 1024**3
MAX_SPEC_BYTES: Final = 96 * 1024  # it travels in one environment variable, of which Linux takes 128 KiB
SPEC_KEYS: Final = ("ref", "runtime", "secrets", "inputs", "outputs")

# What no image may hold: with the first a pin would change it, the second has tokens.
_NO_CONTEXT: Final = ("registry/", "code/.theory/")

# What an engine or Modal sets, what storage is reached with, and what decides how a process starts.
_RESERVED = (  # compiled when it is needed first, which no run does
    r"PORT|PATH|HOME|TMPDIR|TZ|LANG|LC_ALL|USER|HOSTNAME|OMP_NUM_THREADS|PYTHON.*|LD_.*"
    r"|(?:THEORY|AWS|MINIO|ARTIFACTS|MODAL)_.*|STORAGE_BACKEND"
    r"|(?:HTTPS?|NO|ALL)_PROXY|SSL_CERT_(?:FILE|DIR)|(?:REQUESTS|CURL)_CA_BUNDLE"
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a container of the processor gets, and how long an execution may take."""

    port: int
    cpu: float
    memory_gb: float
    scratch_gb: float
    timeout_s: float
    concurrency: int
    gpu: str | None

    def limits(self) -> "Limits":
        from apps.processors.adapters.base import Limits  # only an engine asks: a run need not load its values

        return Limits(self.cpu, int(self.memory_gb * GIB), int(self.scratch_gb * GIB), self.gpu)


# Named tuples where nothing is checked: frozen dataclasses take four times as long to make, and every run pays for it.


class Secrets(NamedTuple):
    """Names of the variables that a processor gets from the caller's environment."""

    required: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.required + self.optional


class OutputRule(NamedTuple):
    """One entry of `outputs`: a path, plain or a glob, and its media type."""

    path: str
    mime: str | None


class Build(NamedTuple):
    """Where the image is made from; both relative to the root folder."""

    context: str
    dockerfile: str


@dataclass(frozen=True, slots=True)
class ProcessorSpec:
    """One registry.yaml, checked."""

    ref: ProcessorRef
    file: Path
    repository: str
    pins: Mapping[Platform, ImageReference | None]
    """Every platform that we build for."""
    pull_secret: str | None
    build: Build
    runtime: Runtime
    secrets: Secrets
    inputs: Mapping[str, Any]
    """The JSON Schema of the inputs document. It compiles, and its examples fit it."""
    outputs: tuple[OutputRule, ...]
    document: Mapping[str, Any]
    """The spec: SPEC_KEYS and nothing else, numbers as they were written."""
    spec_json: str
    """The spec as canonical JSON (RFC 8785)."""
    spec_digest: str
    """`sha256:` + 64 hex digits of `spec_json`."""


class Problem(NamedTuple):
    """What is wrong at one place of the document."""

    path: Steps
    expected: str
    found: str
    at_key: bool = False
    """Whether the key is wrong, not its value."""


class InvalidSpec(Exception):
    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def parse(data: Any, *, file: Path, ref: ProcessorRef) -> ProcessorSpec:
    """The spec in the plain data of `file`, which lies in the folder of `ref`. Raises InvalidSpec."""
    shape = list(_shape(data))
    broken = {problem.path[0] for problem in shape if problem.path}
    sound = {key: data[key] for key in _MEANING if isinstance(data, dict) and key in data and key not in broken}
    problems = shape + list(chain.from_iterable(_MEANING[key](value, ref) for key, value in sound.items()))
    if problems:
        raise InvalidSpec(problems)
    found = of(data, file=file)
    if (size := len(found.spec_json.encode())) > MAX_SPEC_BYTES:
        expected = f"a spec of at most {MAX_SPEC_BYTES} bytes of canonical JSON"
        raise InvalidSpec([Problem((), expected, f"{size} bytes")])
    return found


def of(data: dict[str, Any], *, file: Path) -> ProcessorSpec:
    """The spec in plain data that `parse` has accepted."""
    document = {key: data[key] for key in SPEC_KEYS}
    canonical = rfc8785.dumps(document)
    image, runtime, secrets = data["image"], data["runtime"], data["secrets"]
    pins = {platform: image["platforms"].get(platform.architecture) for platform in PLATFORMS}
    return ProcessorSpec(
        ref=ProcessorRef.parse(data["ref"]),
        file=file,
        repository=image["repository"],
        pins={platform: ImageReference.parse(pin) if pin else None for platform, pin in pins.items()},
        pull_secret=image.get("pull_secret"),
        build=Build(data["build"]["context"], data["build"]["dockerfile"]),
        # 8000.0 is a whole number to JSON Schema
        runtime=Runtime(
            **{"gpu": None, **runtime, "port": int(runtime["port"]), "concurrency": int(runtime["concurrency"])}
        ),
        secrets=Secrets(tuple(secrets.get("required", ())), tuple(secrets.get("optional", ()))),
        inputs=data["inputs"],
        outputs=tuple(OutputRule(rule["path"], rule.get("mime")) for rule in data["outputs"]),
        document=document,
        spec_json=canonical.decode(),
        spec_digest="sha256:" + hashlib.sha256(canonical).hexdigest(),
    )


def data_of(spec: ProcessorSpec) -> dict[str, Any]:
    """Plain data that `of` makes the same spec of."""
    pins = {platform.architecture: str(pin) if pin else None for platform, pin in spec.pins.items()}
    image = {"repository": spec.repository, "platforms": pins, "pull_secret": spec.pull_secret}
    return {**spec.document, "image": image, "build": spec.build._asdict()}


# The shape, by registry.schema.json


@cache
def _schema() -> tuple[dict[str, Any], Validator]:
    schema = json.loads(Path(__file__).with_name("registry.schema.json").read_text("utf-8"))
    return schema, compile_schema(schema)


def _shape(data: Any) -> Iterator[Problem]:
    schema, validator = _schema()
    for violation in violations(validator, data):
        yield from _problems(violation, schema, data)


def _problems(violation: Violation, schema: Any, data: Any) -> Iterator[Problem]:
    if violation.keyword == "additionalProperties":
        for step in violation.schema_path[:-1]:
            schema = schema[step]
        known = ", ".join(schema["properties"])
        for name in violation.names:
            yield Problem((*violation.path, name), f"one of {known}", "an unknown key", at_key=True)
    elif violation.keyword == "required":
        for name in violation.names:
            yield Problem((*violation.path, name), "this key", "nothing")
    else:
        for step in violation.schema_path[:-1]:
            schema = schema[step]
        for step in violation.path:
            data = data[step]
        yield Problem(violation.path, schema["description"], _shown(data))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


# The meaning, section by section


def _check_ref(value: str, ref: ProcessorRef) -> Iterator[Problem]:
    if value != str(ref):
        yield Problem(("ref",), f"{ref}, after the folder", _shown(value))


def _check_image(image: dict[str, Any], ref: ProcessorRef) -> Iterator[Problem]:
    if not _parses(f"{image['repository']}@sha256:{'0' * 64}"):
        expected = "host/repository in lower case, without tag or digest"
        yield Problem(("image", "repository"), expected, _shown(image["repository"]))
    for name, pin in image["platforms"].items():
        if pin is not None and not _parses(pin):
            yield Problem(("image", "platforms", name), "host/repository@sha256:<64 hex>, or nothing", _shown(pin))


def _parses(text: str) -> bool:
    try:
        ImageReference.parse(text)
    except InvalidReference:
        return False
    return True


def _check_build(build: dict[str, Any], ref: ProcessorRef) -> Iterator[Problem]:
    for name, path in build.items():
        if not _is_plain(path):
            yield Problem(("build", name), "a relative path without '..'", _shown(path))
        elif name == "context" and f"{path}/".startswith(_NO_CONTEXT):
            yield Problem(("build", name), "a folder outside registry/ and code/.theory/", _shown(path))


def _check_secrets(secrets: dict[str, list[str]], ref: ProcessorRef) -> Iterator[Problem]:
    for kind, names in secrets.items():
        for position, name in enumerate(names):
            if re.fullmatch(_RESERVED, name):
                yield Problem(("secrets", kind, position), "a name that is not kept for the engine", name)
            if kind == "optional" and name in secrets.get("required", ()):
                yield Problem(("secrets", kind, position), "a name that is not among the required ones", name)


def _check_inputs(inputs: dict[str, Any], ref: ProcessorRef) -> Iterator[Problem]:
    try:
        validator = compile_schema(inputs)
    except SchemaError as exc:
        yield Problem(("inputs", *exc.path), "JSON Schema 2020-12", str(exc))
        return
    for position, example in enumerate(inputs.get("examples", ())):
        path: Steps = ("inputs", "examples", position)
        if not isinstance(example, dict):
            yield Problem(path, "an inputs document", _shown(example))
            continue
        for violation in violations(validator, example):
            yield Problem((*path, *violation.path), "an example that fits the schema", violation.message)


def _check_outputs(outputs: list[dict[str, Any]], ref: ProcessorRef) -> Iterator[Problem]:
    seen = set()
    for position, rule in enumerate(outputs):
        path: Steps = ("outputs", position, "path")
        if not _is_plain(rule["path"]):
            yield Problem(path, "a relative path without '..', empty parts or control characters", _shown(rule["path"]))
        if rule["path"].lower() in ("outputs.json", "receipt.json"):  # some stores tell no case apart
            yield Problem(path, "a name that is not kept for index and receipt", rule["path"])
        if rule["path"] in seen:
            yield Problem(path, "each path once", f"{rule['path']} again")
        seen.add(rule["path"])


def _is_plain(path: str) -> bool:
    """Whether `path` is relative, in the one spelling that stays below where it starts."""
    printable = all(character.isprintable() for character in path) and "\\" not in path
    return printable and not any(part in ("", ".", "..") for part in path.split("/"))


_MEANING: Final[Mapping[str, Callable[[Any, ProcessorRef], Iterator[Problem]]]] = {
    "ref": _check_ref,
    "image": _check_image,
    "build": _check_build,
    "secrets": _check_secrets,
    "inputs": _check_inputs,
    "outputs": _check_outputs,
}
