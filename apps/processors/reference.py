"""The values that name things: ProcessorRef, Digest, ImageReference, Platform. Pure parsing, no I/O."""

import re
from dataclasses import dataclass
from typing import Final, Self

from apps.errors import InvalidReference, UsageError

_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_REF = re.compile(rf"({_WORD})/({_WORD})@([1-9][0-9]{{0,8}})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# host[:port]/path, after the OCI distribution spec.
_REPOSITORY = (  # compiled when it is needed first: few runs have a pin
    r"(?:localhost|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)(?::[0-9]{1,5})?"
    r"(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+"
)


@dataclass(frozen=True, slots=True, order=True)
class ProcessorRef:
    """`namespace/name@version`."""

    namespace: str
    name: str
    version: int

    @classmethod
    def parse(cls, text: str) -> Self:
        match = _REF.fullmatch(text)
        if not match:
            raise InvalidReference(
                f"{text!r} is not a processor ref", hint="a ref is namespace/name@version, e.g. llm/litellm@1"
            )
        return cls(match[1], match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}@{self.version}"

    @property
    def slug(self) -> str:
        """`llm/litellm@1` → `llm-litellm-v1`."""
        return f"{self.namespace}-{self.name}-v{self.version}"


def parse_digest(text: str) -> str:
    """`text` when it is `sha256:` and 64 lower-case hex digits; InvalidReference otherwise."""
    if not _DIGEST.fullmatch(text):
        raise InvalidReference(f"{text!r} is not a digest", hint="a digest is sha256:<64 lower-case hex digits>")
    return text


def names_a_host(word: str) -> bool:
    """Whether Docker takes the part before the first slash for a registry's host: it needs a dot, a port or a capital.

    Asked for everywhere, so that `org/image@sha256:…` never silently means somebody's default registry.
    """
    return word == "localhost" or "." in word or ":" in word or word != word.lower()


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A pinned image, `host[:port]/repository@sha256:…`: the same bytes on every machine."""

    repository: str
    digest: str

    def __post_init__(self) -> None:
        if not re.fullmatch(_REPOSITORY, self.repository):
            raise InvalidReference(
                f"{self.repository!r} is not an image repository", hint="use host[:port]/repository@sha256:<64 hex>"
            )
        if not names_a_host(self.repository.partition("/")[0]):
            raise InvalidReference(
                f"{self.repository!r} names no registry: to Docker it is docker.io/{self.repository}",
                hint="use host[:port]/repository@sha256:<64 hex>; docker.io is the host of Docker Hub",
            )
        parse_digest(self.digest)

    @classmethod
    def parse(cls, text: str) -> Self:
        repository, at, digest = text.partition("@")
        if not at:
            raise InvalidReference(f"{text!r} is not pinned", hint="use host[:port]/repository@sha256:<64 hex>")
        return cls(repository, digest)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An OCI platform that we build for: `linux/amd64` or `linux/arm64`."""

    architecture: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `linux/amd64` or the short `amd64`; UsageError for any other."""
        architecture = text.removeprefix("linux/")
        if architecture not in ("amd64", "arm64"):
            raise UsageError(f"unknown platform {text!r}", hint="use amd64 or arm64 (linux/amd64, linux/arm64)")
        return cls(architecture)

    @classmethod
    def parse_list(cls, text: str) -> tuple[Self, ...]:
        """From `linux/amd64,linux/arm64`: in the order given, each once."""
        return tuple(dict.fromkeys(cls.parse(word.strip()) for word in text.split(",")))

    @classmethod
    def of_machine(cls, machine: str) -> Self:
        """From `uname -m` or what a Docker Engine calls its architecture."""
        return cls.parse({"x86_64": "amd64", "aarch64": "arm64"}.get(machine.lower(), machine.lower()))

    def __str__(self) -> str:
        return f"linux/{self.architecture}"


AMD64: Final = Platform("amd64")
ARM64: Final = Platform("arm64")
PLATFORMS: Final = (AMD64, ARM64)
