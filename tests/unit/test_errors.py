import re
from pathlib import Path

import pytest
from processor_runtime import codes

from apps import errors
from apps.errors import OperationError

KINDS: list[type[OperationError]] = [OperationError, *OperationError.__subclasses__()]
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "errors.md"
ROW = re.compile(r"^\| `(ERR_\w+)` \| (\d+) \| (.+) \| (.+) \|$", re.MULTILINE)


def test_the_page_of_errors_has_every_code_once_with_its_status() -> None:
    rows = [(code, int(status)) for code, status, _, _ in ROW.findall(PAGE.read_text())]

    assert sorted(rows) == sorted((kind.code, kind.exit_status) for kind in KINDS)


def test_every_code_that_crosses_the_wire_has_a_class() -> None:
    wire = {value for name, value in vars(codes).items() if name.isupper()}

    assert wire <= {kind.code for kind in KINDS}


def test_no_status_is_the_shells_or_success() -> None:
    assert all(0 < kind.exit_status < 126 or kind is errors.Cancelled for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_has_four_words(kind: type[OperationError]) -> None:
    error = kind("it broke", hint="mend it", details={"what": "it"})

    words = {"code": kind.code, "message": "it broke", "hint": "mend it", "details": {"what": "it"}}
    assert error.words() == words
    assert error.document() == {"status": "error", "error": words}
    assert str(error) == "it broke"


def test_hint_and_details_may_be_absent_and_are_there_all_the_same() -> None:
    assert OperationError("it broke").words() == {
        "code": "ERR_INTERNAL",
        "message": "it broke",
        "hint": "",
        "details": {},
    }


def test_the_error_of_an_execution_is_its_envelope() -> None:
    error = OperationError("it broke")
    error.envelope = {"schema": 1}

    assert error.document() == {"schema": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_words_from_a_runtime_become_the_class_of_their_code(kind: type[OperationError]) -> None:
    words = kind("it broke", hint="mend it", details={"what": "it"}).words()

    error = errors.from_words(words)

    assert type(error) is kind
    assert error.words() == words


@pytest.mark.parametrize("words", [{}, {"code": "ERR_OF_LATER"}, {"code": None, "message": None, "details": None}])
def test_words_that_we_do_not_know_are_an_internal_error(words: dict[str, object]) -> None:
    error = errors.from_words(words)

    assert (error.code, error.exit_status, error.details) == ("ERR_INTERNAL", 70, {})
