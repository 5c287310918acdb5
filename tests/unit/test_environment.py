import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import ConfigurationError
from apps.processors import environment
from apps.processors.spec import Secrets

DECLARED = Secrets(required=("KEY", "TOKEN"), optional=("URL",))


def test_secrets_are_the_declared_ones_alone() -> None:
    found = environment.secrets(DECLARED, {"KEY": "k", "TOKEN": "t", "URL": "u", "AWS_SECRET_ACCESS_KEY": "no"})

    assert (dict(found.values), found.missing) == ({"KEY": "k", "TOKEN": "t", "URL": "u"}, ())
    assert found.names == ("KEY", "TOKEN", "URL")


def test_all_missing_required_secrets_are_named_at_once() -> None:
    found = environment.secrets(DECLARED, {})

    assert (dict(found.values), found.missing) == ({}, ("KEY", "TOKEN"))


def test_an_empty_variable_counts_as_absent() -> None:
    found = environment.secrets(DECLARED, {"KEY": "", "TOKEN": "t", "URL": ""})

    assert (found.names, found.missing) == (("TOKEN",), ("KEY",))


def test_a_value_that_is_no_text_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match="the value of KEY is not UTF-8"):
        environment.secrets(DECLARED, {"KEY": "\udcff", "TOKEN": "t"})  # how Python hands over the byte 0xff


def test_secret_values_do_not_show_when_printed() -> None:
    assert "hunter22" not in repr(environment.secrets(DECLARED, {"KEY": "hunter22"}))


PROXIES = {"HTTP_PROXY": "http://proxy:3128", "https_proxy": "http://proxy:3128", "NO_PROXY": "localhost"}
FILES = {"SSL_CERT_FILE": "/etc/ca.pem", "REQUESTS_CA_BUNDLE": "/etc/ca.pem", "CURL_CA_BUNDLE": "/etc/ca.pem"}
OTHERS = {"PATH": "/bin", "HOME": "/", "AWS_ACCESS_KEY_ID": "a", "MINIO_STORAGE_SECRET_KEY": "m", "ALL_PROXY": ""}
CALLER = PROXIES | FILES | OTHERS


def test_proxies_are_all_that_passes_into_a_container() -> None:
    assert environment.passthrough(CALLER, paths=False) == PROXIES


def test_files_of_certificates_pass_where_they_are_the_same_files() -> None:
    assert environment.passthrough(CALLER, paths=True) == PROXIES | FILES


def test_a_secret_is_redacted_wherever_it_stands() -> None:
    text = environment.redact("401 for key sk-123456 (sk-123456)", {"KEY": "sk-123456"})

    assert text == "401 for key *** (***)"


def test_a_secret_within_another_leaves_nothing_of_either() -> None:
    values = {"SHORT": "abcdef", "LONG": "abcdef-ghijkl"}

    assert environment.redact("x abcdef-ghijkl y abcdef", values) == "x *** y ***"


def test_a_secret_is_redacted_inside_json() -> None:
    secret = 'quote " and\nnew line é'

    text = environment.redact(json.dumps({"a": secret}) + json.dumps({"a": secret}, ensure_ascii=False), {"S": secret})

    assert text == '{"a": "***"}{"a": "***"}'


def test_a_key_of_several_lines_is_redacted_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----\n"

    assert "MIIEvQIBADANBg" not in environment.redact("log: MIIEvQIBADANBg", {"PEM": key})


def test_a_value_too_short_to_be_a_secret_is_left() -> None:
    assert environment.redact("1 of 10 done", {"FLAG": "1"}) == "1 of 10 done"


@given(before=st.text(), secret=st.text(st.characters(exclude_characters="*"), min_size=6), after=st.text())
def test_no_secret_survives_redaction(before: str, secret: str, after: str) -> None:
    assert secret not in environment.redact(before + secret + after, {"S": secret})
