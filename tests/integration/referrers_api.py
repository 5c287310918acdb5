"""The referrers API of OCI 1.1 before a registry that lacks it, as Debian's does.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.integration.middlemen import Answer, Asked, Middleman, middleman

INDEX = "application/vnd.oci.image.index.v1+json"


@contextmanager
def referrers_api(to: str, *, page: int = 100, filters: bool = True) -> Iterator[Middleman]:
    """A registry with the API: manifests live at `to`, who refers to what is remembered here.

    Args:
        page: entries of one answer; more come by a Link header.
        filters: whether artifactType is heeded; registries need not.
    """
    referrers: dict[str, list[dict[str, Any]]] = {}

    def answer(asked: Asked) -> Answer | None:
        url = urlsplit(asked.path)
        name, found, digest = url.path.partition("/referrers/")
        if not found:
            return None
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        entries, headers = referrers.get(digest, []), {"content-type": INDEX}
        if filters and "artifactType" in query:
            entries = [entry for entry in entries if entry["artifactType"] == query["artifactType"]]
            headers["oci-filters-applied"] = "artifactType"
        start = int(query.get("from", 0))
        if start + page < len(entries):
            headers["link"] = f'<{name}/referrers/{digest}?from={start + page}>; rel="next"'
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[start : start + page]}
        return Answer(200, headers, json.dumps(document).encode())

    def alter(asked: Asked, given: Answer) -> Answer:
        if asked.method != "PUT" or "/manifests/" not in asked.path or given.status != 201:
            return given
        document = json.loads(asked.body)
        if not (subject := document.get("subject", {}).get("digest")):
            return given
        entry = {
            "mediaType": document["mediaType"],
            "digest": f"sha256:{hashlib.sha256(asked.body).hexdigest()}",
            "size": len(asked.body),
            "artifactType": document.get("artifactType") or document["config"]["mediaType"],
            "annotations": document.get("annotations", {}),
        }
        entries = referrers.setdefault(subject, [])
        if entry not in entries:
            entries.append(entry)
        return given.but(headers={"oci-subject": subject})

    with middleman(to, answer=answer, alter=alter) as made:
        yield made
