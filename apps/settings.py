"""The only reader of the process's environment: environment → typed settings. Also Django's settings module.

Nothing here fails at import: `--help` must work whatever the environment holds. `read()` checks.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from apps.errors import ConfigurationError

# Django's part: two apps, no database, no URLs, no logging of its own.
INSTALLED_APPS = ["apps.processors", "apps.storage"]
LOGGING_CONFIG = None
USE_TZ = True
USE_I18N = False

ENGINES: Final = ("docker", "process")
BACKENDS: Final = ("filesystem",)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller's environment says, checked. Paths are absolute."""

    root: Path
    """The checkout: the folder with registry/ and code/."""
    caller: Path
    """The folder that file arguments are relative to."""
    engine: str
    """docker or process."""
    storage_backend: str
    artifacts_root: Path
    repository_prefix: str | None
    """Replaces what is before the last slash of image.repository."""
    build_contexts: Mapping[str, str]
    """NAME → VALUE of --build-context."""
    build_secrets: tuple[str, ...]
    """`id=…,src=…` of --secret, as typed."""
    environment: Mapping[str, str]
    """The caller's variables that are not empty: where a processor's secrets come from."""

    @property
    def state(self) -> Path:
        """Where local state lives."""
        return self.root / "code" / ".theory"

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, caller: Path | None = None) -> Self:
        """Settings from `environ` (default: the process's). An empty variable counts as absent.

        Raises ConfigurationError naming the variable.
        """
        present = {name: value for name, value in (environ or os.environ).items() if value}
        caller = (caller or _here()).absolute()
        root = _root(present.get("THEORY_ROOT"), caller)
        return cls(
            root=root,
            caller=caller,
            engine=_choice(present, "LOCAL_ENGINE", ENGINES),
            storage_backend=_choice(present, "STORAGE_BACKEND", BACKENDS),
            artifacts_root=caller / present.get("ARTIFACTS_ROOT", root / "code" / ".theory" / "artifacts"),
            repository_prefix=present.get("PROCESSOR_REPOSITORY_PREFIX"),
            build_contexts=_pairs(present, "PROCESSOR_BUILD_CONTEXTS"),
            build_secrets=tuple(present.get("PROCESSOR_BUILD_SECRETS", "").split()),
            environment=present,
        )


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError as exc:
        raise ConfigurationError(
            f"the current folder can't be had: {exc.strerror or exc}", hint="cd to a folder that is there"
        ) from exc


def _root(named: str | None, caller: Path) -> Path:
    if named:
        root = caller / named
        if not _is_root(root):
            raise ConfigurationError(
                f"THEORY_ROOT is {named!r}, which has no registry/ and code/", hint="name the checkout's root folder"
            )
        return root.resolve()
    for folder in (caller, *caller.parents):
        if _is_root(folder):
            return folder.resolve()
    return Path(__file__).resolve().parent.parent


def _is_root(folder: Path) -> bool:
    return (folder / "registry").is_dir() and (folder / "code").is_dir()


def _choice(present: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = present.get(name, choices[0])
    if value not in choices:
        raise ConfigurationError(f"{name} is {value!r}", hint=f"set {name} to one of: {', '.join(choices)}")
    return value


def _pairs(present: Mapping[str, str], name: str) -> Mapping[str, str]:
    pairs = {}
    for word in present.get(name, "").split():
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ConfigurationError(f"{name} holds {word!r}", hint=f"{name} is NAME=VALUE, space-separated")
        pairs[key] = value
    return pairs


def no_colour() -> bool:
    """Whether the environment asks for plain text: NO_COLOR (no-color.org), or a terminal that shows no colours."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
