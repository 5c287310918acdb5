"""The backend that STORAGE_BACKEND names, imported only when it is the one."""

from pathlib import Path

from apps.errors import ConfigurationError
from apps.storage.base import StorageBackend


def backend(kind: str, *, artifacts_root: Path) -> StorageBackend:
    """The backend `kind`, not yet checked. Raises ConfigurationError for an unknown one."""
    if kind == "filesystem":
        from apps.storage.filesystem import FilesystemBackend

        return FilesystemBackend(artifacts_root)
    raise ConfigurationError(f"STORAGE_BACKEND is {kind!r}", hint="set STORAGE_BACKEND to: filesystem")
