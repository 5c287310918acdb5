"""What arrives over the socket for a bucket: kept on disk until it is whole, then stored in one step."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from apps.errors import StorageFailed, UploadFailed


class SpooledWriter:
    """One object on its way into a bucket. Its file has no name, so that nothing is left of a killed command."""

    def __init__(self, key: str, folder: Path, put: Callable[[BinaryIO, int, str], None]) -> None:
        """`put` stores the file, of that size and digest. Raises StorageFailed."""
        self._key, self._folder, self._put = key, folder, put
        self._digest, self._size_bytes = hashlib.sha256(), 0
        with self._failures():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by abort()

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._size_bytes += len(data)
        with self._failures():
            self._file.write(data)

    def commit(self, *, size_bytes: int, digest: str) -> None:
        try:
            found = f"sha256:{self._digest.hexdigest()}"
            if size_bytes != self._size_bytes:
                raise UploadFailed(f"{self._key}: {self._size_bytes} bytes arrived, {size_bytes} were announced")
            if digest != found:
                raise UploadFailed(f"{self._key}: {found} arrived, {digest} was announced")
            with self._failures():
                self._file.seek(0)
            self._put(self._file, size_bytes, digest)
        finally:
            self.abort()

    def abort(self) -> None:
        with suppress(OSError):  # a buffer that the disk has no room for
            self._file.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StorageFailed(
                f"{self._folder} can't be written: {exc.strerror or exc}", hint="make room there, or make it writable"
            ) from exc
