"""JSON Schema 2020-12: compile without reaching any network, tell each violation by its place."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

import jsonschema_rs

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
Path = tuple[str | int, ...]
Validator = jsonschema_rs.Draft202012Validator

_MESSAGE_CHARACTERS = 300  # the library quotes the whole value, which may be megabytes
_VIOLATIONS = 100  # nobody reads more of them


class Violation(NamedTuple):  # no dataclass: every run would pay for making it
    """One place where a document breaks its schema."""

    path: Path
    """Keys and array positions from the document's root."""
    keyword: str
    """The schema's keyword that it breaks, e.g. `required`."""
    schema_path: Path
    message: str
    names: tuple[str, ...] = ()
    """The keys that are missing (`required`) or too many (`additionalProperties`)."""

    @property
    def pointer(self) -> str:
        """`path` as a JSON pointer (RFC 6901): empty for the whole document."""
        return pointer(self.path)


class SchemaError(ValueError):
    """The schema itself is wrong, at `path`."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


def compile_schema(schema: Mapping[str, Any]) -> Validator:
    """A validator for `schema`. Raises SchemaError; a `$ref` to another document is one."""
    if schema.get("$schema", DIALECT) != DIALECT:
        raise SchemaError(f"$schema is not {DIALECT}", ("$schema",))
    try:
        return Validator(dict(schema), retriever=_refuse)
    except jsonschema_rs.ValidationError as exc:
        raise SchemaError(_short(exc.message), tuple(exc.instance_path)) from exc
    except ValueError as exc:  # nested deeper than the library goes, or a lone surrogate
        raise SchemaError(_short(str(exc)), ()) from exc


def violations(validator: Validator, document: object) -> Iterator[Violation]:
    """Where `document` breaks the schema, at most 100 places. Raises ValueError when it can't be looked at."""
    for error in islice(validator.iter_errors(document), _VIOLATIONS):
        schema_path = tuple(error.schema_path)
        keyword = str(schema_path[-1]) if schema_path else ""
        yield Violation(tuple(error.instance_path), keyword, schema_path, _short(error.message), _names(error.kind))


def pointer(path: Path) -> str:
    """A JSON pointer, e.g. `/params/messages/0`."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def _names(kind: Any) -> tuple[str, ...]:
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return (kind.property,)
    return tuple(getattr(kind, "unexpected", ()))


def _refuse(uri: str) -> Any:
    raise ValueError(f"a schema may not refer to another document: {uri}")


def _short(message: str) -> str:
    return message if len(message) <= _MESSAGE_CHARACTERS else message[: _MESSAGE_CHARACTERS - 1] + "…"
