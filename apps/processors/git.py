"""Questions to git about a checkout, and the committed versions of a file. The only place that knows its words."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from apps.errors import ConfigurationError
from apps.processors.adapters import command

TIMEOUT_S: Final = 60.0
IS_SHALLOW: Final = ("rev-parse", "--is-shallow-repository")
# Set while git runs a hook, they would turn our question to another repository.
_PLACES: Final = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
)


def ask(folder: Path, *words: str, environment: Mapping[str, str]) -> command.Completed:
    """Run `git -C folder words…`, names of files taken literally; `environment` is what git may see of the caller's.

    Raises CommandMissing, TimedOut; a status other than 0 is the caller's to read.
    """
    env = {name: value for name, value in environment.items() if name not in _PLACES}
    return command.run(
        ["git", "-C", str(folder), *words], timeout_s=TIMEOUT_S, env={**env, "GIT_LITERAL_PATHSPECS": "1"}
    )


def is_shallow(folder: Path, *, environment: Mapping[str, str]) -> bool:
    """Whether the clone was cut off: an older history exists elsewhere."""
    return ask(folder, *IS_SHALLOW, environment=environment).stdout.strip() == "true"


def revision(folder: Path, *, environment: Mapping[str, str]) -> str | None:
    """The commit that is checked out there, `-dirty` after it where files differ; None without git or a commit."""
    try:
        head = ask(folder, "rev-parse", "HEAD", environment=environment)
        changed = ask(folder, "status", "--porcelain", environment=environment)
    except ConfigurationError:
        return None
    if head.status:
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def versions(file: Path, *, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(commit, text) of each commit that touched `file`, newest first; read one by one, as they are asked for.

    Raises ConfigurationError: no git here, or no repository that git would read.
    """
    file = file.resolve()  # git keeps a link as a link
    listed = ask(file.parent, "log", "--format=%H", "--", file.name, environment=environment)
    if listed.status:
        why = (listed.stderr.strip().splitlines() or ["no answer"])[0].removeprefix("fatal: ")
        raise ConfigurationError(f"git can't tell the history of {file}: {why}", hint=f"git -C {file.parent} log")
    for commit in listed.stdout.split():
        shown = ask(file.parent, "show", f"{commit}:./{file.name}", environment=environment)
        if shown.status == 0:  # else that commit removed it
            yield commit, shown.stdout
