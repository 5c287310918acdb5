import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import InvalidReference, UsageError
from apps.processors.reference import AMD64, ARM64, PLATFORMS, ImageReference, Platform, ProcessorRef, parse_digest

DIGEST = "sha256:" + "0123456789abcdef" * 4
WORD = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True)

GOOD_REFS = ["llm/litellm@1", "a/b@1", "0/0@999999999", "text-to-speech/x-1@42"]
BAD_REFS = ["", "llm", "llm/litellm", "llm/litellm@", "llm/litellm@0", "llm/litellm@01", "llm/litellm@-1"]
BAD_REFS += ["llm/litellm@1.0", "llm/litellm@v1", "LLM/litellm@1", "llm/lite_llm@1", "llm//litellm@1", "/litellm@1"]
BAD_REFS += [
    "-llm/x@1",
    "llm-/x@1",
    "l--m/x@1",
    "llm/x@1 ",
    " llm/x@1",
    "llm/x@1\n",
    "../x@1",
    "a/b/c@1",
    "llm/x@\u0661",
]
BAD_REFS += ["llm/x@9999999999", "llm/x@1@2", "llm/x@latest", "llm/\u00e9@1", "llm/x@1\0"]

GOOD_IMAGES = ["ghcr.io/org/llm-litellm", "localhost:5000/x", "localhost/x", "127.0.0.1:5000/a/b/c"]
GOOD_IMAGES += ["r.example.com/a__b/c.d-e--f_g", "R.example.COM/x", "registry:5000/x", "Registry/x"]
BAD_IMAGES = ["", "ghcr.io", "ghcr.io/", "/x", "ghcr.io/Org/x", "ghcr.io/org/x:1", "ghcr.io//x", "ghcr.io/x/", "-a/x"]
BAD_IMAGES += [
    "ghcr.io:port/x",
    "http://ghcr.io/x",
    "ghcr.io/x y",
    "ghcr.io/x\n",
    "ghcr.io/../x",
    "ghcr.io/_x",
    "a@b/x",
]

BAD_DIGESTS = ["", "sha256:", DIGEST[:-1], DIGEST + "0", DIGEST.upper(), "sha512:" + DIGEST[7:], DIGEST + "\n"]
BAD_DIGESTS += [DIGEST[7:], DIGEST.replace("a", "g"), "sha256:abc..."]


@pytest.mark.parametrize("text", GOOD_REFS)
def test_a_good_ref_is_read_and_written_alike(text: str) -> None:
    assert str(ProcessorRef.parse(text)) == text


@pytest.mark.parametrize("text", BAD_REFS)
def test_a_bad_ref_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        ProcessorRef.parse(text)

    assert caught.value.message == f"{text!r} is not a processor ref"
    assert "namespace/name@version" in caught.value.hint


@given(namespace=WORD, name=WORD, version=st.integers(1, 999_999_999))
def test_every_ref_survives_being_written_and_read(namespace: str, name: str, version: int) -> None:
    ref = ProcessorRef(namespace, name, version)

    assert ProcessorRef.parse(str(ref)) == ref


@given(text=st.text() | st.text(alphabet=string.ascii_lowercase + "0123456789/@-", max_size=20))
def test_any_text_is_a_ref_in_one_spelling_or_refused(text: str) -> None:
    try:
        ref = ProcessorRef.parse(text)
    except InvalidReference:
        return
    assert str(ref) == text


def test_refs_sort_by_version_as_a_number() -> None:
    refs = [ProcessorRef.parse(text) for text in ("llm/x@10", "llm/x@9", "a/z@1")]

    assert [str(ref) for ref in sorted(refs)] == ["a/z@1", "llm/x@9", "llm/x@10"]


def test_a_slug_is_the_ref_in_one_word() -> None:
    assert ProcessorRef.parse("llm/litellm@1").slug == "llm-litellm-v1"


@pytest.mark.parametrize("repository", GOOD_IMAGES)
def test_a_good_image_is_read_and_written_alike(repository: str) -> None:
    text = f"{repository}@{DIGEST}"

    image = ImageReference.parse(text)

    assert (str(image), image.repository, image.digest) == (text, repository, DIGEST)


@pytest.mark.parametrize("repository", BAD_IMAGES)
def test_a_bad_repository_is_refused(repository: str) -> None:
    with pytest.raises(InvalidReference):
        ImageReference.parse(f"{repository}@{DIGEST}")


@pytest.mark.parametrize("repository", ["org/image", "registry/x", "library/python/x"])
def test_what_docker_takes_for_docker_hub_is_refused_unless_it_says_so(repository: str) -> None:
    with pytest.raises(InvalidReference, match=f"to Docker it is docker.io/{repository}") as caught:
        ImageReference.parse(f"{repository}@{DIGEST}")

    assert "docker.io is the host of Docker Hub" in caught.value.hint
    assert str(ImageReference.parse(f"docker.io/{repository}@{DIGEST}")) == f"docker.io/{repository}@{DIGEST}"


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_a_bad_digest_is_refused(digest: str) -> None:
    with pytest.raises(InvalidReference):
        ImageReference.parse(f"ghcr.io/org/x@{digest}")
    with pytest.raises(InvalidReference, match="is not a digest"):
        parse_digest(digest)


@pytest.mark.parametrize("text", ["ghcr.io/org/x", "ghcr.io/org/x:latest", "ghcr.io/org/x:1.0"])
def test_a_tag_alone_is_not_pinned(text: str) -> None:
    with pytest.raises(InvalidReference, match="is not pinned"):
        ImageReference.parse(text)


@given(text=st.text() | st.text(alphabet="abc.:/@-_", max_size=24).map(lambda name: f"{name}@{DIGEST}"))
def test_any_text_is_an_image_in_one_spelling_or_refused(text: str) -> None:
    try:
        image = ImageReference.parse(text)
    except InvalidReference:
        return
    assert str(image) == text


def test_a_long_repository_is_answered_at_once() -> None:
    with pytest.raises(InvalidReference):
        ImageReference.parse("a" * 50_000 + "." * 50_000 + "@" + DIGEST)


@pytest.mark.parametrize(("text", "platform"), [("amd64", AMD64), ("linux/amd64", AMD64), ("linux/arm64", ARM64)])
def test_a_platform_may_be_short_and_is_written_long(text: str, platform: Platform) -> None:
    assert Platform.parse(text) == platform
    assert str(platform).startswith("linux/")


@pytest.mark.parametrize(
    "text", ["", "x86_64", "AMD64", "linux/", "linux/arm", "linux/linux/amd64", "windows/amd64", "arm64/v8", "amd64 "]
)
def test_an_unknown_platform_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="unknown platform"):
        Platform.parse(text)


@given(text=st.text() | st.sampled_from(["amd64", "arm64", "linux/amd64", "linux/arm64"]))
def test_any_text_is_one_of_two_platforms_or_refused(text: str) -> None:
    try:
        platform = Platform.parse(text)
    except UsageError:
        return
    assert platform in PLATFORMS
    assert Platform.parse(str(platform)) == platform


def test_a_list_of_platforms_keeps_order_and_drops_repeats() -> None:
    assert Platform.parse_list("arm64, linux/amd64,linux/arm64") == (ARM64, AMD64)


@pytest.mark.parametrize("text", ["", ",", "amd64,", "amd64;arm64", "amd64 arm64"])
def test_a_list_with_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Platform.parse_list(text)


@pytest.mark.parametrize(
    ("machine", "platform"), [("x86_64", AMD64), ("aarch64", ARM64), ("arm64", ARM64), ("AMD64", AMD64)]
)
def test_a_machine_has_a_platform(machine: str, platform: Platform) -> None:
    assert Platform.of_machine(machine) == platform


def test_a_machine_that_we_build_for_nothing_on_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="riscv64"):
        Platform.of_machine("riscv64")
