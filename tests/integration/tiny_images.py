"""Images without a layer, put into a registry by hand: whatever an image registry may hold, in milliseconds."""

import json
import os

from apps.processors.adapters.oci_registry import OciRegistry
from apps.processors.reference import ImageReference
from tests.integration.registries import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def put_image(made: Registry, architecture: str = "amd64", *, system: str = "linux") -> ImageReference:
    """A new image for that platform."""
    place = OciRegistry(made.environment)
    config = json.dumps({"os": system, "architecture": architecture, "author": os.urandom(8).hex()}).encode()
    digest = place.put_blob(made.repository(), config)
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest, "size": len(config)},
        "layers": [],
    }
    return _put(made, document, MANIFEST)


def put_index(made: Registry, **images: ImageReference) -> ImageReference:
    """An index over images by architecture, with an attestation for the first."""
    entries = [_entry(image, "linux", architecture) for architecture, image in images.items()]
    attestation = _entry(put_image(made, system="unknown", architecture="unknown"), "unknown", "unknown")
    return _put(made, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, attestation]}, INDEX)


def _entry(image: ImageReference, system: str, architecture: str) -> dict[str, object]:
    platform = {"os": system, "architecture": architecture}
    return {"mediaType": MANIFEST, "digest": image.digest, "size": 1, "platform": platform}


def _put(made: Registry, document: dict[str, object], media_type: str) -> ImageReference:
    name = f"t{os.urandom(8).hex()}"
    digest = OciRegistry(made.environment).put_manifest(
        made.repository(), name, json.dumps(document).encode(), media_type=media_type
    )
    return ImageReference(made.repository(), digest)
