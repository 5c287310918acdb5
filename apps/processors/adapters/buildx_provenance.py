"""BuildKit's own provenance of an image that it built, taken from the same build out of its cache."""

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

from apps.errors import EngineFailed
from apps.processors import provenance
from apps.processors.adapters.base import BuildRequest, Progress
from apps.processors.adapters.buildx import BuildxBuilder
from apps.processors.attestations import Missing, entries
from apps.processors.reference import Platform

_LIMIT_BYTES: Final = 32 * 1024**2


class BuildxProvenance:
    """A `ProvenanceSource` over `docker buildx`: nothing is executed again as long as BuildKit has it cached."""

    def __init__(self, builder: BuildxBuilder) -> None:
        self._builder = builder

    def provenance(
        self, request: BuildRequest, platform: Platform, digest: str, *, progress: Progress
    ) -> bytes | Missing:
        """The in-toto statement about the image `digest`, as it may be stored beside it: see provenance.scrub.

        An image of the same request that is not `digest` is not attested to. Takes as much disk as the image, for
        as long as it takes. Raises BuildFailed, ImageRegistryFailed, EngineFailed, ConfigurationError.
        """
        if not self._builder.attests:
            return Missing("the classic image store keeps no provenance")
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "image.tar"
            self._builder.export(request, platform, archive, progress=progress)
            found = _attested(archive, platform, digest)
        if isinstance(found, Missing):
            return found
        name = f"pkg:oci/{request.repository.rpartition('/')[2]}?arch={platform.architecture}"
        statement = provenance.scrub(
            found,
            name=name,
            digest=digest,
            revision=request.revision,
            secrets=self._builder.hidden,
            paths=[str(request.root), str(request.context), folder],
        )
        return provenance.write(statement)


def _attested(archive: Path, platform: Platform, digest: str) -> dict[str, Any] | Missing:
    """The provenance that an OCI archive has for the manifest `digest`.

    Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
    """
    with tarfile.open(archive) as tar:
        outer = _document(tar, "index.json")
        image = next(
            (each for each in entries(_blob(tar, outer["manifests"][0]["digest"])) if each.platform == platform), None
        )
        if image is None or image.attestation is None:
            return Missing("this engine's BuildKit wrote no provenance")
        if image.digest != digest:
            return Missing(f"the same build now gives {image.digest}")
        for layer in _blob(tar, image.attestation.digest)["layers"]:
            if layer["annotations"].get("in-toto.io/predicate-type") == provenance.SLSA:
                return _blob(tar, layer["digest"])
    return Missing(f"this engine's BuildKit wrote no {provenance.SLSA}")


def _blob(tar: tarfile.TarFile, digest: str) -> dict[str, Any]:
    return _document(tar, f"blobs/{digest.replace(':', '/')}")


def _document(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    try:
        file = tar.extractfile(name)
    except KeyError as exc:
        raise EngineFailed(f"BuildKit's archive of the image has no {name}") from exc
    return dict(json.loads(file.read(_LIMIT_BYTES))) if file else {}
