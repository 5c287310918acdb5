import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import InvalidInputs, UsageError
from apps.processors import inputs

HERE = Path("/nowhere")


def of_text(text: str) -> dict[str, Any] | None:
    return inputs.read(text, None, None, caller=HERE, stdin=None)


def of_bytes(data: bytes) -> dict[str, Any] | None:
    return inputs.read(None, None, "-", caller=HERE, stdin=io.BytesIO(data))


def of_file(folder: Path, name: str) -> dict[str, Any] | None:
    return inputs.read(None, name, None, caller=folder, stdin=None)


# the three ways


def test_inputs_come_from_the_call_itself() -> None:
    assert of_text('{"schema":"v1","params":{"text":"é\\u00e9 \\ud83d\\ude00"}}') == {
        "schema": "v1",
        "params": {"text": "éé 😀"},
    }


def test_inputs_come_from_a_file_relative_to_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"n": 1}')

    assert of_file(tmp_path, "in.json") == {"n": 1}
    assert of_file(HERE, str(tmp_path / "in.json")) == {"n": 1}


def test_inputs_come_from_stdin() -> None:
    assert of_bytes(b'{"n": 1}') == {"n": 1}


def test_inputs_come_through_a_pipe_that_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as `--inputs-file <(jq …)` gives one
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"n": 1}',))
    writer.start()

    assert of_file(tmp_path, "pipe") == {"n": 1}
    writer.join()


def test_no_way_is_no_inputs() -> None:
    assert inputs.read(None, None, None, caller=HERE, stdin=None) is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("{}", "in.json", None), "--inputs-json and --inputs-file"),
        (("{}", None, "-"), "--inputs-json and --inputs"),
        ((None, "in.json", "-"), "--inputs-file and --inputs"),
        (("", "", ""), "--inputs-json and --inputs-file and --inputs"),
    ],
)
def test_two_ways_at_once_are_a_usage_error(words: tuple[str | None, ...], named: str) -> None:
    with pytest.raises(UsageError, match=f"{named} exclude each other"):
        inputs.read(*words, caller=HERE, stdin=io.BytesIO())


@pytest.mark.parametrize("marker", ["", "in.json", "{}", "--", "x" * 100_000])
def test_anything_but_a_hyphen_for_stdin_is_a_usage_error(marker: str) -> None:
    with pytest.raises(UsageError, match="--inputs takes - ") as caught:
        inputs.read(None, None, marker, caller=HERE, stdin=io.BytesIO(b"{}"))

    assert len(caught.value.message) < 200


def test_a_closed_stdin_is_invalid() -> None:
    with pytest.raises(InvalidInputs, match="stdin is closed"):
        inputs.read(None, None, "-", caller=HERE, stdin=None)


def test_a_stdin_that_can_not_be_read_is_invalid(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)  # as `0>out` gives one

    with open(descriptor, "rb") as stdin, pytest.raises(InvalidInputs, match="stdin can't be read: Bad file"):
        inputs.read(None, None, "-", caller=HERE, stdin=stdin)


# what can't be read


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent.json", "No such file"), (".", "Is a directory"), ("a\0b", "null byte"), ("x" * 300, "too long")],
)
def test_an_unreadable_file_is_named_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InvalidInputs, match=reason) as caught:
        of_file(tmp_path, name)

    assert caught.value.details == {"file": name, "line": None, "column": None}


def test_a_hyphen_as_a_file_is_told_how_to_read_stdin(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputs) as caught:
        of_file(tmp_path, "-")

    assert caught.value.hint == "for stdin: --inputs -"


def test_more_than_a_message_holds_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputs, match="more than 8323072 bytes"):
        of_file(HERE, "/dev/zero")
    assert of_bytes(b'{"a":"' + b"x" * (inputs.MAX_INPUTS_BYTES - 8) + b'"}') is not None
    with pytest.raises(InvalidInputs, match="more than"):
        of_bytes(b'{"a":"' + b"x" * (inputs.MAX_INPUTS_BYTES - 7) + b'"}')


# what is no JSON that everybody reads alike: text, line, column, reason

BROKEN = [
    ("", 1, 1, "it is empty"),
    (" \n\t", 1, 1, "it is empty"),
    ("{", 1, 2, "expecting property name"),
    ('{"a": 1,\n "b": }', 2, 7, "expecting value"),
    ('{"a": 1} x', 1, 10, "extra data"),
    ("{'a': 1}", 1, 2, "expecting property name"),
    ('{"a": "x\ny"}', 1, 9, "invalid control character"),
    ('{"a": "\\x"}', 1, 8, "invalid \\escape"),
    ("\ufeff{}", 1, 1, "BOM"),
    ("[]", 1, 1, "no object"),
    ("1", 1, 1, "no object"),
    ("null", 1, 1, "no object"),
    ('{"a": NaN}', 1, 7, "NaN is not JSON"),
    ('{"a":\n [1, -Infinity]}', 2, 6, "-Infinity is not JSON"),
    ('{"NaN": "NaN", "a": Infinity}', 1, 21, "Infinity is not JSON"),
    ('{"a": 1, "b": {"a": 1,\n  "a": 2}}', 2, 3, "the key 'a' for the second time"),
    ('{"a": [{"a": 1}, {"a": 1}], "\\u0061": 1}', 1, 29, "the key 'a' for the second time"),
    ('{"a": 9007199254740992}', 1, 7, "whole ones up to 9007199254740991"),
    ('{"a": -9007199254740992}', 1, 7, "whole ones up to"),
    ('{"a": ' + "9" * 10_000 + "}", 1, 7, "whole ones up to"),
    ('{"a": 1e999}', 1, 7, "a number beyond"),
    ('{"a": "x",\n "b": "\\ud800"}', 2, 7, "half of a surrogate pair"),
    ('{"\\udc00": 1}', 1, 2, "half of a surrogate pair"),
]


@pytest.mark.parametrize(("text", "line", "column", "reason"), BROKEN)
def test_broken_json_is_named_by_line_and_column(text: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(InvalidInputs) as caught:
        of_text(text)

    assert caught.value.details == {"file": "--inputs-json", "line": line, "column": column}
    assert caught.value.message.startswith(f"inputs in --inputs-json:{line}:{column}: ")
    assert reason in caught.value.message
    assert len(caught.value.message) < 300


def test_a_file_is_named_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"a": 1,\n "a": 2}')

    with pytest.raises(InvalidInputs, match=r"inputs in \./in.json:2:2: the key 'a'") as caught:
        of_file(tmp_path, "./in.json")

    assert caught.value.details["file"] == "./in.json"


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b'{"a":\n "\xff"}', 2, 3),
        (b'{"\xc3\xa9": "\xe9"}', 1, 8),
        ('{"a": 1}'.encode("utf-16"), 1, 1),
        ('{"a": 1}'.encode("utf-32"), 1, 1),
    ],
)
def test_another_encoding_is_named_by_line_and_column(data: bytes, line: int, column: int) -> None:
    with pytest.raises(InvalidInputs, match="not UTF-8") as caught:
        of_bytes(data)

    assert caught.value.details == {"file": "stdin", "line": line, "column": column}


def test_bytes_of_the_call_that_are_no_text_are_refused_as_they_were_typed() -> None:
    with pytest.raises(InvalidInputs, match="not UTF-8: byte 0xff"):
        of_text('{"a": "\udcff"}')  # how Python hands over the byte 0xff of an argument


def test_what_no_argument_can_hold_is_refused_too() -> None:
    with pytest.raises(InvalidInputs, match="not UTF-8"):
        of_text('{"a": "\ud800"}')


def test_text_of_the_call_that_the_locale_could_not_decode_is_read_all_the_same() -> None:
    typed = '{"a": "é"}'.encode().decode("ascii", "surrogateescape")  # what LC_ALL=C makes of it

    assert of_text(typed) == {"a": "é"}


@pytest.mark.parametrize("depth", [129, 100_000])
def test_nesting_that_would_exhaust_a_stack_is_refused(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        with pytest.raises(InvalidInputs, match="more than 128 levels deep"):
            of_text(f'{{"a": {text}}}')


def test_many_values_side_by_side_are_not_deep() -> None:
    document: dict[str, Any] = {"a": [[[]]] * 1000}

    assert of_text(json.dumps(document)) == document


def test_numbers_that_canonical_json_knows_are_kept() -> None:
    document = of_text('{"a": [9007199254740991, -9007199254740991, 1e300, -0.0, 0.1]}')

    assert document == {"a": [9007199254740991, -9007199254740991, 1e300, -0.0, 0.1]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


@given(document=st.dictionaries(st.text(max_size=10), JSON, max_size=5), ascii_only=st.booleans())
def test_what_is_read_is_what_was_written_and_has_canonical_json(document: Any, ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)

    try:
        found = of_text(text)
    except InvalidInputs:
        with pytest.raises(ValueError, match=r"surrogates|domain|JCS|JSON|range"):
            rfc8785.dumps(json.loads(text, parse_constant=_refuse))
        return
    assert found == document
    assert rfc8785.dumps(found)


@given(data=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ud8NaInfity01e.-\n ', max_size=40).map(str.encode))
def test_any_bytes_are_an_object_or_invalid(data: bytes) -> None:
    try:
        found = of_bytes(data)
    except InvalidInputs as exc:
        assert set(exc.details) >= {"file", "line", "column"}  # noqa: PT017
        return
    assert rfc8785.dumps(found)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# against a schema

SCHEMA = {
    "type": "object",
    "required": ["schema", "params"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": "v1"},
        "params": {"type": "object", "properties": {"a/b": {"items": {"type": "string"}}}},
    },
}


def test_inputs_that_fit_are_valid() -> None:
    inputs.validate(SCHEMA, {"schema": "v1", "params": {"a/b": ["x"]}}, ref="test/any@1")


@pytest.mark.parametrize(
    ("document", "pointer", "message"),
    [
        ({"schema": "v1"}, "", '"params" is a required property'),
        ({"schema": "v2", "params": {}}, "/schema", '"v1" was expected'),
        ({"schema": "v1", "params": []}, "/params", "is not of type"),
        ({"schema": "v1", "params": {"a/b": ["x", 1]}}, "/params/a~1b/1", "1 is not of type"),
        ({"schema": "v1", "params": {}, "extra": 1}, "", "'extra' was unexpected"),
    ],
)
def test_a_fault_is_named_by_its_json_pointer(document: dict[str, Any], pointer: str, message: str) -> None:
    with pytest.raises(InvalidInputs) as caught:
        inputs.validate(SCHEMA, document, ref="test/any@1")

    assert caught.value.details["pointer"] == pointer
    assert [each["pointer"] for each in caught.value.details["errors"]] == [pointer]
    assert caught.value.message.startswith(f"inputs at {pointer or 'the top'}: ")
    assert message in caught.value.message
    assert caught.value.hint == "the schema and its examples: processorctl show --ref test/any@1"


def test_every_fault_is_told_up_to_a_hundred() -> None:
    with pytest.raises(InvalidInputs, match=r"\(and 99 more\)") as caught:
        inputs.validate(SCHEMA, {"schema": "v1", "params": {"a/b": [1] * 1000}}, ref="test/any@1")

    assert len(caught.value.details["errors"]) == 100


def test_a_huge_wrong_value_makes_no_huge_message() -> None:
    with pytest.raises(InvalidInputs) as caught:
        inputs.validate(SCHEMA, {"schema": "x" * 1_000_000, "params": {}}, ref="test/any@1")

    assert len(caught.value.message) < 500


def test_validation_leaves_the_inputs_as_they_are() -> None:
    document: dict[str, Any] = {}

    inputs.validate({"properties": {"model": {"default": "m"}}}, document, ref="test/any@1")

    assert document == {}
