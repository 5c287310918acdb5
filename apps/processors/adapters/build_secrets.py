"""The values of a build's secrets: known here only so that no message shows them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from apps.errors import ConfigurationError

LARGEST: Final = 65536
"""Characters. Larger files are bundles of certificates, which are public."""


def values(words: Sequence[str], environment: Mapping[str, str], caller: Path) -> list[str]:
    """What must not appear in a line of the build: the values of its secrets, whole and line by line.

    Args:
        words: `id=…,src=…` or `id=…,env=…`, as --secret takes them.
        environment: where env= looks.
        caller: the folder that files are relative to.

    Raises:
        ConfigurationError: a secret has no id, or its file can't be read.

    Source: https://docs.docker.com/reference/cli/docker/buildx/build/#secret
    """
    found = []
    for word in words:
        fields = dict(field.partition("=")[::2] for field in word.split(","))
        place = fields.get("src") or fields.get("source")
        if not fields.get("id"):
            raise ConfigurationError(f"PROCESSOR_BUILD_SECRETS holds {word!r}", hint="a secret is id=<name>,src=<file>")
        if fields.get("type") == "env" or place is None:
            found += [environment.get(fields.get("env") or place or fields["id"], "")]
            continue
        try:
            text = _small_text(caller / place)
        except OSError as exc:
            raise ConfigurationError(
                f"PROCESSOR_BUILD_SECRETS names {place}, which can't be read: {exc.strerror}",
                hint="its files are relative to the folder that the command is called in",
            ) from exc
        found += [text.strip(), *_settings_of(text)]
    return [value for value in found if len(value) >= 6]  # shorter ones (true, 60) would black out half the log


def _small_text(path: Path) -> str:
    text = path.read_text("utf-8", errors="replace")
    return text if len(text) <= LARGEST else ""


def _settings_of(text: str) -> Iterator[str]:
    """The lines of a file, or where they are `name = value`, the values that are no path."""
    for line in text.splitlines():
        value = line.partition("=")[2].strip() if re.match(r"[\w-]+\s*=", line) else line.strip()
        if not value.startswith(("/", "[", "#")):
            yield value
