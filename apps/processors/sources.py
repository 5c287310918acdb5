"""What a build reads: the files of its context, their digest, the last commit that touched them."""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.errors import BuildFailed, OperationError
from apps.processors import git


@dataclass(frozen=True, slots=True)
class Source:
    """What an image is made from."""

    digest: str
    """Covers path, mode and bytes of what the Dockerfile may read, the Dockerfile, the base's name and digest."""
    revision: str | None
    """The last commit that touched any of it; None without git or without such a commit."""
    created_epoch_s: int
    """When that commit was made, seconds since 1970; 0 without one."""


def read(
    root: Path, context: Path, dockerfile: Path, *, base: tuple[str, str] | None, environment: Mapping[str, str]
) -> Source:
    """The source of a build as it lies on the disk now.

    Args:
        root: the checkout, in a git repository or not.
        context: the folder that the build may read, minus what `<dockerfile>.dockerignore` (else the context's
            `.dockerignore`) names.
        base: name and digest of the base image, when there is one.
        environment: what git may see.

    Raises:
        BuildFailed: something of it can't be read, or local state (with its tokens) can.
    """
    try:
        ignore = Ignore.of(context, dockerfile)
        _refuse_state(root, context, dockerfile, ignore)
        digest = _digest(context, dockerfile, ignore, base)
    except OSError as exc:
        raise BuildFailed(f"{exc.filename} can't be read: {exc.strerror}", hint=f"ls -l {exc.filename}") from exc
    revision, created = _last_commit(root, context, dockerfile, ignore, environment)
    return Source(digest, revision, created)


def _refuse_state(root: Path, context: Path, dockerfile: Path, ignore: "Ignore") -> None:
    state = root / "code" / ".theory"
    if state.is_relative_to(context) and not ignore.hides(state.relative_to(context).as_posix()):
        raise BuildFailed(
            f"the build may read {state}, where run tokens are",
            hint=f"add a line {state.relative_to(context).as_posix()} to {dockerfile}.dockerignore",
        )


class Ignore:
    """The rules of a .dockerignore file, as BuildKit applies them.

    Source: github.com/moby/patternmatcher; https://docs.docker.com/build/concepts/context/#dockerignore-files
    """

    def __init__(self, lines: list[str]) -> None:
        self._rules = [_Rule.parse(line) for line in (line.strip() for line in lines if line[:1] != "#") if line]

    @classmethod
    def of(cls, context: Path, dockerfile: Path) -> "Ignore":
        for path in (dockerfile.with_name(f"{dockerfile.name}.dockerignore"), context / ".dockerignore"):
            if path.is_file():
                return cls(path.read_text("utf-8-sig", errors="surrogateescape").splitlines())
        return cls([])

    def hides(self, path: str) -> bool:
        """Whether the build can't see `path` (relative to the context, with /). The last rule that matches decides."""
        return next((not rule.exception for rule in reversed(self._rules) if rule.whole.fullmatch(path)), False)

    def shows_below(self, folder: str) -> bool:
        """Whether an exception (`!…`) may show something inside the hidden `folder`."""
        return any(rule.exception and rule.may_match_below(folder) for rule in self._rules)


@dataclass(frozen=True, slots=True)
class _Rule:
    exception: bool
    whole: re.Pattern[str]
    """Matches a path that the rule names, and everything below it."""
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> "_Rule":
        pattern = line.removeprefix("!").strip()
        # Cleaned as Go's filepath.Clean does; a leading / means nothing.
        pattern = os.path.normpath(pattern).lstrip("/") or "."
        try:
            whole = re.compile(rf"{_expression(pattern)}(?:/.*)?", re.DOTALL)
        except re.error as exc:
            raise BuildFailed(
                f"the ignore pattern {line!r} is malformed: {exc}", hint="mend the .dockerignore file"
            ) from exc
        return cls(line.startswith("!"), whole, tuple(pattern.split("/")))

    def may_match_below(self, folder: str) -> bool:
        for part, name in zip(self.parts, folder.split("/"), strict=False):
            if "**" in part:
                return True
            if not re.fullmatch(_expression(part), name, re.DOTALL):
                return False
        return True


_TOKEN: Final = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|\\.|.", re.DOTALL)
_WILDCARDS: Final = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _expression(pattern: str) -> str:
    """The regular expression of a pattern: * ? [a-z] \\x as in Go's filepath.Match, ** for any number of folders."""
    return "".join(
        _WILDCARDS.get(token) or (token if token[0] == "[" and len(token) > 1 else re.escape(token[-1]))
        for token in _TOKEN.findall(pattern)
    )


def files(context: Path, ignore: Ignore) -> Iterator[str]:
    """The files and symlinks of the context that the build may read: paths with /, relative to it, sorted.

    Folders are not listed (git knows no empty ones), nor is what is neither file nor symlink.
    """
    yield from sorted(_walk(context, "", ignore), key=os.fsencode)


_OTHER_TIME_S: Final = 1_000_000_000


def copy(context: Path, dockerfile: Path, folder: Path) -> tuple[Path, Path]:
    """The same source in `folder`, as far as its digest knows: (context, Dockerfile) of a build that reads the copy.

    Of what a clone need not have in common with another, nothing is: times, the modes but for the right to execute,
    empty folders. Raises BuildFailed.
    """
    try:
        return _copy(context, dockerfile, folder)
    except OSError as exc:
        raise BuildFailed(f"the source can't be copied to {folder}: {exc.strerror}", hint=f"df -h {folder}") from exc


def _copy(context: Path, dockerfile: Path, folder: Path) -> tuple[Path, Path]:
    there, beside = folder / "context", folder / "dockerfile" / dockerfile.name
    there.mkdir(parents=True)
    beside.parent.mkdir()
    pairs = [(context / name, there / name) for name in files(context, Ignore.of(context, dockerfile))]
    ignored = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    pairs += [(each.resolve(), beside.with_name(each.name)) for each in (dockerfile, ignored) if each.is_file()]
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target, follow_symlinks=False)
        if not target.is_symlink():
            target.chmod(0o700 if source.stat().st_mode & stat.S_IXUSR else 0o600)
    for path in (there, *there.rglob("*")):
        os.utime(path, (_OTHER_TIME_S, _OTHER_TIME_S), follow_symlinks=False)
    return there, beside


def _walk(context: Path, folder: str, ignore: Ignore) -> Iterator[str]:
    with os.scandir(context / folder) as entries:
        for entry in entries:
            path = f"{folder}{entry.name}"
            hidden = ignore.hides(path)
            if entry.is_dir(follow_symlinks=False):
                # A hidden folder is not even listed: local state and virtual environments hold thousands of files.
                if not hidden or ignore.shows_below(path):
                    yield from _walk(context, f"{path}/", ignore)
            elif not hidden and (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
                yield path


def _digest(context: Path, dockerfile: Path, ignore: Ignore, base: tuple[str, str] | None) -> str:
    """One entry for each thing: what, mode, digest of its bytes, and last the name, which can hold all but NUL."""
    whole = hashlib.sha256(b"source v1\0")
    for part in base or ():
        whole.update(f"base {part}\0".encode())
    whole.update(f"dockerfile {_bytes_digest(dockerfile)}\0".encode())
    for name in files(context, ignore):
        whole.update(f"{_kind_and_bytes(context / name)} ".encode() + os.fsencode(name) + b"\0")
    return f"sha256:{whole.hexdigest()}"


def _kind_and_bytes(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"symlink {hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()}"
    # As git keeps it: what a clone's umask leaves of a mode must not change the digest.
    return f"file {'0755' if mode & stat.S_IXUSR else '0644'} {_bytes_digest(path)}"


def _bytes_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_commit(
    root: Path, context: Path, dockerfile: Path, ignore: Ignore, environment: Mapping[str, str]
) -> tuple[str | None, int]:
    """Id and time of the last commit that changed, added or removed a file that the build reads."""

    def is_read(name: str) -> bool:
        path = root / name
        inside = path.is_relative_to(context) and not ignore.hides(path.relative_to(context).as_posix())
        return inside or path == dockerfile

    history = _History(root, environment)
    # Nearly always it is one of the newest; git is asked for the whole history only when it is not.
    for limit in (["--max-count=20"], []):
        for commit, names in history.commits(limit, (context, dockerfile)):
            if any(map(is_read, names)):
                revision, created, *parents = commit.split()
                # The oldest commit of a shallow clone seems to have made every file.
                return (None, 0) if not parents and history.is_shallow() else (revision, int(created))
    return None, 0


@dataclass(frozen=True, slots=True)
class _History:
    """What git knows; without git, a repository or an answer in time that is nothing."""

    root: Path
    environment: Mapping[str, str]

    def commits(self, limit: list[str], places: tuple[Path, ...]) -> Iterator[tuple[str, list[str]]]:
        """Commits that touched `places`, newest first: `id seconds parents…` and names relative to the root."""
        options = ["-z", "--relative", "--no-renames", "--name-only", "--format=//%H %ct %P", *limit]
        for entry in self._ask("log", *options, "--", *map(str, places)).split("//")[1:]:
            commit, _, names = entry.partition("\0")
            yield commit, names.strip("\n\0").split("\0")

    def is_shallow(self) -> bool:
        return self._ask(*git.IS_SHALLOW).strip() == "true"

    def _ask(self, *words: str) -> str:
        try:
            return git.ask(self.root, *words, environment=self.environment).stdout
        except OperationError:  # the image is as good without these two labels
            return ""
