"""checked.load: what registry.load says, once; after that what was kept, while it holds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apps.errors import InvalidRegistry, RefNotFound
from apps.processors import checked, registry
from apps.processors.reference import ProcessorRef
from tests.shell import PROJECT, copy_checkout

REF = ProcessorRef("llm", "litellm", 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path)


def kept(root: Path) -> Path:
    return root / "state" / "registry" / "llm-litellm-v1.json"


def load(root: Path) -> registry.ProcessorSpec:
    return checked.load(root, REF, folder=root / "state")


def test_the_first_and_every_later_time_give_what_the_registry_gives(root: Path) -> None:
    wanted = registry.load(root, REF)

    assert load(root) == wanted
    assert kept(root).is_file()
    assert load(root) == wanted


def test_the_second_time_needs_no_yaml(root: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from apps.processors import checked
from apps.processors.reference import ProcessorRef
checked.load(Path({str(root)!r}), ProcessorRef("llm", "litellm", 1), folder=Path({str(root / "state")!r}))
print("yaml" in sys.modules)
"""

    said = [subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).strip() for _ in range(2)]

    assert said == ["True", "False"]


def test_an_edited_file_is_read_again_though_size_and_time_stay(root: Path) -> None:
    load(root)
    file = registry.load(root, REF).file
    before = file.stat()
    file.write_text(file.read_text().replace("timeout_s: 600", "timeout_s: 601"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert load(root).runtime.timeout_s == 601


def test_an_edit_that_breaks_the_file_is_an_error(root: Path) -> None:
    load(root)
    file = registry.load(root, REF).file
    file.write_text(file.read_text().replace("cpu: 1", "cpu: none"))

    with pytest.raises(InvalidRegistry, match="cpu"):
        load(root)


def test_a_file_that_is_gone_is_an_error(root: Path) -> None:
    load(root)
    shutil.rmtree(root / "registry" / "llm")

    with pytest.raises(RefNotFound):
        load(root)


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", '{"key": "KEY"}', '{"key": "KEY", "spec": {"ref": 1}}', "[" * 100_000]
)
def test_what_was_damaged_is_read_again(root: Path, damage: str) -> None:
    wanted = load(root)
    key = json.loads(kept(root).read_text())["key"]
    kept(root).write_text(damage.replace("KEY", key))

    assert load(root) == wanted
    assert json.loads(kept(root).read_text())["key"] == key


def test_other_rules_read_the_file_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root)
    before = kept(root).read_text()
    monkeypatch.setattr(checked, "RULES", (*checked.RULES, "checked.py"))

    load(root)

    assert kept(root).read_text() != before


def test_the_kept_rules_are_files_that_there_are() -> None:
    assert [name for name in checked.RULES if not (PROJECT / "apps" / "processors" / name).is_file()] == []


def test_a_place_that_cannot_be_written_changes_nothing(root: Path) -> None:
    (root / "state").write_text("a file where the folder should be")

    assert load(root) == registry.load(root, REF)
