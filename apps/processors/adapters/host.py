"""Engine over host processes: a built snapshot, its virtual environment, and a shim that keeps logs and exit status.

What is known of a process lies in `processes/<name>/`: process.json (written once, published by a rename),
log.jsonl, exit.json. Nothing else is asked, so a command that was killed leaves nothing to repair.
"""

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from apps.errors import ConfigurationError, EngineFailed, ImageNotFound, ImagePullFailed, TimedOut, UsageError
from apps.processors import engines
from apps.processors.adapters import command, host_log, host_shim
from apps.processors.adapters.base import Container, Launch, LogLine, NameTaken, PortTaken, Progress
from apps.processors.adapters.host_process import IMAGE, SETTLE_S, Record, container_of, sweep, until
from apps.processors.atomic import exclusive_lock
from apps.processors.reference import ImageReference, Platform

SHIM: Final = Path(host_shim.__file__)
LAUNCH_S: Final = 30.0
"""From the shim's start to its answer; milliseconds on a machine that is not on its knees."""

COMPLETE: Final = ".complete"
"""In a virtual environment, written last."""
_IMAGE = re.compile(r"images/[a-z0-9-]+/[0-9a-f]{12}")


def own_platform() -> Platform:
    """This machine's. Raises ConfigurationError for one that processors can't run on."""
    try:
        return Platform.of_machine(platform.machine())
    except UsageError as exc:
        raise ConfigurationError(f"processors can't run on {platform.machine()}", hint="use amd64 or arm64") from exc


def interpreter(venv: Path) -> Path | None:
    """The Python of a complete virtual environment; None also when the one that it was made of is gone."""
    python = venv / "bin" / "python"
    return python if (venv / COMPLETE).exists() and python.exists() else None


class HostEngine:
    """An Engine without containers. It keeps processors apart from the caller's environment, not from its files."""

    name, isolation, gives_digests, shares_files, loopback = engines.PROCESS

    def __init__(self, folder: Path, root_id: str) -> None:
        """`folder`: code/.theory of the checkout; `root_id`: what label theory.root says."""
        self._folder = folder.absolute()
        self._root_id = root_id

    def platform(self) -> Platform:
        return own_platform()

    def local_image(self, digest: str, *, repository: str, platform: Platform) -> str | None:
        return None

    def has_image(self, image: str) -> bool:
        return self._python(image) is not None

    def image_names(self, image: str) -> frozenset[str]:
        return frozenset((image,))

    def pull(self, image: ImageReference, platform: Platform, *, progress: Progress) -> str:
        raise ImagePullFailed(
            f"the process engine can't run the image {image}", hint="build it here: processorctl build"
        )

    def launch(self, launch: Launch) -> Container:
        python = self._python(launch.image)
        if python is None:
            raise ImageNotFound(
                f"no build of {launch.ref} at {self._folder / launch.image}",
                hint=f"processorctl build --ref {launch.ref}",
            )
        try:
            with exclusive_lock(self._folder / "locks" / f"{launch.name}.lock"):
                self._clear(launch.name)
                _refuse_taken_port(launch.host_port)
                return self._start(launch, python)
        except OSError as exc:
            raise EngineFailed(f"can't start {launch.name}: {exc}", hint=f"look at {self._folder}") from exc

    def containers(self) -> list[Container]:
        folders = sorted(self._folder.glob("processes/[!.]*"))
        found = [(folder, Record.read(folder)) for folder in folders]
        return [
            container_of(folder, record)
            for folder, record in found
            if record is not None and record.labels.get("theory.root") == self._root_id
        ]

    def stop(self, container: Container, *, grace_s: float) -> None:
        record = self._record(container)
        if record is None:
            return
        record.signal(signal.SIGTERM)
        if not until(lambda: not record.runs(), timeout_s=grace_s):
            record.signal(signal.SIGKILL)
        if not until(lambda: not (record.runs() or record.attended()), timeout_s=SETTLE_S):
            record.signal(signal.SIGKILL, shim=True)
            record.signal(signal.SIGKILL)
        sweep(record.scratch)

    def remove(self, container: Container) -> None:
        try:
            with exclusive_lock(self._folder / "locks" / f"{container.name}.lock"):
                self._remove(container)
        except OSError as exc:
            raise EngineFailed(f"can't remove {container.name}: {exc}", hint=f"look at {self._folder}") from exc

    def logs(
        self, container: Container, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[LogLine]:
        def ended() -> bool:
            record = self._record(container) if follow else None
            return record is None or not (record.runs() or record.attended())

        return host_log.read(self._process(container.name), ended=ended, tail=tail, since=since)

    # one launch

    def _clear(self, name: str) -> None:
        """Refuse a name in use; remove what a launch or a removal that was killed left under it."""
        for under_way in self._folder.glob(f"processes/.{name}.*"):
            # By one rename, as its shim publishes it by one: either we take it away or it has the name.
            doomed = under_way.with_name(f".{name}.{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):
                under_way.rename(doomed)
            delete(doomed)
        if Record.read(self._process(name)) is not None:
            raise NameTaken(name)
        for leftover in (self._process(name), self._scratch(name)):
            delete(leftover)

    def _start(self, launch: Launch, python: Path) -> Container:
        folder, scratch = self._process(launch.name), self._scratch(launch.name)
        staging = folder.with_name(f".{launch.name}.{secrets.token_hex(4)}")
        try:
            for each in (staging, scratch):
                each.mkdir(mode=0o700, parents=True)
            _ask_shim(self._config(launch, python, staging))
        except BaseException:  # Ctrl-C too
            self._undo(launch.name, staging)
            raise
        record = Record.read(folder)
        if record is None:
            raise EngineFailed(f"{launch.name} vanished while it was started", hint="start it again")
        return container_of(folder, record)

    def _undo(self, name: str, staging: Path) -> None:
        if (record := Record.read(self._process(name))) is not None:
            self._remove(container_of(self._process(name), record))
        for each in (staging, self._scratch(name)):
            delete(each)

    def _remove(self, container: Container) -> None:
        self.stop(container, grace_s=0)
        if self._record(container) is not None:
            folder = self._process(container.name)
            doomed = folder.with_name(f".{container.name}.{secrets.token_hex(4)}")
            delete(self._scratch(container.name))
            folder.rename(doomed)  # the record goes last and at once: killed before, it can be removed again
            delete(doomed)

    def _config(self, launch: Launch, python: Path, staging: Path) -> dict[str, Any]:
        image, scratch = self._folder / launch.image, self._scratch(launch.name)
        record = {
            "name": launch.name,
            "image": launch.image,
            "labels": dict(launch.labels),
            "port": launch.host_port,
            "scratch": str(scratch),
        }
        return {
            "argv": [str(python), "-m", "processor_runtime"],
            "cwd": str(image / "app"),
            "environment": _environment(launch, python, image, scratch),
            "staging": str(staging),
            "folder": str(self._process(launch.name)),
            "record": record,
        }

    # places

    def _process(self, name: str) -> Path:
        return self._folder / "processes" / name

    def _scratch(self, name: str) -> Path:
        return self._folder / "scratch" / name

    def _record(self, container: Container) -> Record | None:
        """process.json, when it is still this container's and not a later one's of the same name."""
        record = Record.read(self._process(container.name))
        return record if record is not None and record.id == container.id else None

    def _python(self, image: str) -> Path | None:
        """The interpreter of a complete build; None when a part of it is gone, the machine's Python included."""
        if not _IMAGE.fullmatch(image):
            return None
        try:
            document = json.loads((self._folder / image / IMAGE).read_text("utf-8"))
            return interpreter(self._folder / document["venv"])
        except (OSError, ValueError, KeyError):
            return None


def _environment(launch: Launch, python: Path, image: Path, scratch: Path) -> dict[str, str]:
    """All that the process gets, nothing of the caller's own; what can change a result is as in an image."""
    return {
        **launch.environment,
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{image / 'app'}:{image / 'runtime'}",
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the build compiled them
        "PORT": str(launch.host_port),
        "THEORY_BIND": "127.0.0.1",
        "THEORY_SCRATCH": str(scratch),
    }


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        # As the runtime's own listener: connections of an earlier one may linger in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            raise PortTaken(port) from exc


def _ask_shim(config: dict[str, Any]) -> None:
    """Start a process through a shim of its own; returns when process.json is there. Raises EngineFailed."""
    argv = [sys.executable, "-I", "-S", str(SHIM)]
    # The environment goes through the pipe: argv and /proc/PID/environ of the shim can be read by others.
    try:
        answer = command.run(argv, timeout_s=LAUNCH_S, env={"LC_ALL": "C.UTF-8"}, input=json.dumps(config))
        document = json.loads(answer.stdout or "{}")
        why = document.get("error") or answer.stderr.strip() or "its shim was killed"
    except TimedOut as exc:
        document, why = {}, exc.message
    if "pid" not in document:
        raise EngineFailed(f"can't start {config['record']['name']}: {why}", hint="start it again")


def delete(folder: Path) -> None:
    """Remove a folder, if it is there, whatever modes a handler gave to what is in it."""
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(folder)
        except PermissionError:
            folder.chmod(0o700)
            for parent, names, _ in os.walk(folder):
                for each in (Path(parent, name) for name in names):
                    if not each.is_symlink():
                        each.chmod(0o700)
            shutil.rmtree(folder)
