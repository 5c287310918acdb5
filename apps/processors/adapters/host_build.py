"""ImageBuilder for host processes: a virtual environment per lock file, a snapshot per source digest."""

import hashlib
import importlib.util
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from apps.errors import BuildFailed
from apps.processors.adapters import command
from apps.processors.adapters.base import BaseImage, BuildRequest, BuiltImage, Progress
from apps.processors.adapters.host import COMPLETE, delete, interpreter, own_platform
from apps.processors.adapters.host_process import IMAGE
from apps.processors.adapters.host_shim import RECORD
from apps.processors.atomic import exclusive_lock, sync_directory, write_text
from apps.processors.reference import Platform

KEPT: Final = 3
"""Snapshots of a processor that stay, besides those that run."""
INSTALL_S: Final = 3600.0
STEP_S: Final = 600.0
TAIL: Final = 20
"""Lines of a failed step that go into the error."""

_NOT_IN_AN_IMAGE = shutil.ignore_patterns("Dockerfile*", "requirements.*", "__pycache__")
# What pip may know of the caller: where to install from, and how to get there. Never where to install to.
_FOR_PIP: Final = ("PATH", "HOME", "TMPDIR", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_PIP_TARGETS: Final = ("PIP_PREFIX", "PIP_PYTHON", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "PIP_DRY_RUN")


class HostBuilder:
    """Builds for this machine alone, from the processor's requirements.lock and nothing of its Dockerfile."""

    engine = "process"

    def __init__(self, folder: Path, root: Path, environment: Mapping[str, str]) -> None:
        """`folder`: code/.theory of the checkout `root`; `environment`: the caller's, for pip alone."""
        self._folder = folder.absolute()
        self._root = root
        self._environment = _for_pip(environment)

    def platforms(self, asked: tuple[Platform, ...]) -> tuple[Platform, ...]:
        return tuple(each for each in asked if each == own_platform())

    def base(self, name: str) -> BaseImage | None:
        return None

    def build(self, request: BuildRequest, *, progress: Progress) -> list[BuiltImage]:
        self._check_handler(request)
        try:
            with exclusive_lock(self._folder / "locks" / "host-build.lock"):
                image, size_bytes = self._snapshot(request, self._venv(request, progress), progress)
                self._prune(image.parent)
        except OSError as exc:
            raise BuildFailed(f"can't build {request.ref}: {exc}", hint=f"look at {self._folder}") from exc
        name = image.relative_to(self._folder).as_posix()
        return [
            BuiltImage(each, digest=None, image=name, image_id=request.source_digest, size_bytes=size_bytes)
            for each in self.platforms(request.platforms)
        ]

    def _check_handler(self, request: BuildRequest) -> None:
        """What a docker build misses at its COPY would here be missed at the start."""
        folder = request.dockerfile.parent
        if not any((folder / name).is_file() for name in ("handler.py", "handler/__init__.py")):
            raise BuildFailed(
                f"{request.ref} has no {self._shown(folder / 'handler.py')}",
                hint="write it: docs/writing-a-processor.md has an example",
            )

    # the virtual environment

    def _venv(self, request: BuildRequest, progress: Progress) -> Path:
        lock = request.dockerfile.parent / "requirements.lock"
        try:
            content = lock.read_bytes()
        except FileNotFoundError as exc:
            raise BuildFailed(
                f"{request.ref} has no {self._shown(lock)}, which the process engine installs from",
                hint="make it: uv pip compile --generate-hashes requirements.in -o requirements.lock",
            ) from exc
        python = f"{sys.implementation.cache_tag} {platform.python_version()} {platform.machine()}"
        key = hashlib.sha256(content + python.encode()).hexdigest()[:12]
        for made in self._folder.glob(f"venvs/{key}-*"):
            if interpreter(made) is not None:
                return made
        # A name of its own: should a build be killed, its pip may go on for a while, into a folder that nobody uses.
        venv = self._folder / "venvs" / f"{key}-{secrets.token_hex(4)}"
        self._make(venv, lock, progress)
        return venv

    def _make(self, venv: Path, lock: Path, progress: Progress) -> None:
        """In its place, where its scripts find it; nothing uses it before `.complete` is there, written last."""
        progress(f"making a virtual environment of {self._shown(lock)}")
        try:
            python = self._empty(venv)
            for line in self._install(venv, python, lock):
                if news := _news(line):
                    progress(news)
            progress("compiling")
            # A package may ship files for another Python: what can't be compiled is not imported either.
            self._run([str(python), "-I", "-m", "compileall", "-q", "-j", "0", str(venv / "lib")])
            write_text(venv / COMPLETE, "")
        except BaseException:  # Ctrl-C too
            delete(venv)
            raise

    def _empty(self, venv: Path) -> Path:
        venv.parent.mkdir(parents=True, exist_ok=True)
        without = ["--without-pip"] if _has_pip() else []
        made = self._run([sys.executable, "-I", "-m", "venv", *without, str(venv)])
        if made.status:
            lines = (made.stdout + made.stderr).splitlines()
            raise BuildFailed(
                f"python -m venv ended with status {made.status}",
                hint="install what it asks for, e.g. apt install python3-venv",
                details={"log": lines[-TAIL:]},
            )
        return venv / "bin" / "python"

    def _install(self, venv: Path, python: Path, lock: Path) -> Iterator[str]:
        pip = [sys.executable, "-I", "-m", "pip", "--python", str(python)]
        argv = [
            *(pip if _has_pip() else [str(python), "-I", "-m", "pip"]),
            *("install", "--no-input", "--disable-pip-version-check", "--no-compile", "--progress-bar=off"),
            *("--require-hashes", "--only-binary=:all:", "-r", str(lock)),
        ]
        try:
            yield from command.spawn(argv, timeout_s=INSTALL_S, env=self._environment, cwd=venv)
        except command.CommandFailed as exc:
            raise BuildFailed(
                f"pip can't install {self._shown(lock)} (status {exc.status})",
                hint="read the log above; pip's own settings (PIP_INDEX_URL, PIP_CERT, proxies) are honoured",
                details={"log": exc.lines[-TAIL:]},
            ) from exc

    def _run(self, argv: list[str]) -> command.Completed:
        return command.run(argv, timeout_s=STEP_S, env=self._environment)

    def _shown(self, path: Path) -> str:
        """As people know it."""
        return os.path.relpath(path, self._root)

    # the snapshot

    def _snapshot(self, request: BuildRequest, venv: Path, progress: Progress) -> tuple[Path, int]:
        """The folder and its size. There whole or not at all: it is renamed into its place."""
        digest = request.source_digest.removeprefix("sha256:")[:12]
        image = self._folder / "images" / request.ref.slug / digest
        needs = venv.relative_to(self._folder).as_posix()
        document = _read(image / IMAGE)
        if document.get("venv") == needs and document.get("source_digest") == request.source_digest:
            os.utime(image / IMAGE)  # used just now: not the first to go
            return image, document["size_bytes"]
        progress(f"taking a snapshot of {self._shown(request.dockerfile.parent)}")
        for leftover in image.parent.glob(".*"):
            delete(leftover)
        temporary = image.with_name(f".{digest}.{secrets.token_hex(4)}")
        try:
            size_bytes = self._copy(request, temporary, interpreter(venv))
            document = {"schema": 1, "ref": str(request.ref), "source_digest": request.source_digest, "venv": needs}
            write_text(temporary / IMAGE, json.dumps({**document, "size_bytes": size_bytes}) + "\n")
            delete(image)
            temporary.rename(image)
            sync_directory(image.parent)
        except BaseException:
            delete(temporary)
            raise
        return image, size_bytes

    def _copy(self, request: BuildRequest, target: Path, python: Path | None) -> int:
        package = Path("runtime", "processor_runtime")
        shutil.copytree(request.dockerfile.parent, target / "app", ignore=_NOT_IN_AN_IMAGE, symlinks=True)
        shutil.copytree(self._root / "code" / package, target / package, ignore=_NOT_IN_AN_IMAGE, symlinks=True)
        size_bytes = sum(each.lstat().st_size for each in target.rglob("*") if not each.is_dir())
        # Never checked against the source again: nothing here is edited.
        mode = ["--invalidation-mode", "unchecked-hash"]
        self._run([str(python), "-I", "-m", "compileall", "-q", *mode, str(target)])
        return size_bytes

    # what nobody uses any more

    def _prune(self, snapshots: Path) -> None:
        """Drop all but the newest snapshots of a processor, then the virtual environments that none needs."""
        running = {_read(each).get("image") for each in self._folder.glob(f"processes/*/{RECORD}")}
        newest = sorted(snapshots.glob(f"*/{IMAGE}"), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in newest[KEPT:]:
            if old.parent.relative_to(self._folder).as_posix() not in running:
                _drop(old.parent)
        needed = {_read(each).get("venv") for each in self._folder.glob(f"images/*/*/{IMAGE}")}
        for venv in self._folder.glob("venvs/*"):
            if venv.relative_to(self._folder).as_posix() not in needed:
                _drop(venv)


def _drop(folder: Path) -> None:
    """Delete it, or leave it to the next build: the pip of a build that was killed may still be writing there."""
    with suppress(OSError):
        delete(folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return document


def _news(line: str) -> str | None:
    """What a line of pip's tells people, in short."""
    first, _, rest = line.partition(" ")
    if first in ("Collecting", "Processing"):  # from an index, from a folder
        return f"{first.lower()} {rest.partition(' (from ')[0].rpartition('/')[2]}"
    if line.startswith("Installing collected packages: "):
        return f"installing {rest.count(',') + 1} packages"
    return None


def _has_pip() -> bool:
    """Whether our own Python has a pip that can install for another one: quicker than one more pip in each."""
    return importlib.util.find_spec("pip") is not None


def _for_pip(environment: Mapping[str, str]) -> dict[str, str]:
    def wanted(name: str) -> bool:
        if name.startswith(("PIP_", "XDG_", "LC_")):
            return name not in _PIP_TARGETS
        return name in _FOR_PIP or name.lower().endswith("_proxy")

    return {name: value for name, value in environment.items() if wanted(name)}
