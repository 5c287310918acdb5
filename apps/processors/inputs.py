"""The three ways to give a run its inputs, and their check against the processor's schema."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from processor_runtime.protocol import MAX_REQUEST_BYTES

from apps.errors import InvalidInputs, UsageError
from apps.processors.schemas import compile_schema, violations

MAX_INPUTS_BYTES: Final = MAX_REQUEST_BYTES - 64 * 1024  # the rest of the message that they travel in
MAX_DEPTH: Final = 128  # validators and serializers at both ends recurse
MAX_INTEGER: Final = 2**53 - 1  # beyond it there is no canonical JSON (RFC 8785)

_TEXT = "--inputs-json"
_STDIN = "stdin"
# Of well-formed JSON: a key, another string, a bracket, a number or a constant
_TOKEN = r'("[^"\\]*+(?:\\.[^"\\]*+)*+")(\s*+:)?|[{}\[\]]|-?[0-9][0-9.eE+-]*+|-?[A-Za-z]++'


class _Unacceptable(Exception):
    """Well-formed JSON that means different things to different readers; `_fault` says where."""


def read(
    json_text: str | None, file: str | None, stdin_marker: str | None, *, caller: Path, stdin: BinaryIO | None
) -> dict[str, Any] | None:
    """The inputs document that the call's words give; None when they give none.

    `file` is relative to the folder `caller`; `stdin_marker` is what `--inputs` was given, which must be `-`.
    Raises UsageError (more than one way, another marker) and InvalidInputs (details: file, line, column).
    """
    given = [
        option
        for option, value in ((_TEXT, json_text), ("--inputs-file", file), ("--inputs", stdin_marker))
        if value is not None
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="give the inputs in one way")
    if json_text is not None:
        return _parse(_typed_bytes(json_text), _TEXT)
    if file is not None:
        return _parse(_file(file, caller), file)
    if stdin_marker is not None:
        return _parse(_stdin(stdin_marker, stdin), _STDIN)
    return None


def validate(schema: Mapping[str, Any], document: Mapping[str, Any], *, ref: str) -> None:
    """Check `document` against the inputs schema of the processor `ref`.

    Raises InvalidInputs: details.pointer is the JSON pointer (RFC 6901) of the first fault, details.errors all.
    """
    errors = [
        {"pointer": violation.pointer, "message": violation.message}
        for violation in violations(compile_schema(schema), document)
    ]
    if errors:
        first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise InvalidInputs(
            f"inputs at {first['pointer'] or 'the top'}: {first['message']}{more}",
            hint=f"the schema and its examples: processorctl show --ref {ref}",
            details={"pointer": first["pointer"], "errors": errors},
        )


# Bytes


def _typed_bytes(text: str) -> bytes:
    """A word of the call as it was typed: what the locale could not decode is there as surrogates (PEP 383)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a caller in Python gave others
        return text.encode("utf-8", "surrogatepass")


def _file(name: str, caller: Path) -> bytes:
    try:
        with (caller / name).open("rb") as file:
            return file.read(MAX_INPUTS_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise InvalidInputs(
            f"inputs file {name!r} can't be read: {reason}",
            hint="for stdin: --inputs -" if name == "-" else "a path is relative to the current folder",
            details=_place(name),
        ) from exc


def _stdin(marker: str, stdin: BinaryIO | None) -> bytes:
    if marker != "-":
        raise UsageError(
            f"--inputs takes - (stdin) alone, not {marker[:40]!r}", hint="use --inputs-json JSON or --inputs-file PATH"
        )
    if stdin is None:
        raise InvalidInputs("stdin is closed", hint="pipe the inputs in", details=_place(_STDIN))
    try:
        return stdin.read(MAX_INPUTS_BYTES + 1)
    except OSError as exc:
        raise InvalidInputs(f"stdin can't be read: {exc.strerror or exc}", details=_place(_STDIN)) from exc


# JSON


def _parse(data: bytes, source: str) -> dict[str, Any]:
    text = _decode(data, source)
    try:
        document = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_integer, parse_float=_finite
        )
    except json.JSONDecodeError as exc:
        _wrong(source, text, exc.pos, exc.msg[0].lower() + exc.msg[1:])
    except RecursionError:
        _too_deep(source)
    except _Unacceptable:
        _wrong(source, text, *_fault(text))
    if not isinstance(document, dict):
        _wrong(source, text, 0, 'the document is no object: inputs are {"schema": "v1", "params": {…}}')
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _refuse_depth(document, source)
    if "\\u" in text and (fault := _fault(text, only_strings=True))[1]:
        _wrong(source, text, *fault)
    return document


def _decode(data: bytes, source: str) -> str:
    if len(data) > MAX_INPUTS_BYTES:
        raise InvalidInputs(
            f"{_words(source)}: more than {MAX_INPUTS_BYTES} bytes",
            hint="give large data by a URL in the inputs",
            details={**_place(source), "limit_bytes": MAX_INPUTS_BYTES},
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8")
        _wrong(source, before, len(before), f"not UTF-8: byte 0x{data[exc.start]:02x}")
    if not text.strip():
        _wrong(source, text, 0, "no JSON, it is empty")
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unacceptable
    return found


def _refuse(constant: str) -> NoReturn:
    raise _Unacceptable


def _integer(digits: str) -> int:
    # The length first: Python refuses to read thousands of digits.
    if len(digits) > 17 or abs(number := int(digits)) > MAX_INTEGER:
        raise _Unacceptable
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _Unacceptable
    return number


def _fault(text: str, *, only_strings: bool = False) -> tuple[int, str]:
    """Where well-formed JSON is unacceptable, and why; nothing where it is not."""
    keys: list[set[str]] = []
    for match in re.finditer(_TOKEN, text, re.DOTALL):
        token, string = match[0], match[1]
        if string is not None:
            word = json.loads(string, strict=False)
            if not _is_text(word):
                return match.start(), "half of a surrogate pair is no text"
            if match[2] and not only_strings:
                if word in keys[-1]:
                    return match.start(), f"the key {word[:80]!r} for the second time"
                keys[-1].add(word)
        elif only_strings:
            continue
        elif token in "{[":
            keys.append(set())
        elif token in "}]":
            keys.pop()
        elif reason := _fault_of(token):
            return match.start(), reason
    return 0, ""


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _fault_of(token: str) -> str:
    if token in ("true", "false", "null"):
        return ""
    if token in ("NaN", "Infinity", "-Infinity"):
        return f"{token} is not JSON"
    try:
        (_integer if token.lstrip("-").isdigit() else _finite)(token)
    except _Unacceptable:
        return f"a number beyond what all JSON readers agree on (whole ones up to {MAX_INTEGER})"
    return ""


def _refuse_depth(document: object, source: str) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    _too_deep(source)


def _too_deep(source: str) -> NoReturn:
    raise InvalidInputs(f"{_words(source)}: more than {MAX_DEPTH} levels deep", details=_place(source)) from None


def _wrong(source: str, text: str, index: int, reason: str) -> NoReturn:
    line = text.count("\n", 0, index) + 1
    column = index - (text.rfind("\n", 0, index) + 1) + 1
    raise InvalidInputs(
        f"{_words(source)}:{line}:{column}: {reason}",
        hint='inputs are one JSON object, e.g. {"schema": "v1", "params": {}}',
        details=_place(source, line, column),
    ) from None


def _words(source: str) -> str:
    return f"inputs in {source}"


def _place(source: str, line: int | None = None, column: int | None = None) -> dict[str, Any]:
    return {"file": source, "line": line, "column": column}
