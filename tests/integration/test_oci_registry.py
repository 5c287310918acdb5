"""OciRegistry against real registries: what is stored comes back, whoever asks, whatever the registry lacks."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.errors import ImageRegistryFailed, PushFailed
from apps.processors.adapters.base import Artifact, RemoteManifest
from apps.processors.adapters.oci_documents import INDEX, MANIFEST, digest_of
from apps.processors.adapters.oci_registry import OciRegistry
from apps.processors.reference import AMD64, ARM64, Platform
from tests.integration.middlemen import Answer, Asked, middleman
from tests.integration.referrers_api import referrers_api
from tests.integration.registries import Registry, registry, small_disk

SBOM = "application/vnd.cyclonedx+json"
ABSENT = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def plain() -> Iterator[Registry]:
    with registry() as made:
        yield made


@pytest.fixture
def repository(plain: Registry, request: pytest.FixtureRequest) -> str:
    """One of its own for each test."""
    return plain.repository(f"org/{digest_of(request.node.nodeid.encode())[7:19]}")


@pytest.fixture
def client() -> OciRegistry:
    return OciRegistry({})


def image(architecture: str = "arm64", system: str = "linux") -> tuple[bytes, bytes]:
    """An image without layers: its config and its manifest."""
    config = json.dumps({"architecture": architecture, "os": system, "rootfs": {"type": "layers", "diff_ids": []}})
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config.encode())}
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {**described, "size": len(config)},
        "layers": [],
    }
    return config.encode(), json.dumps(document).encode()


def store(client: OciRegistry, repository: str, tag: str = "1", **of: str) -> RemoteManifest:
    config, document = image(**of)
    client.put_blob(repository, config)
    client.put_manifest(repository, tag, document, media_type=MANIFEST)
    stored = client.manifest(repository, tag)
    assert stored
    return stored


def index(*manifests: RemoteManifest) -> bytes:
    entries = [{"mediaType": each.media_type, "digest": each.digest, "size": each.size_bytes} for each in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


def skopeo(*words: str) -> str:
    return subprocess.run(["skopeo", *words], capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_manifest_comes_back_by_tag_and_by_digest(client: OciRegistry, repository: str) -> None:
    config, document = image()
    client.put_blob(repository, config)

    digest = client.put_manifest(repository, "1", document, media_type=MANIFEST)

    expected = RemoteManifest(repository, digest_of(document), MANIFEST, json.loads(document), len(document))
    assert digest == expected.digest
    assert client.manifest(repository, "1") == client.manifest(repository, digest) == expected


def test_an_index_comes_back_as_one(client: OciRegistry, repository: str) -> None:
    document = index(store(client, repository))

    client.put_manifest(repository, "both", document, media_type=INDEX)

    found = client.manifest(repository, "both")
    assert found
    assert (found.is_index, found.media_type, found.digest) == (True, INDEX, digest_of(document))


def test_what_is_not_there_is_none(client: OciRegistry, repository: str) -> None:
    assert client.manifest(repository, "1") is None
    store(client, repository)
    assert client.manifest(repository, "2") is None
    assert client.manifest(repository, ABSENT) is None


@pytest.mark.parametrize(
    ("of", "platform"),
    [
        ({"architecture": "amd64"}, AMD64),
        ({"architecture": "arm64"}, ARM64),
        ({"architecture": "riscv64"}, None),
        ({"architecture": "amd64", "system": "windows"}, None),
        ({"architecture": "unknown", "system": "unknown"}, None),
    ],
)
def test_an_image_is_of_the_platform_of_its_config(
    of: dict[str, str], platform: Platform | None, client: OciRegistry, repository: str
) -> None:
    assert client.platform(store(client, repository, **of)) == platform


def test_an_index_and_an_artifact_are_of_no_platform(client: OciRegistry, repository: str) -> None:
    subject = store(client, repository)
    client.put_manifest(repository, "both", index(subject), media_type=INDEX)
    artifact = client.attach(subject, Artifact(SBOM, b"{}", {}))

    for reference in ("both", artifact):
        found = client.manifest(repository, reference)
        assert found
        assert client.platform(found) is None


def test_a_blob_is_sent_once(client: OciRegistry, plain: Registry) -> None:
    with middleman(plain.address) as between:
        for _ in range(2):
            assert client.put_blob(between.repository(), b"once") == digest_of(b"once")

    assert [method.split()[0] for method in between.methods()] == ["HEAD", "POST", "PUT", "HEAD"]


@pytest.mark.parametrize("data", [b"", b"x", b"large" * 400_000])
def test_a_blob_comes_back(data: bytes, client: OciRegistry, repository: str) -> None:
    digest = client.put_blob(repository, data)

    assert client.blob(repository, digest, limit_bytes=len(data)) == data


def test_a_blob_that_is_too_large_is_not_read(client: OciRegistry, repository: str) -> None:
    digest = client.put_blob(repository, b"x" * 1001)

    with pytest.raises(ImageRegistryFailed, match="sends more than the 1000 bytes"):
        client.blob(repository, digest, limit_bytes=1000)


def test_a_blob_that_is_not_there_is_the_registrys_failure(client: OciRegistry, repository: str) -> None:
    with pytest.raises(ImageRegistryFailed, match=f"could not send the blob {repository}@{ABSENT}: status 404"):
        client.blob(repository, ABSENT, limit_bytes=1000)


def test_asking_whether_we_may_push_opens_an_upload_and_cancels_it(client: OciRegistry, plain: Registry) -> None:
    with middleman(plain.address) as between:
        client.check_push(between.repository())

    assert [(asked.method, status) for asked, status in between.asked] == [("POST", 202), ("DELETE", 204)]


def test_a_registry_that_is_read_only_can_be_read(plain: Registry, client: OciRegistry, repository: str) -> None:
    stored = store(client, repository)

    with registry(read_only=True, storage=plain.storage) as frozen:
        there = frozen.repository(repository.partition("/")[2])
        found = client.manifest(there, "1")
        assert found
        assert found.digest == stored.digest
        for write in (lambda: client.check_push(there), lambda: client.put_blob(there, b"new")):
            with pytest.raises(PushFailed, match=f"{frozen.address} lets nothing be written: it is read-only"):
                write()


def test_a_full_disk_is_told(client: OciRegistry, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 400_000) as disk, registry(storage=disk) as full:
        client.check_push(full.repository())
        with pytest.raises(PushFailed, match=f"{full.address} has no space left: .*no space left on device") as caught:
            client.put_blob(full.repository(), b"x" * 600_000)
        assert [status for _, _, status in full.requests()].count(500) == 1, "it was asked again"
    assert caught.value.hint == "free space there, then push again"


def test_what_skopeo_stored_has_the_digest_that_skopeo_says(
    client: OciRegistry, repository: str, plain: Registry
) -> None:
    stored = store(client, repository)
    copy = f"{repository}-copy"

    skopeo(
        "copy", "--src-tls-verify=false", "--dest-tls-verify=false", f"docker://{repository}:1", f"docker://{copy}:1"
    )

    found = client.manifest(copy, "1")
    assert found
    said = skopeo("inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{copy}:1").strip()
    assert found.digest == said == stored.digest


def test_skopeo_reads_the_very_bytes_that_we_stored(client: OciRegistry, repository: str) -> None:
    document = index(store(client, repository))
    client.put_manifest(repository, "both", document, media_type=INDEX)

    assert skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{repository}:both").encode() == document


# Artifacts. Debian's registry lacks the referrers API: with it, the fallback tag is the way.


def fallback(client: OciRegistry, subject: RemoteManifest) -> dict[str, Any]:
    found = client.manifest(subject.repository, subject.digest.replace(":", "-"))
    assert found
    return dict(found.document)


def test_an_artifact_refers_to_its_image_and_leaves_it_alone(client: OciRegistry, repository: str) -> None:
    subject = store(client, repository)

    digest = client.attach(subject, Artifact(SBOM, b"components", {"org.example": "x"}))

    artifact = client.manifest(repository, digest)
    assert artifact
    assert artifact.document["subject"] == {"mediaType": MANIFEST, "digest": subject.digest, "size": subject.size_bytes}
    assert (artifact.document["artifactType"], artifact.document["annotations"]) == (SBOM, {"org.example": "x"})
    assert client.blob(repository, artifact.document["layers"][0]["digest"], limit_bytes=100) == b"components"
    assert client.manifest(repository, "1") == subject


def test_artifacts_are_found_by_their_type(client: OciRegistry, repository: str) -> None:
    subject = store(client, repository)
    first = client.attach(subject, Artifact(SBOM, b"1", {}))
    second = client.attach(subject, Artifact(SBOM, b"2", {}))
    other = client.attach(subject, Artifact("application/spdx+json", b"1", {}))

    assert client.attached(repository, subject.digest, artifact_type=SBOM) == [first, second]
    assert client.attached(repository, subject.digest, artifact_type="application/spdx+json") == [other]
    assert client.attached(repository, subject.digest, artifact_type="text/plain") == []
    assert client.attached(repository, ABSENT, artifact_type=SBOM) == []


def test_the_same_artifact_again_is_stored_once(client: OciRegistry, repository: str) -> None:
    subject, artifact = store(client, repository), Artifact(SBOM, b"same", {"a": "b"})

    assert client.attach(subject, artifact) == client.attach(subject, artifact)

    assert len(fallback(client, subject)["manifests"]) == 1


def test_what_others_listed_under_the_fallback_tag_stays(client: OciRegistry, repository: str) -> None:
    subject = store(client, repository)
    tag = subject.digest.replace(":", "-")
    theirs = json.loads(index(subject)) | {"annotations": {"of": "others"}}
    client.put_manifest(repository, tag, json.dumps(theirs).encode(), media_type=INDEX)

    digest = client.attach(subject, Artifact(SBOM, b"ours", {}))

    found = fallback(client, subject)
    assert found["annotations"] == {"of": "others"}
    assert [entry["digest"] for entry in found["manifests"]] == [subject.digest, digest]
    assert client.attached(repository, subject.digest, artifact_type=SBOM) == [digest]


def test_a_fallback_tag_that_is_something_else_is_not_overwritten(client: OciRegistry, repository: str) -> None:
    subject = store(client, repository)
    store(client, repository, subject.digest.replace(":", "-"), architecture="amd64")

    with pytest.raises(PushFailed, match="is no list of referrers"):
        client.attach(subject, Artifact(SBOM, b"x", {}))


@pytest.mark.parametrize("filters", [True, False])
def test_a_registry_with_the_referrers_api_lists_page_after_page(
    filters: bool, client: OciRegistry, plain: Registry
) -> None:
    with referrers_api(plain.address, page=1, filters=filters) as modern:
        subject = store(client, modern.repository(f"org/api-{filters}".lower()))
        stored = [client.attach(subject, Artifact(SBOM, data, {})) for data in (b"1", b"2", b"3")]
        client.attach(subject, Artifact("text/plain", b"1", {}))

        assert client.attached(subject.repository, subject.digest, artifact_type=SBOM) == stored
        assert client.manifest(subject.repository, subject.digest.replace(":", "-")) is None


def test_an_api_that_does_not_say_that_it_listed_gets_the_fallback_tag_too(
    client: OciRegistry, plain: Registry
) -> None:
    with referrers_api(plain.address) as modern, middleman(modern.address, alter=_silent) as shy:
        subject = store(client, shy.repository("org/shy"))
        digest = client.attach(subject, Artifact(SBOM, b"1", {}))

        assert [entry["digest"] for entry in fallback(client, subject)["manifests"]] == [digest]


def _silent(asked: Asked, answer: Answer) -> Answer:
    return answer.but(headers={"oci-subject": None})
