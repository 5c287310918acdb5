"""A request's inputs: their one canonical form, its digest, and whether the spec's schema allows them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import orjson
import rfc8785

from processor_runtime import artifacts, codes
from processor_runtime.failures import Failure
from processor_runtime.protocol import ARTIFACT_MARK

MAX_ERRORS: Final = 20
MAX_ERROR_CHARACTERS: Final = 300


class InvalidInputs(Exception):
    """The inputs can't be used; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Canonical:
    """Inputs in RFC 8785 form: equal inputs are equal bytes, and that is what handlers are given."""

    text: bytes
    digest: str
    artifacts: tuple[str, ...] = ()
    """The paths that they name, each once, in canonical order."""


def canonical(inputs: Mapping[str, Any]) -> Canonical:
    """Raises InvalidInputs for what has no canonical form: huge numbers, half surrogates, endless nesting.

    Also for an artifact that is none.
    """
    try:
        text = rfc8785.dumps(dict(inputs))
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as exc:
        raise InvalidInputs(Failure(codes.INPUTS, f"the inputs have no canonical JSON form: {exc}")) from exc
    return Canonical(text, f"sha256:{hashlib.sha256(text).hexdigest()}", _artifacts(text))


def _artifacts(text: bytes) -> tuple[str, ...]:
    if ARTIFACT_MARK not in text:
        return ()
    try:
        return tuple(dict.fromkeys(value.path for value in artifacts.named(orjson.loads(text))))
    except artifacts.Malformed as exc:
        words = f"the inputs are wrong at {exc.pointer or 'their root'}: {exc.message}"
        raise InvalidInputs(Failure(codes.INPUTS, words, "", {"pointer": exc.pointer})) from exc


class Validator:
    """The spec's schema, compiled at the first use: the library is loaded no earlier."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._validator: Any = None

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raises InvalidInputs with every pointer that is wrong, the first of them on its own too."""
        if self._validator is None:
            import jsonschema_rs

            try:
                # no schema may reach the network
                self._validator = jsonschema_rs.validator_for(dict(self._schema), retriever=_refuse)
            except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as exc:
                words = f"the schema of the inputs can't be used: {_short(str(exc).partition(chr(10))[0])}"
                raise InvalidInputs(Failure(codes.INPUTS, words, "correct inputs in registry.yaml")) from exc
        if self._validator.is_valid(inputs):
            return
        errors = []
        for error in self._validator.iter_errors(inputs):
            errors.append({"pointer": _pointer(error.instance_path), "message": _short(error.message)})
            if len(errors) == MAX_ERRORS:
                break
        first = errors[0]
        raise InvalidInputs(
            Failure(
                codes.INPUTS,
                f"the inputs are wrong at {first['pointer'] or 'their root'}: {first['message']}",
                "compare them with inputs in registry.yaml",
                {"pointer": first["pointer"], "errors": errors},
            )
        )


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"schemas are not fetched: {uri}")


def _pointer(path: list[str | int]) -> str:
    """RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _short(message: str) -> str:
    return message if len(message) <= MAX_ERROR_CHARACTERS else message[: MAX_ERROR_CHARACTERS - 1] + "…"
