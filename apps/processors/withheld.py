"""What a build was given by the machine that ran it, and how it is kept out of what is told of the build."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

WITHHELD: Final = "***"
PUBLIC: Final = ("build-arg:SOURCE_DATE_EPOCH",)
"""Build arguments whose value may be told."""

_USERINFO: Final = re.compile(r"(?<=://)[^/\s@]+(?=@(?!sha256:))")
_SHORTEST: Final = 6  # characters of a build argument that is looked for: `true` would black out half the Dockerfile
_IMAGE: Final = "docker-image://"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image as BuildKit may spell it: in full, with a tag, a digest, both or neither."""

    repository: str
    """As people write it: python, not docker.io/library/python."""
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        name, _, digest = text.partition("@")
        folder, slash, last = name.rpartition("/")
        last, _, tag = last.partition(":")
        return cls(familiar(f"{folder}{slash}{last}"), tag, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{'@' if self.digest else ''}{self.digest}"

    @property
    def host(self) -> str:
        """With its port; empty for Docker Hub."""
        first, slash, _ = self.repository.partition("/")
        return first if slash and (first == "localhost" or re.search("[.:]", first)) else ""


@dataclass(frozen=True, slots=True)
class Withheld:
    """What this build was given by its machine, and must not be told."""

    texts: tuple[str, ...]
    """Replaced wherever they stand, the longest first."""
    written: tuple[tuple[Reference, Reference], ...]
    """What a named build context put in the place of an image, and what the Dockerfile calls it."""

    @classmethod
    def of(cls, arguments: Mapping[str, str], secrets: Sequence[str], paths: Sequence[str]) -> "Withheld":
        """From the arguments in the provenance itself, the values of secrets and this machine's folders."""
        contexts = {name[8:].partition("::")[0]: value for name, value in arguments.items() if name[:8] == "context:"}
        written = tuple(
            (Reference.parse(value.removeprefix(_IMAGE)), Reference.parse(name))
            for name, value in sorted(contexts.items())
            if value.startswith(_IMAGE)
        )
        texts = {*secrets, *(path for path in paths if path.count("/") >= 2), *_values(arguments)}
        texts |= {text for value in contexts.values() for text in _address(value)}
        for used, name in written:
            texts |= _mirror(used, name)
        known = {part for _, name in written for part in (name.host, name.repository)}
        found = {form for text in texts - known if text for form in (text, quote(text, safe=""), quote(text))}
        return cls(tuple(sorted(found, key=lambda text: (-len(text), text))), written)

    def clean(self, text: str) -> str:
        for hidden in self.texts:
            text = text.replace(hidden, WITHHELD)
        return _USERINFO.sub(WITHHELD, text)

    def name(self, used: Reference) -> Reference | None:
        """What the Dockerfile calls the image that BuildKit knows as `used`; None when no context replaced it."""
        found = [
            (used.digest != given.digest or not given.digest, used.tag != given.tag, name)
            for given, name in self.written
            if given.repository == used.repository
        ]
        return min(found, key=lambda each: (*each[:2], str(each[2])))[2] if found else None


def _values(arguments: Mapping[str, str]) -> Iterator[str]:
    for name, value in arguments.items():
        if name.startswith("build-arg:") and name not in PUBLIC and len(value) >= _SHORTEST:
            yield value


def _address(context: str) -> Iterator[str]:
    """Where a named context that is no image comes from."""
    if not context.startswith((_IMAGE, "local:", "input:")):
        yield context
        yield urlsplit(context).netloc


def _mirror(used: Reference, name: Reference) -> set[str]:
    if used.repository == name.repository:
        return set()
    host = used.host.rpartition(":")[0]
    return {used.repository, used.host, "" if host in ("localhost", "127.0.0.1", "[::1]") else host}


def familiar(name: str) -> str:
    """`name` without what stands for Docker Hub: python, not docker.io/library/python."""
    for prefix in ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"):
        name = name.removeprefix(prefix)
    return name
