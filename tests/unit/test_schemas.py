from typing import Any

import pytest

from apps.processors.schemas import SchemaError, compile_schema, pointer, violations


def test_a_schema_never_reaches_the_network() -> None:
    with pytest.raises(SchemaError, match="may not refer to another document: http://localhost:1/x"):
        compile_schema({"$ref": "http://localhost:1/x"})


def test_a_schema_of_another_draft_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"\$schema is not https://json-schema.org/draft/2020-12/schema"):
        compile_schema({"$schema": "http://json-schema.org/draft-07/schema#"})


def test_a_wrong_schema_is_told_by_its_place() -> None:
    with pytest.raises(SchemaError) as caught:
        compile_schema({"properties": {"a": {"minimum": "x"}}})

    assert caught.value.path == ("properties", "a", "minimum")


def test_a_schema_too_deep_to_compile_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(1000):
        schema = {"not": schema}

    with pytest.raises(SchemaError, match="Recursion"):
        compile_schema(schema)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}])
def test_a_schema_that_refers_to_itself_ends(schema: dict[str, Any]) -> None:
    assert list(violations(compile_schema(schema), {"a": 1})) == []


def test_a_pattern_that_backtracks_without_end_ends() -> None:
    validator = compile_schema({"pattern": "^(a+)+(?=c)$"})

    assert len(list(violations(validator, "a" * 50 + "b"))) == 1


def test_a_violation_names_keys_that_are_missing_or_too_many() -> None:
    validator = compile_schema({"required": ["a"], "additionalProperties": False, "properties": {"a": True}})

    found = {violation.keyword: violation.names for violation in violations(validator, {"b": 1, "c": 2})}

    assert {keyword: set(names) for keyword, names in found.items()} == {
        "required": {"a"},
        "additionalProperties": {"b", "c"},
    }


def test_2020_12_is_what_is_checked() -> None:
    validator = compile_schema({"prefixItems": [{"type": "integer"}], "unevaluatedItems": False})

    assert [violation.pointer for violation in violations(validator, ["x"])] == ["/0"]
    assert [violation.keyword for violation in violations(validator, [1, 2])] == ["unevaluatedItems"]


def test_a_pointer_escapes_what_rfc_6901_says() -> None:
    assert pointer(("a/b", 0, "m~n", "")) == "/a~1b/0/m~0n/"
