"""A StorageBackend over one folder: create-once, durable, and never outside that folder.

An object is written to `ROOT/.tmp`, fsynced, and then linked to its name: link(2) fails when the name is taken,
so the first writer wins and a reader sees a whole object or none. Folders are walked by descriptor without
following symbolic links, so no key leads out of the root.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from apps.errors import OperationError, OutputExists, StorageFailed, UploadFailed
from apps.storage import durable, keys
from apps.storage.base import ObjectStat, StoredObject

STAGING: Final = ".tmp"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_ELSEWHERE: Final = "set ARTIFACTS_ROOT to a folder elsewhere"
_WORDS: Final = {
    errno.ENOSPC: ("no space left on its disk", f"free some space there, or {_ELSEWHERE}"),
    errno.EDQUOT: ("your disk quota is used up", f"free some space there, or {_ELSEWHERE}"),
    errno.EROFS: ("its filesystem is read-only", f"mount it for writing, or {_ELSEWHERE}"),
    errno.EACCES: ("permission denied", f"give yourself permission to write there, or {_ELSEWHERE}"),
    errno.EPERM: ("operation not permitted", f"give yourself permission to write there, or {_ELSEWHERE}"),
    errno.EIO: ("its disk reports an error", f"look at the kernel's log (dmesg), or {_ELSEWHERE}"),
    errno.ENOENT: ("a folder on the way to it is not there", f"run again, or {_ELSEWHERE}"),
    errno.ENOTDIR: ("a part of that path is not a folder", f"move what is in the way, or {_ELSEWHERE}"),
    errno.EEXIST: ("a part of that path is not a folder", f"move what is in the way, or {_ELSEWHERE}"),
    errno.EXDEV: ("another filesystem is mounted below the root", f"unmount it, or {_ELSEWHERE}"),
}


class FilesystemBackend:
    """Objects as files: the key `artifacts/a/b.txt` is `ROOT/artifacts/a/b.txt`."""

    name = "filesystem"

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Make the root when absent, write a block there and take it back, drop abandoned temporary files."""
        self.make_root()
        with _failures(self.root), self._staging() as staging:
            durable.sweep(staging)
        probe = self.create("probe", mime="")
        try:
            probe.write(bytes(4096))
        finally:
            probe.abort()

    def make_root(self) -> None:
        """Unless it is there. Raises StorageFailed."""
        with _failures(self.root):
            durable.make_folders(self.root)

    def create(self, key: str, *, mime: str) -> "FileWriter":
        """Start writing. Files have no media type: `mime` is kept by the index alone."""
        segments = keys.split(key)
        with _failures(self.root / key), self._staging() as staging:
            return FileWriter(self, segments, staging)

    def read(self, key: str, *, limit_bytes: int) -> bytes | None:
        with _failures(self.root / key), self._opened(key) as file:
            data = file.read(limit_bytes + 1) if file else None
        if data is not None and len(data) > limit_bytes:
            raise StorageFailed(f"{self.root / key} has more than {limit_bytes} bytes", hint="move it away")
        return data

    def open(self, key: str) -> BinaryIO:
        with _failures(self.root / key):
            file = self._find(key)
        if file is None:
            raise StorageFailed(f"{self.root / key} is not there")
        return file

    def stat(self, key: str) -> ObjectStat | None:
        with _failures(self.root / key), self._opened(key) as file:
            return ObjectStat(os.fstat(file.fileno()).st_size, None) if file else None

    def digest(self, key: str) -> ObjectStat | None:
        with _failures(self.root / key), self._opened(key) as file:
            if file is None:
                return None
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            return ObjectStat(file.tell(), f"sha256:{found}")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Files alone: a symbolic link is none, whatever it leads to."""
        with _failures(self.root / prefix):
            yield from sorted(self._files(prefix))

    def delete(self, key: str) -> None:
        """And the folders that it leaves empty."""
        *folders, name = keys.split(key)
        with _failures(self.root / key), suppress(FileNotFoundError):
            with self.folder(folders) as folder:
                os.unlink(name, dir_fd=folder)
                durable.sync(folder)
            self._prune(folders)

    def grants(self, loopback: str | None) -> None:
        """No request from elsewhere reaches a folder."""

    def locate(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _files(self, prefix: str) -> Iterator[StoredObject]:
        with suppress(FileNotFoundError), self.folder(keys.split(prefix.rstrip("/"))) as folder:
            for name, _, files, inner in os.fwalk(dir_fd=folder, onerror=_raise):
                for file in files:
                    status = os.stat(file, dir_fd=inner, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield StoredObject(os.path.normpath(f"{prefix}{name}/{file}"), status.st_size)

    def _prune(self, folders: Sequence[str]) -> None:
        for depth in range(len(folders), 0, -1):
            with self.folder(folders[: depth - 1]) as parent:
                try:
                    os.rmdir(folders[depth - 1], dir_fd=parent)
                except OSError as exc:
                    if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    return
                durable.sync(parent)

    @contextmanager
    def folder(self, segments: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder `segments` below the root; with `make`, absent ones are made durably.

        Raises OSError, StorageFailed for a symbolic link, OutputExists where a file is in the way.
        """
        current = os.open(self.root, durable.FOLDER)
        try:
            for depth, name in enumerate(segments, 1):
                if make:
                    durable.make_folder(name, current)
                try:
                    inner = os.open(name, durable.FOLDER | os.O_NOFOLLOW, dir_fd=current)
                except OSError as exc:
                    if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    raise _obstacle(name, current, self.root.joinpath(*segments[:depth])) from exc
                os.close(current)
                current = inner
            yield current
        finally:
            os.close(current)

    @contextmanager
    def _staging(self) -> Iterator[int]:
        with self.folder(()) as root, suppress(FileExistsError):
            os.mkdir(STAGING, 0o700, dir_fd=root)
        with self.folder((STAGING,)) as staging:
            yield staging

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO | None]:
        file = self._find(key)
        try:
            yield file
        finally:
            if file:
                file.close()

    def _find(self, key: str) -> BinaryIO | None:
        *folders, name = keys.split(key)
        try:
            with self.folder(folders) as folder:
                descriptor = os.open(name, durable.READ, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise _link_refused(self.root / key) from exc
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StorageFailed(f"{self.root / key} is not a file", hint="move it away")
        return os.fdopen(descriptor, "rb")


class FileWriter:
    """One object on its way into a FilesystemBackend. Owns a temporary file until `commit` or `abort`."""

    def __init__(self, backend: FilesystemBackend, segments: Sequence[str], staging: int) -> None:
        """`staging` is a descriptor of the folder for temporary files. Raises OSError."""
        *self._folders, self._name = segments
        self._backend = backend
        self._path = backend.root.joinpath(*segments)
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._temporary = os.urandom(16).hex()
        self._file = os.open(self._temporary, _CREATE, 0o666, dir_fd=staging)
        self._staging = os.dup(staging)
        self._open = True

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self._digest.update(rest)
        self._size_bytes += len(rest)
        with _failures(self._path):
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def commit(self, *, size_bytes: int, digest: str) -> None:
        """Check, make durable, make visible.

        One exception to 'nothing is visible after a failure': a disk that fails in the very last fsync may
        leave the whole object under its name. The same bytes written again are then success.
        """
        try:
            self._verify(size_bytes, digest)
            with _failures(self._path):
                os.fsync(self._file)  # before the name: it must never lead to bytes that a power cut takes
                self._publish(digest)
        finally:
            self.abort()

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        with suppress(OSError):
            os.close(self._file)
        with suppress(OSError):  # already gone where it was renamed
            os.unlink(self._temporary, dir_fd=self._staging)
        os.close(self._staging)

    def _verify(self, size_bytes: int, digest: str) -> None:
        if size_bytes != self._size_bytes:
            raise UploadFailed(f"{self._path}: {self._size_bytes} bytes arrived, {size_bytes} were announced")
        found = f"sha256:{self._digest.hexdigest()}"
        if digest != found:
            raise UploadFailed(f"{self._path}: {found} arrived, {digest} was announced")

    def _publish(self, digest: str) -> None:
        with self._backend.folder(self._folders, make=True) as folder:
            try:
                durable.give_name(self._temporary, self._staging, self._name, folder)
            except FileExistsError as exc:
                if not durable.holds(self._name, folder, self._size_bytes, digest):
                    raise _taken(self._path) from exc
            # Also for an object that was there: its writer may have been killed before this line.
            durable.sync(folder)


def _raise(error: OSError) -> NoReturn:
    raise error


def _obstacle(name: str, parent: int, path: Path) -> OperationError:
    """Why `name`, which is to be a folder, is none."""
    if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        return _link_refused(path)
    return OutputExists(f"{path} is a file, so nothing can lie below it", hint="choose another --write-prefix")


def _link_refused(path: Path) -> StorageFailed:
    return StorageFailed(f"{path} is a symbolic link, which could lead out of the root", hint=f"remove it: rm {path}")


def _taken(path: Path) -> OutputExists:
    return OutputExists(
        f"{path} exists already with other content", hint="choose another --write-prefix: a run never overwrites"
    )


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """OSError → StorageFailed that says what went wrong at `path`."""
    try:
        yield
    except OSError as exc:
        words, hint = _WORDS.get(exc.errno or 0, (exc.strerror or str(exc), _ELSEWHERE))
        raise StorageFailed(f"{path}: {words}", hint=hint, details={"path": str(path)}) from exc
