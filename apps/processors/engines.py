"""What is known of each engine without asking it, or importing what talks to it."""

from typing import Final, NamedTuple

from apps.errors import ConfigurationError


class Traits(NamedTuple):
    """A tuple, so that an engine's class takes them over in one line."""

    name: str
    """docker or process."""
    isolation: str
    """What a container of this engine is kept apart by, in a word: container or host-process."""
    gives_digests: bool
    """Whether images have OCI digests here; where not, pins are ignored."""
    shares_files: bool
    """Whether a path of this machine is the same file inside: the caller's CA settings mean something there."""
    loopback: str | None
    """The name by which a container reaches what listens on this machine's loopback; None: by the loopback itself."""


DOCKER: Final = Traits("docker", "container", gives_digests=True, shares_files=False, loopback="host.docker.internal")
PROCESS: Final = Traits("process", "host-process", gives_digests=False, shares_files=True, loopback=None)


def traits(name: str) -> Traits:
    """Those of the engine `name`. Raises ConfigurationError for one that is unknown, as a newer state may name."""
    for each in (DOCKER, PROCESS):
        if each.name == name:
            return each
    raise ConfigurationError(f"the engine {name!r} is unknown", hint="localctl stop --all, then start it again")
