"""What belongs to an image: artifacts that refer to its manifest, in the referrers API or under the fallback tag.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
and #referrers-tag-schema
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from apps.errors import InvalidReference, PushFailed
from apps.processors.adapters.base import Artifact, RemoteManifest
from apps.processors.adapters.oci_documents import (
    INDEX,
    MANIFEST,
    digest_of,
    get_manifest,
    parsed,
    put_blob,
    put_manifest,
)
from apps.processors.adapters.oci_http import follow
from apps.processors.adapters.oci_session import Session
from apps.processors.reference import parse_digest

_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_NO_API: Final = (400, 404, 405, 406, 501)
_PAGES: Final = 20
_WRITES: Final = 4


def attach(session: Session, subject: RemoteManifest, artifact: Artifact) -> str:
    """Store `artifact` for `subject` (once); returns the digest of its manifest.

    Raises PushFailed, Unauthorized, ImageRegistryFailed.
    """
    document = _manifest(subject, artifact)
    put_blob(session, _EMPTY)
    put_blob(session, artifact.data)
    answer = put_manifest(session, digest_of(document), document, MANIFEST)
    entry = {
        **_descriptor(MANIFEST, document),
        "artifactType": artifact.artifact_type,
        "annotations": dict(artifact.annotations),
    }
    # The header is the registry's word that it keeps the list; the list shows whether it does.
    if answer.headers.get("oci-subject") != subject.digest or _listed(session, subject.digest) is None:
        _list_under_tag(session, subject, entry)
    return str(entry["digest"])


def attached(session: Session, repository: str, digest: str, *, artifact_type: str) -> list[str]:
    """Digests of the manifests of `artifact_type` that refer to `digest`, oldest first as far as the registry says."""
    entries = _listed(session, digest, artifact_type)
    if entries is None:
        found = get_manifest(session, repository, _fallback_tag(digest))
        entries = _entries(found.document) if found else []
    # Registries need not filter.
    return list(dict.fromkeys(entry["digest"] for entry in entries if entry.get("artifactType") == artifact_type))


def _manifest(subject: RemoteManifest, artifact: Artifact) -> bytes:
    """The artifact's manifest: equal artifacts of one subject give equal bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact.artifact_type,
        "config": _descriptor(_EMPTY_TYPE, _EMPTY),
        "layers": [_descriptor(artifact.artifact_type, artifact.data)],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size_bytes},
        "annotations": dict(sorted(artifact.annotations.items())),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _listed(session: Session, digest: str, artifact_type: str = "") -> list[dict[str, Any]] | None:
    """What the API lists, page after page; None when the registry has no such API."""
    wanted = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    url, found = session.url(f"referrers/{digest}{wanted}"), list[dict[str, Any]]()
    for _ in range(_PAGES):
        answer = session.get(url, accept=INDEX)
        if answer.status in _NO_API:
            return None
        if answer.status != 200:
            raise session.refused(answer, f"list what refers to {session.place}@{digest}", write=False)
        document = parsed(answer.body, f"the list of what refers to {session.place}@{digest}")
        found += _entries(document)
        following = _next(answer.headers.get("link", ""))
        if not following:
            break
        url = follow(url, following)
    return found


def _next(link: str) -> str:
    """The address of `<…>; rel="next"` (RFC 8288), or nothing."""
    address, _, rest = link.strip().removeprefix("<").partition(">")
    return address if "rel=" in rest and "next" in rest else ""


def _entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = document.get("manifests")
    return [entry for entry in listed if _is_descriptor(entry)] if isinstance(listed, list) else []


def _is_descriptor(entry: object) -> bool:
    try:
        return isinstance(entry, dict) and bool(parse_digest(str(entry.get("digest"))))
    except InvalidReference:
        return False


def _fallback_tag(digest: str) -> str:
    return digest.replace(":", "-")


def _list_under_tag(session: Session, subject: RemoteManifest, entry: dict[str, Any]) -> None:
    """Add `entry` to the index under the fallback tag: read, change, write, and look: another may have written."""
    tag = _fallback_tag(subject.digest)
    for _ in range(_WRITES):
        found = get_manifest(session, subject.repository, tag)
        document: dict[str, Any] = dict(found.document) if found else {"schemaVersion": 2, "mediaType": INDEX}
        if found and not found.is_index:
            raise PushFailed(f"the tag {tag} of {session.place} is no list of referrers", hint="remove that tag there")
        if entry["digest"] in [listed["digest"] for listed in _entries(document)]:
            return
        document["manifests"] = [*document.get("manifests", []), entry]
        put_manifest(session, tag, json.dumps(document, separators=(",", ":")).encode(), INDEX)
    raise PushFailed(f"the tag {tag} of {session.place} does not keep what is written to it", hint="push again")
