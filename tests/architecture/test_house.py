"""What the checkout as a whole promises: what is committed, what is not, and what the lock files hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import PROJECT, committed, trees

# Put together here, so that this file is not its own finding.
PACKAGE_HOSTS = [
    ".".join(words) for words in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"))
]
HOME = re.compile(r"(?<![\w.$}/])/(?:home|root|Users)/\w+")
VAGUE = {"utils", "helpers", "common", "manager", "misc"}


def _texts() -> list[tuple[str, str]]:
    return [(path.relative_to(PROJECT).as_posix(), path.read_text(errors="replace")) for path in committed()]


def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (PROJECT / lock).read_text(), re.MULTILINE))


def test_code_is_no_package() -> None:
    assert not (PROJECT / "code" / "__init__.py").exists()


def test_import_code_finds_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import code; print(code.InteractiveConsole)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )

    assert done.stdout.strip() == "<class 'code.InteractiveConsole'>", done.stderr


def test_no_committed_file_names_a_package_host() -> None:
    assert [(name, host) for name, text in _texts() for host in PACKAGE_HOSTS if host in text] == []


def test_no_committed_file_names_a_home_folder() -> None:
    assert [(name, found.group()) for name, text in _texts() for found in HOME.finditer(text)] == []


def test_local_state_is_ignored_by_git() -> None:
    committed()  # skips outside a checkout

    ignored = subprocess.run(["git", "check-ignore", "-q", "code/.theory/run_tokens.json"], cwd=PROJECT)

    assert ignored.returncode == 0


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", ".ci/terraform/requirements.lock"])
def test_each_locked_version_has_hashes_and_no_address(lock: str) -> None:
    text = (PROJECT / lock).read_text()

    entries = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]

    assert entries
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_both_lock_files_hold_the_same_versions() -> None:
    assert _pins("requirements.lock").items() <= _pins("requirements-dev.lock").items()


def test_every_module_is_named_for_what_it_knows() -> None:
    paths = [path for folder in ("apps", "code/runtime") for path, _ in trees(folder)]

    assert [path for path in paths if Path(path).stem in VAGUE] == []


@pytest.mark.parametrize("folder", ["apps", "code/runtime"])
def test_every_module_says_in_its_first_line_what_it_owns(folder: str) -> None:
    assert [path for path, tree in trees(folder) if tree.body and not ast.get_docstring(tree)] == []


def test_no_module_has_grown_too_long_to_know() -> None:
    # The protocol stays whole: one definition of the wire format, which both ends import.
    allowed = {"code/runtime/processor_runtime/protocol.py": 550}

    lengths = {
        path: len((PROJECT / path).read_text().splitlines())
        for folder in ("apps", "code/runtime")
        for path, _ in trees(folder)
    }

    assert {path: lines for path, lines in lengths.items() if lines > allowed.get(path, 320)} == {}
