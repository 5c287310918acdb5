"""What the pages promise: links that lead somewhere, and the commands that there are."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.architecture.sources import PROJECT

PAGES = sorted([PROJECT / "README.md", PROJECT / "terraform" / "README.md", *(PROJECT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
ROLE = re.compile(r"\{doc\}`([^`]+)`")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def _targets(page: Path) -> set[Path]:
    """The files that a page links to, by Markdown or by MyST's {doc}."""
    text = page.read_text()
    roles = {f"{name}.md" for name in ROLE.findall(text)}
    links = {target for target in LINK.findall(CODE.sub("", text)) if "://" not in target}
    return {(page.parent / target).resolve() for target in roles | links}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    assert [str(target) for target in _targets(page) if not target.is_file()] == []


def test_the_index_names_every_page() -> None:
    index = PROJECT / "docs" / "index.md"

    assert sorted({*_targets(index), index}) == sorted({*PAGES, index} - {PROJECT / "README.md"})


def test_the_readmes_command_table_has_every_subcommand() -> None:
    table = re.findall(r"^\| `(\w+ctl) ([a-z-]+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)

    registered = [(name, each) for name in ("processorctl", "localctl", "modalctl") for each in _subcommands(name)]
    assert sorted(table) == sorted(registered)


def _subcommands(name: str) -> list[str]:
    command = import_module(f"apps.processors.management.commands.{name}").Command()
    parser = command.create_parser("", name)
    return [each for action in parser._actions if isinstance(action.choices, dict) for each in action.choices]
