"""What counts as the same image, and what a forced choice changes. The rule itself is in test_images.py."""

from dataclasses import replace

import pytest

from apps.errors import ImageNotFound
from apps.processors.reference import AMD64, ARM64, ImageReference, Platform
from apps.processors.selection import Selection, Standard, difference, select, standard
from apps.processors.state import BuildRecord, ContainerRecord
from tests.unit.test_images import ID, ONE, TWO, record, spec

PUSHED = ONE.digest
SPEC = spec().spec_digest
CLASSIC = replace(record(), digest=None)
"""A build in the classic store: only a push tells its manifest's digest."""


def started(**changes: str | None) -> ContainerRecord:
    usual = ContainerRecord(
        engine="docker",
        id="c0ffee",
        name="processor-llm-echo-v3-00000000",
        port=18000,
        image_digest=ID,
        spec_digest=SPEC,
        source="build",
        platform="linux/amd64",
        secrets=(),
        secrets_hmac="",
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def chosen(pin: ImageReference | None, *builds: BuildRecord, forced: str | None = None) -> Selection:
    return select(spec(amd64=pin), AMD64, builds=builds, engine="docker", gives_digests=True, forced=forced)


def expected(
    pin: ImageReference | None, what: ContainerRecord | None, *builds: BuildRecord, platform: Platform = AMD64
) -> Standard:
    return standard(spec(amd64=pin), platform, what, builds=builds, engine="docker", gives_digests=True)


def drift(selection: Selection, image: str, known_as: tuple[str, ...] = ()) -> dict[str, str] | None:
    return difference(image=image, spec=SPEC, selection=selection, spec_now=SPEC, known_as=known_as)


# build → start → push → pin → start


def test_a_build_that_was_started_before_its_push_is_the_build_that_was_pushed() -> None:
    pushed = replace(CLASSIC, digest=PUSHED)

    assert drift(chosen(None, CLASSIC), ID) is None
    assert drift(chosen(None, pushed), ID) is None
    assert drift(chosen(None, pushed), PUSHED) is None


def test_the_pin_of_a_build_is_that_build_under_both_names() -> None:
    selection = chosen(ONE, replace(CLASSIC, digest=PUSHED))

    assert (selection.source, selection.digest) == ("pin", PUSHED)
    assert drift(selection, ID) is None
    assert drift(selection, PUSHED) is None


def test_the_pin_of_the_last_build_is_no_change_to_speak_of() -> None:
    assert chosen(ONE, replace(CLASSIC, digest=PUSHED)).notes == ()


def test_the_pin_of_another_image_is_not_the_build() -> None:
    selection = chosen(TWO, replace(CLASSIC, digest=PUSHED))

    assert drift(selection, ID) == {"of": "image", "running": ID, "selected": TWO.digest}
    assert drift(selection, PUSHED) is not None


# what differs


def test_the_engines_names_for_what_runs_count_too() -> None:
    assert drift(chosen(ONE), ID, (ID, ONE.digest)) is None
    assert drift(chosen(ONE), ID, (ID, TWO.digest)) == {"of": "image", "running": ID, "selected": ONE.digest}


def test_an_image_that_differs_is_told_before_a_spec_that_does() -> None:
    both = difference(image=ID, spec="old", selection=chosen(ONE), spec_now="new")
    one = difference(image=ONE.digest, spec="old", selection=chosen(ONE), spec_now="new")

    assert both is not None
    assert both["of"] == "image"
    assert one == {"of": "spec", "running": "old", "selected": "new"}


# a choice that was forced at start


@pytest.mark.parametrize("what", [None, started()])
def test_without_a_forced_choice_the_registry_decides(what: ContainerRecord | None) -> None:
    found = expected(ONE, what, record())

    assert (found.selection.source, found.spec_digest, found.note) == ("pin", SPEC, None)


@pytest.mark.parametrize(("forced", "digest"), [("build", record().identity), ("pin", ONE.digest)])
def test_a_forced_source_counts_and_is_said(forced: str, digest: str) -> None:
    found = expected(ONE, started(forced=forced), record(pin=ONE if forced == "pin" else None))

    assert (found.selection.source, found.selection.digest) == (forced, digest)
    assert found.note == f"llm/echo@3: --source {forced} at start, which counts until the next one"


def test_a_forced_source_still_drifts_when_it_changes() -> None:
    found = expected(TWO, started(forced="pin", image_digest=ONE.digest))

    assert drift(found.selection, ONE.digest) == {"of": "image", "running": ONE.digest, "selected": TWO.digest}


def test_a_forced_source_that_is_gone_is_not_found() -> None:
    with pytest.raises(ImageNotFound, match="has no pin"):
        expected(None, started(forced="pin"), record())


def test_allowed_drift_compares_with_what_was_started() -> None:
    found = expected(ONE, started(forced="drift", spec_digest="sha256:old"), record())

    assert (found.selection.digest, found.spec_digest) == (ID, "sha256:old")
    assert found.note is not None
    assert "--allow-drift" in found.note
    assert drift(found.selection, TWO.digest) is not None


def test_allowed_drift_asks_neither_pin_nor_build() -> None:
    assert expected(None, started(forced="drift")).selection.digest == ID


def test_allowed_drift_is_of_the_platform_that_runs() -> None:
    with pytest.raises(ImageNotFound):
        expected(None, started(forced="drift"), platform=ARM64)
