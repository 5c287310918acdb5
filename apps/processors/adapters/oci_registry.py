"""ImageRegistry over the OCI distribution API, with the logins, the proxies and the trust of one environment."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from apps.errors import OperationError, UsageError
from apps.processors.adapters import oci_documents, oci_referrers
from apps.processors.adapters.base import Artifact, RemoteManifest
from apps.processors.adapters.oci_auth import Keys
from apps.processors.adapters.oci_faults import Broken, Late, NoTls
from apps.processors.adapters.oci_http import Http, Patience, follow
from apps.processors.adapters.oci_place import Place, is_loopback
from apps.processors.adapters.oci_session import DOCUMENT_LIMIT_BYTES, Session
from apps.processors.reference import Platform

_SLOWEST_BYTES_S: Final = 50_000.0
"""What is stored gets as much more time as it takes at this rate."""


class OciRegistry:
    """An `ImageRegistry`.

    Besides what `ImageRegistry` says, every method raises ConfigurationError: Docker's configuration, a proxy or a CA
    setting can't be used, or a credential helper is not installed.

    Args:
        environment: DOCKER_CONFIG or HOME, proxies, CA settings; a credential helper gets all of it.
    """

    def __init__(self, environment: Mapping[str, str], patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._http, self._keys = Http(environment, self._patience), Keys(environment)
        self._bases: dict[str, str] = {}

    def check_push(self, repository: str) -> None:
        session = self._session(repository)
        opened = session.persist(lambda: session.once("POST", session.url("blobs/uploads/")))
        if opened.status != 202:
            raise session.refused(opened, f"take images for {session.place.path}", write=True)
        with suppress(OperationError):  # a session that nobody ends is forgotten in time
            session.once("DELETE", follow(opened.url, opened.headers.get("location", "")))

    def manifest(self, repository: str, reference: str) -> RemoteManifest | None:
        return oci_documents.get_manifest(self._session(repository), repository, reference)

    def platform(self, manifest: RemoteManifest) -> Platform | None:
        described = manifest.document.get("config")
        if manifest.is_index or not isinstance(described, dict) or not isinstance(described.get("digest"), str):
            return None
        data = self.blob(manifest.repository, described["digest"], limit_bytes=DOCUMENT_LIMIT_BYTES)
        config = oci_documents.parsed(data, f"the config of {manifest.repository}@{manifest.digest}")
        if config.get("os") != "linux":
            return None
        try:
            return Platform.parse(str(config.get("architecture")))
        except UsageError:  # one that we do not build for
            return None

    def blob(self, repository: str, digest: str, *, limit_bytes: int) -> bytes:
        return oci_documents.get_blob(self._session(repository), digest, limit_bytes=limit_bytes)

    def put_blob(self, repository: str, data: bytes) -> str:
        return oci_documents.put_blob(self._session(repository, size_bytes=len(data)), data)

    def put_manifest(self, repository: str, reference: str, document: bytes, *, media_type: str) -> str:
        session = self._session(repository, size_bytes=len(document))
        oci_documents.put_manifest(session, reference, document, media_type)
        return oci_documents.digest_of(document)

    def attach(self, subject: RemoteManifest, artifact: Artifact) -> str:
        session = self._session(subject.repository, size_bytes=len(artifact.data))
        return oci_referrers.attach(session, subject, artifact)

    def attached(self, repository: str, digest: str, *, artifact_type: str) -> list[str]:
        return oci_referrers.attached(self._session(repository), repository, digest, artifact_type=artifact_type)

    def _session(self, repository: str, *, size_bytes: int = 0) -> Session:
        """For one call; `size_bytes` is what it sends."""
        place = Place.parse(repository)
        deadline = time.monotonic() + self._patience.call_s + size_bytes / _SLOWEST_BYTES_S
        if place.api not in self._bases:
            self._bases[place.api] = self._base(place.api, deadline)
        return Session(self._http, self._keys, place, self._bases[place.api], self._patience, deadline)

    def _base(self, api: str, deadline: float) -> str:
        """https, but on loopback http where it does not speak TLS: as Docker."""
        if not is_loopback(urlsplit(f"//{api}").hostname or ""):
            return f"https://{api}"
        probe = f"https://{api}/v2/"
        try:
            self._http.send("GET", probe, headers={}, limit_bytes=DOCUMENT_LIMIT_BYTES, deadline=deadline)
        except (NoTls, Broken, Late):  # some servers wait for the rest of what they can't read
            return f"http://{api}"
        return f"https://{api}"
