"""Manifests, indexes and small blobs: read from a registry and stored there, every digest computed and compared."""

import hashlib
import json
from typing import Any, Final
from urllib.parse import quote

from apps.errors import ImageRegistryFailed
from apps.processors.adapters.base import RemoteManifest
from apps.processors.adapters.oci_errors import is_known_absence
from apps.processors.adapters.oci_http import Answer, follow
from apps.processors.adapters.oci_session import Session

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
_DOCKER: Final = "application/vnd.docker.distribution.manifest"
_ACCEPT: Final = ", ".join((MANIFEST, INDEX, f"{_DOCKER}.v2+json", f"{_DOCKER}.list.v2+json"))
_BYTES: Final = "application/octet-stream"
_NONSENSE_HINT: Final = "ask who runs it; a proxy on the way may be at fault too"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parsed(data: bytes, what: str) -> dict[str, Any]:
    """`data` as a JSON object. Raises ImageRegistryFailed naming `what`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ImageRegistryFailed(f"{what} is not JSON: {exc}", hint=_NONSENSE_HINT) from exc
    if not isinstance(document, dict):
        raise ImageRegistryFailed(f"{what} is no JSON object", hint=_NONSENSE_HINT)
    return document


def get_manifest(session: Session, repository: str, reference: str) -> RemoteManifest | None:
    """What a tag or a digest names; None when nothing does.

    Raises Unauthorized, ImageRegistryFailed (a digest that is not what was asked for, too).
    """
    answer = session.get(f"manifests/{_quoted(reference)}", accept=_ACCEPT)
    if answer.status == 404 and (is_known_absence(answer) or _is_registry(session)):
        return None
    by_digest = ":" in reference
    what = f"{repository}{'@' if by_digest else ':'}{reference}"
    if answer.status != 200:
        raise session.refused(answer, f"say what {what} is", write=False)
    digest = digest_of(answer.body)
    if by_digest:
        _compare(digest, reference, f"{repository} sent")
    _compare(digest, answer.headers.get("docker-content-digest"), f"{what} is")
    document = parsed(answer.body, what)
    if "manifests" in document and ("layers" in document or "config" in document):
        # CVE-2021-41190: one client would take it for an index, another for an image.
        raise ImageRegistryFailed(f"{what} is both an index and an image", hint="make and push it again")
    _check_descriptors(document, what)
    media_type = document.get("mediaType") or answer.headers.get("content-type", "").partition(";")[0]
    return RemoteManifest(repository, digest, str(media_type), document, len(answer.body))


def _check_descriptors(document: dict[str, Any], what: str) -> None:
    """What an index lists and an image is made of: who reads it further on need not ask. Raises ImageRegistryFailed."""
    for part in ("manifests", "layers", "config"):
        found = document.get(part, [])
        listed = [found] if part == "config" and part in document else found
        if not isinstance(listed, list) or not all(_is_descriptor(each) for each in listed):
            message = f"{what} is no well-formed {'index' if part == 'manifests' else 'image'}: see its {part}"
            raise ImageRegistryFailed(message, hint="make and push it again")


def _is_descriptor(part: object) -> bool:
    """Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md"""
    if not isinstance(part, dict):
        return False
    named = isinstance(part.get("mediaType"), str) and isinstance(part.get("digest"), str)
    optional = (part.get("platform") or {}, part.get("annotations") or {})
    return named and type(part.get("size")) is int and all(isinstance(each, dict) for each in optional)


def get_blob(session: Session, digest: str, *, limit_bytes: int) -> bytes:
    """A blob whole. Raises Unauthorized, ImageRegistryFailed (not there, larger, or not of that digest)."""
    answer = session.get(f"blobs/{_quoted(digest)}", limit_bytes=limit_bytes)
    if answer.status != 200:
        raise session.refused(answer, f"send the blob {session.place}@{digest}", write=False)
    _compare(digest_of(answer.body), digest, f"{session.place} sent")
    return answer.body


def put_blob(session: Session, data: bytes) -> str:
    """Store a blob, unless it is there. Raises PushFailed, Unauthorized, ImageRegistryFailed."""
    digest = digest_of(data)
    there = session.persist(lambda: session.once("HEAD", session.url(f"blobs/{digest}")))
    if there.status == 200 and there.headers.get("content-length") == str(len(data)):
        return digest
    answer = session.persist(lambda: _upload(session, data, digest))
    if answer.status != 201:
        raise session.refused(answer, f"store the blob {session.place}@{digest}", write=True)
    _compare(digest, answer.headers.get("docker-content-digest"), f"{session.place} stored")
    return digest


def _upload(session: Session, data: bytes, digest: str) -> Answer:
    """From its start each time: what a registry kept of an upload that was cut is anybody's guess."""
    opened = session.once("POST", session.url("blobs/uploads/"))
    if opened.status != 202 or "location" not in opened.headers:
        return opened
    location = follow(opened.url, opened.headers["location"])
    target = f"{location}{'&' if '?' in location else '?'}digest={quote(digest, safe='')}"
    return session.once("PUT", target, {"Content-Type": _BYTES}, body=data)


def put_manifest(session: Session, reference: str, document: bytes, media_type: str) -> Answer:
    """Store a manifest or an index. Raises PushFailed, Unauthorized, ImageRegistryFailed (another digest came out)."""
    url, headers = session.url(f"manifests/{_quoted(reference)}"), {"Content-Type": media_type}
    answer = session.persist(lambda: session.once("PUT", url, headers, body=document))
    if answer.status != 201:
        raise session.refused(answer, f"store {reference} of {session.place}", write=True)
    _compare(digest_of(document), answer.headers.get("docker-content-digest"), f"{session.place} stored")
    return answer


def _quoted(reference: str) -> str:
    return quote(reference, safe=":")


def _compare(true: str, claimed: str | None, what: str) -> None:
    """`true` was computed; no claim is no lie, and a claim of another kind than SHA-256 can't be compared."""
    if claimed and claimed.startswith("sha256:") and claimed != true:
        raise ImageRegistryFailed(f"{what} {true}, and not {claimed} as it should", hint=_NONSENSE_HINT)


def _is_registry(session: Session) -> bool:
    """Whether what said 404 is a registry at all. Raises ImageRegistryFailed when it is none."""
    answer = session.get(session.root)
    if answer.status not in (200, 401, 403):
        message = f"{session.place.host} is no image registry: its /v2/ gives status {answer.status}"
        raise ImageRegistryFailed(message, hint="check the name of the host")
    return True
