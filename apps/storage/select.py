"""The backend that STORAGE_BACKEND names, imported only when it is the one."""

from pathlib import Path
from typing import TYPE_CHECKING

from apps.errors import ConfigurationError
from apps.settings import BACKENDS, BucketSettings
from apps.storage.base import StorageBackend

if TYPE_CHECKING:
    from apps.storage.bucket import Local


def backend(
    kind: str, *, artifacts_root: Path, bucket: BucketSettings | None = None, local: "Local | None" = None
) -> StorageBackend:
    """The backend `kind`, not yet checked; minio and s3 need `bucket` and `local`.

    Raises ConfigurationError for an unknown one.
    """
    if kind == "filesystem":
        from apps.storage.filesystem import FilesystemBackend

        return FilesystemBackend(artifacts_root)
    if kind == "s3" and bucket and local:
        from apps.storage import s3

        return s3.backend(bucket, local)
    if kind == "minio" and bucket and local:
        from apps.storage import minio

        return minio.backend(bucket, local)
    raise ConfigurationError(
        f"STORAGE_BACKEND is {kind!r}", hint=f"set STORAGE_BACKEND to one of: {', '.join(BACKENDS)}"
    )
