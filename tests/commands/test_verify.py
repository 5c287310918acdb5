"""processorctl verify on the process engine: pins against a real image registry, last builds, and what runs here."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from apps.processors.reference import ImageReference, ProcessorRef
from apps.processors.state import ContainerRecord, LocalState
from tests.commands.workshop import Workshop
from tests.integration.registries import Registry, registry
from tests.integration.tiny_images import put_image, put_index
from tests.shell import Outcome, Shell

REF = "llm/litellm@1"
NOWHERE = "unix:///nowhere/docker.sock"


@pytest.fixture(scope="module")
def images_at() -> Iterator[Registry]:
    with registry() as made:
        yield made


@pytest.fixture
def job(cli: Shell) -> Shell:
    """A CI job: a checkout that was just made, on a machine without Docker."""
    return replace(cli, variables={"DOCKER_HOST": NOWHERE})


def pin(shell: Shell, image: ImageReference, platform: str = "amd64", ref: str = REF) -> None:
    done = shell("processorctl", "pin", "--ref", ref, "--platform", platform, "--oci", str(image))
    assert done.status == 0, done


def verify(shell: Shell, *options: str, ref: str = REF) -> Outcome:
    return shell("processorctl", "verify", "--ref", ref, "--json", *options)


def findings(done: Outcome, status: int, code: str) -> list[tuple[str, str, str]]:
    assert (done.status, done.document["error"]["code"]) == (status, code)
    return [(each["kind"], each["platform"], each["check"]) for each in done.document["error"]["details"]["findings"]]


def rows(done: Outcome) -> list[dict[str, Any]]:
    document = done.document
    return list(document["checked"] if document["status"] == "success" else document["error"]["details"]["checked"])


# a CI job


def test_pins_that_are_there_and_right_are_verified_without_a_build_and_without_docker(
    job: Shell, images_at: Registry
) -> None:
    image = put_image(images_at)
    pin(job, image)

    done = verify(job)

    assert done.status == 0
    assert done.document == {
        "status": "success",
        "checked": [
            {
                "ref": REF,
                "platform": "linux/amd64",
                "pin": str(image),
                "registry": "present",
                "platform_ok": True,
                "build": None,
                "source": "never built",
                "local": "not started",
            },
            {
                "ref": REF,
                "platform": "linux/arm64",
                "pin": None,
                "registry": None,
                "platform_ok": None,
                "build": None,
                "source": "never built",
                "local": "not started",
            },
        ],
    }
    assert done.stderr == ""


def test_all_refs_are_verified_and_every_finding_is_told(job: Shell, images_at: Registry) -> None:
    arm64 = put_image(images_at, "arm64")
    pin(job, arm64)
    pin(job, put_index(images_at, arm64=arm64), "arm64")
    path = job.root / "registry/org/other/2/registry.yaml"
    path.parent.mkdir(parents=True)
    text = (job.root / "registry/llm/litellm/1/registry.yaml").read_text()
    path.write_text(text.replace(REF, "org/other@2", 2).replace(arm64.digest, "sha256:" + "0" * 64))

    done = job("processorctl", "verify", "--json")

    assert findings(done, 3, "ERR_DRIFT") == [
        ("difference", "linux/amd64", "platform_ok"),
        ("difference", "linux/arm64", "platform_ok"),
        ("difference", "linux/amd64", "registry"),
        ("difference", "linux/arm64", "platform_ok"),
    ]
    assert [row["ref"] for row in rows(done) if row["pin"]] == [REF, REF, "org/other@2", "org/other@2"]
    assert done.document["error"]["message"] == (
        f"{REF} for linux/amd64: {arm64} is for linux/arm64, not linux/amd64 (and 3 more)"
    )


def test_people_get_one_table_whatever_was_found(job: Shell, images_at: Registry) -> None:
    image = put_image(images_at)
    pin(job, image)
    good = job("processorctl", "verify", "--ref", REF)
    pin(job, put_image(images_at, "arm64"))
    bad = job("processorctl", "verify", "--ref", REF)

    heads = ["REF", "PLATFORM", "PIN", "REGISTRY", "LAST", "BUILD", "SOURCE", "RUNS", "HERE"]
    assert (good.status, bad.status) == (0, 3)
    assert good.stdout.splitlines()[0].split() == bad.stdout.splitlines()[0].split() == heads
    assert good.stdout.splitlines()[1].split() == [
        *(REF, "linux/amd64", image.digest[:19], "present", "-", "never", "built", "not", "started"),
    ]
    assert "other platform" in bad.stdout.splitlines()[1]
    assert (good.stderr, bad.stderr.splitlines()[0].split()[0]) == ("", "ERR_DRIFT:")


def test_a_registry_that_does_not_answer_leaves_the_pin_unverified(job: Shell) -> None:
    with registry() as made:
        pin(job, put_image(made))

    done = verify(job)

    assert findings(done, 69, "ERR_UNVERIFIED") == [("unverified", "linux/amd64", "registry")]
    assert rows(done)[0]["registry"] == "unknown"


def test_a_login_that_is_refused_leaves_the_pin_unverified(job: Shell) -> None:
    with registry(login="password") as made:
        pin(job, ImageReference(made.repository(), "sha256:" + "1" * 64))

        assert findings(verify(job), 69, "ERR_UNVERIFIED") == [("unverified", "linux/amd64", "registry")]


def test_a_difference_outweighs_what_can_not_be_told(job: Shell, images_at: Registry) -> None:
    with registry() as made:
        pin(job, put_image(made))
    pin(job, put_image(images_at, "amd64"), "arm64")

    assert findings(verify(job), 3, "ERR_DRIFT") == [
        ("unverified", "linux/amd64", "registry"),
        ("difference", "linux/arm64", "platform_ok"),
    ]


def test_an_unknown_ref_and_a_wrong_file_are_refused_as_everywhere(job: Shell) -> None:
    assert verify(job, ref="no/such@1").document["error"]["code"] == "ERR_REF_NOT_FOUND"
    (job.root / "registry/llm/litellm/1/registry.yaml").write_text("{}")
    assert job("processorctl", "verify", "--json").document["error"]["code"] == "ERR_REGISTRY"


# what was built and what runs


def test_an_engine_that_has_something_of_ours_and_does_not_answer_leaves_it_unverified(job: Shell) -> None:
    record = ContainerRecord(
        engine="docker",
        id="c0ffee",
        name="processor-llm-litellm-v1-00000000",
        port=18000,
        image_digest="sha256:" + "1" * 64,
        spec_digest="sha256:" + "2" * 64,
        source="build",
        platform="linux/amd64",
        secrets=(),
        secrets_hmac="",
    )
    LocalState(job.root / "code/.theory").record_container(ProcessorRef.parse(REF), record)

    done = verify(job)

    (job.root / "code/.theory/containers.json").unlink()
    assert findings(done, 69, "ERR_UNVERIFIED") == [("unverified", "linux/amd64", "local")]
    assert [row["local"] for row in rows(done)] == ["unknown", "not started"]


@pytest.fixture
def verified(workshop: Workshop) -> Iterator[str]:
    """A processor that was built and started on the process engine; stopped at the test's end."""
    ref = workshop.build(workshop.write("verified"))
    assert workshop.shell("localctl", "start", "--ref", ref).status == 0
    yield ref
    workshop.stop(ref)


def own_row(workshop: Workshop, done: Outcome) -> dict[str, Any]:
    (made,) = LocalState(workshop.state).builds(ProcessorRef.parse("test/verified@1"))
    return next(row for row in rows(done) if row["platform"] == made.platform)


def test_what_was_built_and_runs_unchanged_agrees(workshop: Workshop, verified: str) -> None:
    done = verify(workshop.shell, ref=verified)

    row = own_row(workshop, done)
    assert (done.status, row["source"], row["local"], row["build"]) == (0, "built", "same", None)


def test_a_spec_that_changed_since_start_is_a_difference(workshop: Workshop, verified: str) -> None:
    workshop.write("verified", runtime={"timeout_s": 61})

    done = verify(workshop.shell, ref=verified)

    assert [check for _, _, check in findings(done, 3, "ERR_DRIFT")] == ["local"]
    assert "the running spec is sha256:" in done.document["error"]["message"]
    assert done.document["error"]["hint"].startswith(f"localctl start --ref {verified} --platform ")


def test_a_build_that_does_not_run_yet_is_a_difference(workshop: Workshop, verified: str) -> None:
    workshop.build(workshop.write("verified", "def run(context):\n    context.write('text/response.txt', 'x')\n"))

    done = verify(workshop.shell, ref=verified)

    assert own_row(workshop, done)["local"] == "differs"
    assert "the running image is sha256:" in done.document["error"]["message"]


def test_a_pin_of_another_image_than_the_last_build_is_a_difference(
    workshop: Workshop, verified: str, images_at: Registry
) -> None:
    (made,) = LocalState(workshop.state).builds(ProcessorRef.parse(verified))
    pin(workshop.shell, put_image(images_at, made.platform.removeprefix("linux/")), made.platform, verified)

    done = verify(workshop.shell, ref=verified)

    assert findings(done, 3, "ERR_DRIFT") == [("difference", made.platform, "build")]
    assert own_row(workshop, done)["build"] == "differs"


def test_a_source_that_changed_since_the_build_that_is_pinned_is_a_difference(
    workshop: Workshop, verified: str, images_at: Registry
) -> None:
    ref = ProcessorRef.parse(verified)
    (made,) = LocalState(workshop.state).builds(ref)
    image = put_image(images_at, made.platform.removeprefix("linux/"))
    LocalState(workshop.state).record_builds(ref, [replace(made, digest=image.digest)])  # as if an engine had told
    pin(workshop.shell, image, made.platform, verified)
    before = verify(workshop.shell, ref=verified)

    handler = workshop.root / "code/processors/test/verified/1/handler.py"
    handler.write_text("def run(context):\n    pass\n")
    after = verify(workshop.shell, ref=verified)

    assert (before.status, own_row(workshop, before)["source"], own_row(workshop, before)["build"]) == (
        0,
        "built",
        "same",
    )
    assert findings(after, 3, "ERR_DRIFT") == [("difference", made.platform, "source")]
    assert own_row(workshop, after)["source"] == "changed since"


def test_a_source_that_can_not_be_read_leaves_a_pin_unverified_and_matters_to_nothing_else(
    workshop: Workshop, verified: str, images_at: Registry
) -> None:
    ref = ProcessorRef.parse(verified)
    (made,) = LocalState(workshop.state).builds(ref)
    (workshop.root / "code/processors/test/verified/1/Dockerfile").unlink()
    unpinned = verify(workshop.shell, ref=verified)
    image = put_image(images_at, made.platform.removeprefix("linux/"))
    LocalState(workshop.state).record_builds(ref, [replace(made, digest=image.digest)])
    pin(workshop.shell, image, made.platform, verified)

    pinned = verify(workshop.shell, ref=verified)

    assert (unpinned.status, own_row(workshop, unpinned)["source"]) == (0, "unknown")
    assert findings(pinned, 69, "ERR_UNVERIFIED") == [("unverified", made.platform, "source")]


def test_what_runs_with_nothing_to_compare_it_with_is_unverified(workshop: Workshop, verified: str) -> None:
    place = workshop.state / "builds.json"
    kept = place.read_text()
    place.write_text(kept.replace(f'"{verified}"', '"test/forgotten@1"'))

    done = verify(workshop.shell, ref=verified)

    place.write_text(kept)
    ((kind, _, check),) = findings(done, 69, "ERR_UNVERIFIED")
    assert (kind, check) == ("unverified", "local")
    assert "was not built" in done.document["error"]["message"]
