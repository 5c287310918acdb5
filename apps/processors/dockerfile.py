"""Which image a Dockerfile ends on: the one thing that has to be known of it before it is built."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apps.errors import BuildFailed

_FROM: Final = re.compile(r"(?:--\S+\s+)*(?P<name>\S+)(?:\s+AS\s+(?P<alias>\S+))?", re.IGNORECASE)
_VARIABLE: Final = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?:(?P<rule>:?[-+])(?P<word>[^}]*))?\})")
_HEREDOC: Final = re.compile(r"(?:^|\s)\d*<<-?([\"']?)([A-Za-z_]\w*)\1(?=\s|$)")  # not 1<<2


def base_name(path: Path) -> str:
    """The image of the last FROM of the Dockerfile at `path`, as written; variables have their ARG's default.

    A last stage that stands on an earlier stage has that stage's image. Raises BuildFailed naming the line when
    there is no FROM, or its image can't be told without building.

    Source: https://docs.docker.com/reference/dockerfile/#from
    """
    defaults: dict[str, str] = {}
    stages: dict[str, str] = {}
    image, line = "", 0
    for number, word, rest in _instructions(_text(path)):
        if word == "ARG" and not line:  # an ARG inside a stage means nothing to FROM
            defaults |= _arguments(rest, defaults)
        elif word == "FROM":
            found, line = _FROM.fullmatch(rest), number
            if not found:
                raise _refused(path, line, rest, "it is malformed")
            # With variables that have no value here: a stage that nothing ends on may have $TARGETARCH in its name.
            image = _expanded(found["name"], defaults)
            image = stages.get(image.lower(), image)
            stages[(found["alias"] or "").lower()] = image
    if not line:
        raise BuildFailed(f"{path} has no FROM", hint="a Dockerfile starts with FROM, e.g. FROM python:3.13-slim")
    if "$" in image:
        raise _refused(path, line, image, "it has a variable without a default")
    return image


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        hint = "build.dockerfile in registry.yaml names the Dockerfile"
        raise BuildFailed(f"{path} can't be read: {exc}", hint=hint) from exc


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line number, instruction in capitals, its words on one line); no comments, no here-documents."""
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        joined = line.strip()
        if not joined or joined.startswith("#"):
            continue
        while joined.endswith("\\") and (entry := next(lines, None)) is not None:
            following = entry[1].strip()
            if following and not following.startswith("#"):  # both are left out between continued lines
                joined = f"{joined[:-1].rstrip()} {following}"
        word, rest = [*joined.split(None, 1), ""][:2]
        for _, end in _HEREDOC.findall(rest) if word.upper() in ("RUN", "COPY", "ADD") else ():
            while (entry := next(lines, None)) is not None and entry[1].strip("\t") != end:
                pass
        yield number, word.upper(), rest


def _arguments(rest: str, known: dict[str, str]) -> dict[str, str]:
    """The defaults that one ARG line gives."""
    try:
        words = shlex.split(rest)
    except ValueError:  # BuildKit will say what is wrong with it
        return {}
    pairs = (word.partition("=") for word in words)
    return {name: _expanded(value, known) for name, equals, value in pairs if equals}


def _expanded(text: str, values: dict[str, str]) -> str:
    """`text` with $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} in place; what has no value stays as it is."""

    def value(found: re.Match[str]) -> str:
        name, rule, word = found["plain"] or found["name"], found["rule"] or "", found["word"] or ""
        given = name in values and (bool(values[name]) or not rule.startswith(":"))
        if rule.endswith("+"):
            return word if given else ""
        return values[name] if given else word if rule else found[0]

    return _VARIABLE.sub(value, text)


def _refused(path: Path, line: int, name: str, why: str) -> BuildFailed:
    return BuildFailed(
        f"{path}:{line}: can't tell the image of FROM {name}: {why}",
        hint="name the image, or give its ARG a default before the first FROM",
        details={"file": str(path), "line": line},
    )
