"""Which S3 operations the code calls, read from its syntax trees, and which permissions they need."""

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

import botocore.session
from botocore import xform_name

from tests.architecture.sources import PROJECT, imports

START: Final = "apps/storage/s3.py"

BUCKET: Final = "bucket"
OBJECT: Final = "object"

# From the service authorization reference of Amazon S3. Say here what an operation needs that is not there yet.
PERMISSIONS: Final = {
    "abort_multipart_upload": {("s3:AbortMultipartUpload", OBJECT)},
    "complete_multipart_upload": {("s3:PutObject", OBJECT)},
    "create_multipart_upload": {("s3:PutObject", OBJECT)},
    "delete_object": {("s3:DeleteObject", OBJECT)},
    "delete_objects": {("s3:DeleteObject", OBJECT)},
    "get_object": {("s3:GetObject", OBJECT)},
    "head_bucket": {("s3:ListBucket", BUCKET)},
    # Without s3:ListBucket an absent object is 403, which is not told from a refusal.
    "head_object": {("s3:GetObject", OBJECT), ("s3:ListBucket", BUCKET)},
    "list_multipart_uploads": {("s3:ListBucketMultipartUploads", BUCKET)},
    "list_objects_v2": {("s3:ListBucket", BUCKET)},
    "list_parts": {("s3:ListMultipartUploadParts", OBJECT)},
    "put_object": {("s3:PutObject", OBJECT)},
    "upload_part": {("s3:PutObject", OBJECT)},
}
# What boto3 and botocore add to the operations, by what they call themselves.
ADDED: Final = {
    "download_file": {"get_object", "head_object"},
    "download_fileobj": {"get_object", "head_object"},
    "generate_presigned_post": {"put_object"},
    "upload_file": {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"},
    "upload_fileobj": {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"},
}
# Arguments of a call that ask for another permission than the operation's own.
ARGUMENTS: Final = {
    "ACL": ("s3:PutObjectAcl", OBJECT),
    "Tagging": ("s3:PutObjectTagging", OBJECT),
    "VersionId": ("s3:GetObjectVersion", OBJECT),
    "ObjectLockMode": ("s3:PutObjectRetention", OBJECT),
}
OPERATIONS: Final = frozenset(
    xform_name(name) for name in botocore.session.get_session().get_service_model("s3").operation_names
)


def called(start: str = START) -> dict[str, list[str]]:
    """What `start` calls, or any module of apps.storage that it imports, directly or by others; and where.

    Operations, and arguments that need a permission of their own.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(_modules(start)):
        for name, line in names(_tree(path)):
            found.setdefault(name, []).append(f"{path}:{line}")
    return found


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of each operation or argument that `tree` names, be it as a client's method, or as text, as
    get_paginator and generate_presigned_url take it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from ((name, node.lineno) for name in ADDED.get(node.attr, {node.attr} & OPERATIONS))
        elif isinstance(node, ast.Constant) and (node.value in OPERATIONS or node.value in ARGUMENTS):
            yield str(node.value), node.lineno
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            yield str(node.arg), node.lineno


def permissions(name: str) -> set[tuple[str, str]]:
    """(action, what it is on) that an operation or argument needs. Raises KeyError for one that is unknown here."""
    return {ARGUMENTS[name]} if name in ARGUMENTS else PERMISSIONS[name]


def _modules(start: str) -> set[str]:
    found, left = set(), [start]
    while left:
        path = left.pop()
        found.add(path)
        for module, _ in imports(_tree(path)):
            file = PurePosixPath(module.replace(".", "/")).with_suffix(".py").as_posix()
            if module.startswith("apps.storage.") and (PROJECT / file).is_file() and file not in found:
                left.append(file)
    return found


def _tree(path: str) -> ast.Module:
    return ast.parse((PROJECT / path).read_bytes(), path)
