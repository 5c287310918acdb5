"""WWW-Authenticate as registries send it, and as they might."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.processors.adapters.docker_login import Login
from apps.processors.adapters.oci_auth import Challenge, basic, challenges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ("Basic realm=harbor", [Challenge("basic", {"realm": "harbor"})]),
        ('BASIC   Realm = "a" ,charset="UTF-8"', [Challenge("basic", {"realm": "a", "charset": "UTF-8"})]),
        (
            'Basic realm="a, b", Bearer realm="https://c/d",error="insufficient_scope"',
            [
                Challenge("basic", {"realm": "a, b"}),
                Challenge("bearer", {"realm": "https://c/d", "error": "insufficient_scope"}),
            ],
        ),
        (r'Basic realm="say \"friend\" \\ and enter"', [Challenge("basic", {"realm": r'say "friend" \ and enter'})]),
        ("Negotiate", [Challenge("negotiate", {})]),
        ("Negotiate, Basic realm=a", [Challenge("negotiate", {}), Challenge("basic", {"realm": "a"})]),
        ("Negotiate dG9rZW4=, Basic realm=a", [Challenge("negotiate", {}), Challenge("basic", {"realm": "a"})]),
        ('Basic realm=""', [Challenge("basic", {"realm": ""})]),
        (", ,Basic realm=a", [Challenge("basic", {"realm": "a"})]),
        ("", []),
        ('"Bearer"', []),
    ],
)
def test_challenges_are_read(header: str, expected: list[Challenge]) -> None:
    assert challenges((header,)) == expected


def test_each_header_adds_its_challenges() -> None:
    found = challenges(('Bearer realm="https://a/b"', "Basic realm=c"))

    assert [challenge.scheme for challenge in found] == ["bearer", "basic"]


TOKENS = st.from_regex(re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+"), fullmatch=True)
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))
PARAMETERS = st.dictionaries(TOKENS, TEXTS, min_size=1, max_size=4)


def written(scheme: str, parameters: dict[str, str]) -> str:
    escaped = {name: re.sub(r'(["\\])', r"\\\1", value) for name, value in parameters.items()}
    return f"{scheme} " + ", ".join(f'{name}="{value}"' for name, value in escaped.items())


@given(st.lists(st.tuples(TOKENS, PARAMETERS), min_size=1, max_size=3))
def test_what_is_written_by_the_rules_is_read_back(sent: list[tuple[str, dict[str, str]]]) -> None:
    header = ", ".join(written(scheme, parameters) for scheme, parameters in sent)

    assert challenges((header,)) == [Challenge(scheme, parameters) for scheme, parameters in sent]


@given(st.text(st.sampled_from('Bearer realm="\\,= a\t'), max_size=60) | st.text(max_size=60))
def test_no_header_is_too_odd_to_be_read(header: str) -> None:
    assert isinstance(challenges((header,)), list)


def test_user_and_password_are_sent_as_the_rfc_says() -> None:
    assert basic(Login("Aladdin", "open sesame")) == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_a_password_beyond_ascii_is_sent_as_utf_8() -> None:
    assert basic(Login("test", "123£")) == "Basic dGVzdDoxMjPCow=="
