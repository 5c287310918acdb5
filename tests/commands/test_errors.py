"""Every code of apps/errors.py as a user meets it: exit status, message, hint, details; as words and as JSON."""

import re
from pathlib import Path
from typing import Any

import pytest

from apps.errors import OperationError
from tests.commands.error_cases import CASES, Case, Terminal
from tests.commands.workshop import Workshop

KINDS: list[type[OperationError]] = [OperationError, *OperationError.__subclasses__()]
STATUS = {kind.code: kind.exit_status for kind in KINDS}

PARAMETERS = [
    pytest.param(case, id=f"{case.code}-{case.act.__name__}", marks=[pytest.mark.docker] if case.docker else [])
    for case in CASES
]


@pytest.fixture
def terminal(workshop: Workshop, tmp_path: Path) -> Terminal:
    return Terminal(workshop, tmp_path, ())


@pytest.fixture
def json_terminal(workshop: Workshop, tmp_path: Path) -> Terminal:
    return Terminal(workshop, tmp_path, ("--json",))


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} == STATUS.keys()


@pytest.mark.parametrize("case", PARAMETERS)
def test_an_error_is_told_in_two_lines_on_stderr(terminal: Terminal, case: Case) -> None:
    done = case.act(terminal)

    assert done.status == (case.status or STATUS[case.code])
    assert re.fullmatch(case.stdout, done.stdout)
    first, _, second = done.stderr.removesuffix("\n").partition("\n")
    assert re.fullmatch(f"{case.code}: {case.message}", first)
    assert re.fullmatch(f"hint: {case.hint}" if case.hint else "", second)


@pytest.mark.parametrize("case", PARAMETERS)
def test_with_json_an_error_is_one_document_on_one_line(json_terminal: Terminal, case: Case) -> None:
    done = case.act(json_terminal)

    assert done.status == (case.status or STATUS[case.code])
    error = done.document["error"]
    assert list(error) == ["code", "message", "hint", "details"]
    assert error["code"] == case.code
    assert re.fullmatch(case.message, error["message"])
    assert re.fullmatch(case.hint, error["hint"])
    for name, expected in case.details.items():
        assert_is(error["details"][name], expected)
    if case.envelope:
        assert_error_envelope(done.document)
    else:
        assert list(done.document) == ["status", "error"]
    assert done.document["status"] == "error"
    assert "Traceback" not in done.stderr


def assert_is(value: Any, expected: Any) -> None:
    """`expected`: the value itself, its type, or what says whether it is right."""
    if isinstance(expected, type):
        assert isinstance(value, expected)
    elif callable(expected):
        assert expected(value), value
    else:
        assert value == expected


def assert_error_envelope(document: dict[str, Any]) -> None:
    keys = ["schema", "status", "execution_id", "ref", "error", "partial_outputs", "meta"]
    assert list(document) == keys
    assert document["schema"] == 1
    assert document["execution_id"]
    assert isinstance(document["partial_outputs"], list)
    meta = document["meta"]
    known = ["adapter", "engine", "mode", "image_digest", "spec_digest", "inputs_digest", "secrets_present"]
    assert list(meta) == [*known, "storage", "transfer", "isolation", "started_at", "duration_ms", "runtime_version"]
    # null where the configuration is wrong that would name it
    assert (meta["adapter"], meta["engine"] or "process") == ("local", "process")
