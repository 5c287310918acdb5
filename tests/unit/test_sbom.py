"""The bill of an image's contents, against CycloneDX's own schema."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from apps.processors.adapters import sbom
from apps.processors.adapters.image_archive import Contents
from apps.processors.reference import ARM64, ProcessorRef

PROJECT = Path(__file__).resolve().parents[2]
DIGEST, BASE = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
LABELS = {"org.opencontainers.image.base.name": "python:3.13-slim", "org.opencontainers.image.base.digest": BASE}
METADATA = b"Name: My_Package\nVersion: 1.0+cpu\nLicense-Expression: MIT\n"
FILES = {
    "deps/my_package-1.0.dist-info/METADATA": METADATA,
    "app/vendor/my_package-1.0.dist-info/METADATA": METADATA,
    "deps/other-2.dist-info/METADATA": b"Name: other\nVersion: 2\nClassifier: License :: OSI Approved :: MIT License\n"
    b"Classifier: License :: OSI Approved :: BSD License\n",
    "usr/lib/os-release": b'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian 13"\n',
    "var/lib/dpkg/status": b"Package: libc6\nStatus: install ok installed\nArchitecture: arm64\nVersion: 2.41-12\n",
}


def written(files: dict[str, bytes] = FILES, **config: Any) -> bytes:
    config = {"created": "2026-01-02T03:04:05.123456789Z", "config": {"Labels": LABELS}} | config
    return sbom.write(
        Contents(config, files),
        ref=ProcessorRef("llm", "echo", 3),
        repository="ghcr.io/org/llm-echo",
        platform=ARM64,
        digest=DIGEST,
    )


def document(files: dict[str, bytes] = FILES, **config: Any) -> dict[str, Any]:
    return dict(json.loads(written(files, **config)))


def components(kind: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in found["components"] if each["type"] == kind]


@pytest.mark.parametrize("files", [FILES, {}])
def test_the_document_is_valid_cyclonedx(files: dict[str, bytes]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written(files).decode()) is None


def test_it_is_about_the_processors_image() -> None:
    about = document()["metadata"]["component"]

    assert (about["group"], about["name"], about["version"]) == ("llm", "echo", "3")
    assert about["purl"] == f"pkg:oci/llm-echo@{DIGEST}?arch=arm64"
    assert about["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]


def test_packages_are_named_by_package_urls() -> None:
    found = components("library", document())

    assert [each["purl"] for each in found] == [
        "pkg:pypi/my-package@1.0%2Bcpu",
        "pkg:deb/debian/libc6@2.41-12?arch=arm64&distro=debian-13",
        "pkg:pypi/other@2",
    ]


def test_a_package_that_is_there_twice_is_one_component_with_two_places() -> None:
    found = next(each for each in components("library", document()) if each["name"] == "My_Package")

    places = [each["location"] for each in found["evidence"]["occurrences"]]
    assert sorted(places) == sorted(path for path in FILES if "my_package" in path)


def test_licences_are_those_that_were_declared() -> None:
    found = {each["name"]: each.get("licenses") for each in components("library", document())}

    assert found["My_Package"] == [{"license": {"acknowledgement": "declared", "id": "MIT"}}]
    assert [each["license"]["name"] for each in found["other"] or []] == ["BSD License", "MIT License"]
    assert found["libc6"] is None


@pytest.mark.parametrize(
    ("name", "purl"),
    [
        ("python:3.13-slim", f"pkg:oci/python@{BASE}?tag=3.13-slim"),
        ("python", f"pkg:oci/python@{BASE}"),
        ("ghcr.io/org/base:2", f"pkg:oci/base@{BASE}?repository_url=ghcr.io/org/base&tag=2"),
        ("localhost:5000/base", f"pkg:oci/base@{BASE}?repository_url=localhost:5000/base"),
        (f"python@{BASE}", f"pkg:oci/python@{BASE}"),
    ],
)
def test_the_base_image_is_a_component_with_its_digest(name: str, purl: str) -> None:
    labels = LABELS | {"org.opencontainers.image.base.name": name}

    (base,) = components("container", document(config={"Labels": labels}))

    assert base["purl"] == purl


@pytest.mark.parametrize("config", [{}, {"Labels": None}, {"Labels": {"x": "y"}}])
def test_an_image_that_names_no_base_has_none(config: dict[str, Any]) -> None:
    assert components("container", document(config=config)) == []


def test_the_operating_system_is_a_component() -> None:
    (system,) = components("operating-system", document())

    assert (system["name"], system["version"]) == ("debian", "13")


def test_missing_debian_packages_are_said() -> None:
    properties = document({})["metadata"]["component"]["properties"]

    assert {"name": "theory:debian-packages", "value": "none recorded in the image"} in properties


def test_the_processor_depends_on_all_that_is_in_it() -> None:
    found = document()

    parts = {each["bom-ref"] for each in found["components"]}
    assert {f"image:{DIGEST}": parts} == {
        each["ref"]: set(each["dependsOn"]) for each in found["dependencies"] if "dependsOn" in each
    }


@pytest.mark.parametrize(
    ("created", "timestamp"),
    [
        ("2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05+00:00"),
        (None, "1970-01-01T00:00:00+00:00"),
    ],
)
def test_its_time_is_the_images(created: str | None, timestamp: str) -> None:
    assert document(created=created)["metadata"]["timestamp"] == timestamp


def test_another_process_writes_the_same_bytes() -> None:
    """Sets are written, and their order differs from process to process."""
    program = "import sys; from tests.unit.test_sbom import written; sys.stdout.buffer.write(written())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "4"},
        cwd=PROJECT,
        capture_output=True,
        check=True,
    )

    assert done.stdout == written()
