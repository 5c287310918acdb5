"""Names on Modal: short, of few characters, and told apart."""

import pytest

from apps.processors import modal_names
from apps.processors.reference import ProcessorRef

REF = ProcessorRef.parse("llm/litellm@1")
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("env", "branch", "user", "expected"),
    [
        ("dev", "feat/test", "veyorokon", "feat-test-veyorokon-llm-litellm-v1"),
        ("dev", "Feat//Ünder_score", "Some.One", "feat-nder-score-some-one-llm-litellm-v1"),
        ("dev", "-odd-", "me", "odd-me-llm-litellm-v1"),
        ("staging", "feat/test", "veyorokon", "llm-litellm-v1"),
        ("main", None, None, "llm-litellm-v1"),
    ],
)
def test_an_app_is_named_after_the_contract(env: str, branch: str | None, user: str | None, expected: str) -> None:
    assert modal_names.app_name(env, REF, branch=branch, user=user) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("feat/test", True), ("ветка/1", True), ("ветка", False), ("-/-", False)]
)
def test_what_leaves_no_word_in_a_name_is_known(text: str, expected: bool) -> None:
    assert modal_names.has_word(text) is expected


def test_a_name_that_is_too_long_is_cut_and_told_apart() -> None:
    names = {modal_names.app_name("dev", REF, branch="b" * 60 + end, user="me") for end in ("x", "y")}

    assert {len(name) for name in names} == {64}
    assert len(names) == 2
    assert all(name.startswith("b" * 55 + "-") for name in names)


def test_a_name_of_64_characters_stays_whole() -> None:
    branch = "b" * (64 - len("-me-llm-litellm-v1"))

    assert modal_names.app_name("dev", REF, branch=branch, user="me") == f"{branch}-me-llm-litellm-v1"


def test_a_digest_fits_a_label_and_comes_back() -> None:
    label = modal_names.label_of(DIGEST)

    assert len(label) == 50
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert modal_names.digest_of(label) == DIGEST


@pytest.mark.parametrize("label", ["", "v1", "sha256-", "sha256-short", "sha256-" + "é" * 43, "sha256-" + "A" * 42])
def test_a_label_of_somebody_else_is_no_digest(label: str) -> None:
    assert modal_names.digest_of(label) is None


def test_a_digest_fits_two_tags_and_comes_back() -> None:
    tags = modal_names.digest_tags(DIGEST)

    assert all(len(key) <= 63 and len(value) <= 63 for key, value in tags.items())
    assert modal_names.recorded_digest(tags) == DIGEST


@pytest.mark.parametrize("tags", [{}, {"theory-digest-a": "0" * 32}, {"theory-digest-a": "x", "theory-digest-b": "y"}])
def test_tags_without_a_whole_digest_record_none(tags: dict[str, str]) -> None:
    assert modal_names.recorded_digest(tags) is None
