"""A CycloneDX bill of what is really in an image: an `Inventory` over the Docker Engine."""

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from apps.processors.adapters import image_archive, packages
from apps.processors.adapters.docker_client import DockerClient
from apps.processors.adapters.image_archive import Contents
from apps.processors.adapters.packages import Package
from apps.processors.attestations import Missing
from apps.processors.reference import Platform, ProcessorRef

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

SILENCE_S: Final = 60.0

_NAMESPACE: Final = uuid.UUID("6f9b9f3e-64a5-5d4c-9a0e-3d2f7f1c7a10")
_LABEL: Final = "org.opencontainers.image."


class DockerInventory:
    """Looks into the engine's images, of whatever platform: nothing of them is executed or unpacked."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Connects to nothing yet. `environment` is the caller's, as for `DockerEngine`."""
        self._client = DockerClient(environment)

    def sbom(
        self, image: str, *, ref: ProcessorRef, repository: str, platform: Platform, digest: str
    ) -> bytes | Missing:
        """A CycloneDX 1.6 document (JSON) of the local `image`, which a registry has as `digest`.

        Equal images give equal bytes: the time is the image's own, the serial number made of the digest.
        Raises EngineFailed, ImageNotFound.
        """
        with self._client.asking(f"read {image}"):
            response = self._client.stream("GET", f"/images/{image}/get", silence_s=SILENCE_S)
            try:
                with response:
                    contents = image_archive.read(response.raw, packages.wanted)
            except image_archive.Unreadable as exc:
                return Missing(str(exc))
        return write(contents, ref=ref, repository=repository, platform=platform, digest=digest)


def write(contents: Contents, *, ref: ProcessorRef, repository: str, platform: Platform, digest: str) -> bytes:
    """The document about what was read of an image.

    Source: https://cyclonedx.org/docs/1.6/json/, https://github.com/package-url/purl-spec
    """
    from cyclonedx.output.json import JsonV1Dot6

    labels = contents.config.get("config", {}).get("Labels") or {}
    system = packages.system(contents.files)
    bom = _bom(digest, str(contents.config.get("created") or ""))
    root = _processor(ref, repository.rpartition("/")[2], platform, digest)
    parts = [*_base(labels), *_system(system), *_packages(packages.installed(contents.files), system)]
    bom.metadata.component = root
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(root, parts)
    if not any(part.purl and part.purl.type == "deb" for part in parts):
        root.properties.add(_property("theory:debian-packages", "none recorded in the image"))
    return JsonV1Dot6(bom).output_as_string(indent=1).encode()


def _bom(digest: str, created: str) -> "Bom":
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.lifecycle import LifecyclePhase, PredefinedLifecycle
    from cyclonedx.model.tool import ToolRepository

    tool = Component(type=ComponentType.APPLICATION, name="processorctl", bom_ref="tool:processorctl")
    metadata = BomMetaData(
        timestamp=_time(created),
        tools=ToolRepository(components=[tool]),
        lifecycles=[PredefinedLifecycle(phase=LifecyclePhase.POST_BUILD)],
    )
    return Bom(serial_number=uuid.uuid5(_NAMESPACE, digest), metadata=metadata)


def _time(created: str) -> datetime:
    """Of RFC 3339, which Python reads with up to six digits of a second."""
    whole = re.sub(r"\.\d+", "", created)
    try:
        return datetime.fromisoformat(whole).astimezone(UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _processor(ref: ProcessorRef, name: str, platform: Platform, digest: str) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        type=ComponentType.CONTAINER,
        group=ref.namespace,
        name=ref.name,
        version=str(ref.version),
        bom_ref=f"image:{digest}",
        purl=PackageURL("oci", name=name, version=digest, qualifiers={"arch": platform.architecture}),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))],
        properties=[_property("theory:ref", str(ref)), _property("theory:platform", str(platform))],
    )


def _base(labels: Mapping[str, Any]) -> "list[Component]":
    """The base image, as the image's own labels name it."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, digest = str(labels.get(f"{_LABEL}base.name", "")), str(labels.get(f"{_LABEL}base.digest", ""))
    if not name or not digest:
        return []
    repository, _, tag = name.partition("@")[0].rpartition(":")
    if not repository or "/" in tag:  # there is no tag: what stands after the last : is a port and a path, or all
        repository, tag = name.partition("@")[0], ""
    qualifiers = {"repository_url": repository} if "/" in repository else {}
    qualifiers |= {"tag": tag} if tag else {}
    return [
        Component(
            type=ComponentType.CONTAINER,
            name=repository,
            version=tag or digest,
            bom_ref=f"base:{digest}",
            purl=PackageURL("oci", name=repository.rpartition("/")[2], version=digest, qualifiers=qualifiers),
        )
    ]


def _system(system: Mapping[str, str]) -> "list[Component]":
    from cyclonedx.model.component import Component, ComponentType

    if not system.get("ID"):
        return []
    name, version = system["ID"], system.get("VERSION_ID", "")
    return [
        Component(
            type=ComponentType.OPERATING_SYSTEM,
            name=name,
            version=version or None,
            description=system.get("PRETTY_NAME"),
            bom_ref=f"system:{name}-{version}",
        )
    ]


def _packages(found: list[Package], system: Mapping[str, str]) -> "list[Component]":
    """One component for each package URL, with all the places that it is at."""
    places: dict[str, tuple[Package, list[str]]] = {}
    for package in found:
        places.setdefault(_purl(package, system), (package, []))[1].append(package.place)
    return [_component(purl, package, where) for purl, (package, where) in sorted(places.items())]


def _purl(package: Package, system: Mapping[str, str]) -> str:
    from packageurl import PackageURL

    if package.kind == "pypi":
        return PackageURL("pypi", name=package.name, version=package.version).to_string()
    name = system.get("ID", "debian")
    qualifiers = {
        "arch": package.architecture,
        "distro": f"{name}-{system['VERSION_ID']}" if "VERSION_ID" in system else "",
    }
    return PackageURL("deb", name, package.name, package.version, qualifiers).to_string()


def _component(purl: str, package: Package, places: list[str]) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.component_evidence import ComponentEvidence, Occurrence
    from packageurl import PackageURL

    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=PackageURL.from_string(purl),
        bom_ref=purl,
        licenses=_licences(package.licences),
        evidence=ComponentEvidence(
            occurrences=[Occurrence(location=place, bom_ref=f"{purl}#{place}") for place in places]
        ),
    )


def _licences(found: tuple[str, ...]) -> "list[License]":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import LicenseAcknowledgement

    factory, declared = LicenseFactory(), LicenseAcknowledgement.DECLARED
    if len(found) == 1:
        return [factory.make_from_string(found[0], license_acknowledgement=declared)]
    # An expression can't stand beside another licence.
    return [factory.make_with_name(each, acknowledgement=declared) for each in found]


def _property(name: str, value: str) -> Any:
    from cyclonedx.model import Property

    return Property(name=name, value=value)
