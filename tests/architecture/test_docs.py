"""What the pages promise: links that lead somewhere, and the commands, options and variables that there are."""

import re
import shlex
from argparse import SUPPRESS, ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest

from tests.architecture.sources import PROJECT

PAGES = sorted([PROJECT / "README.md", PROJECT / "terraform" / "README.md", *(PROJECT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
ROLE = re.compile(r"\{doc\}`([^`]+)`")
COMMANDS = ("processorctl", "localctl", "modalctl")
ANCHOR = re.compile(r"\[[^\]]*\]\(([^)#\s]*)#([^)]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_into_a_page_leads_to_a_heading(page: Path) -> None:
    links = [(name, anchor) for name, anchor in ANCHOR.findall(CODE.sub("", page.read_text())) if "://" not in name]
    places = [((page.parent / name).resolve() if name else page, anchor) for name, anchor in links]

    assert [(str(there), anchor) for there, anchor in places if anchor not in _anchors(there)] == []


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = HEADING.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_every_page() -> None:
    index = PROJECT / "docs" / "index.md"

    assert sorted({*_targets(index), index}) == sorted({*PAGES, index} - {PROJECT / "README.md"})


def test_the_readmes_command_table_has_every_subcommand() -> None:
    table = re.findall(r"^\| `(\w+ctl) ([a-z-]+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)

    registered = [(name, each) for name in COMMANDS for each in _subcommands(name)]
    assert sorted(table) == sorted(registered)


def _subcommands(name: str) -> dict[str, ArgumentParser]:
    command = import_module(f"apps.processors.management.commands.{name}").Command()
    (parsers,) = [each.choices for each in command.create_parser("", name)._actions if isinstance(each.choices, dict)]
    return dict(parsers)


def test_every_option_of_a_command_is_told_in_the_pages() -> None:
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(page.read_text() for page in PAGES)))

    options = {option for name in COMMANDS for option in _options(name)}
    assert sorted(options - told) == []


def _options(name: str) -> set[str]:
    actions = [
        action for parser in _subcommands(name).values() for action in parser._actions if action.help != SUPPRESS
    ]
    return {word for action in actions for word in action.option_strings if word.startswith("--")}


def test_every_variable_that_settings_reads_is_told_in_the_pages() -> None:
    told = "\n".join(page.read_text() for page in PAGES)

    names = set(re.findall(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"', (PROJECT / "apps" / "settings.py").read_text()))
    assert sorted(name for name in names if name not in told) == []


# Lines to type


FENCED = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _words(line: str) -> list[str]:
    """The first of our commands in a line of shell, with its words, without what surrounds it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    begin = next((place for place, word in enumerate(words) if word in COMMANDS), len(words))
    end = next((place for place, word in enumerate(words) if place > begin and set(word) <= set("();<>|&")), len(words))
    return words[begin:end]


def _typed(page: Path) -> list[str]:
    blocks = "".join(FENCED.findall(page.read_text())).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if re.search(rf"(?:^|[\s$(])(?:{'|'.join(COMMANDS)})\s", line)]


def _parse(words: list[str]) -> None:
    """Raises Failed for what the command would refuse."""
    command = import_module(f"apps.processors.management.commands.{words[0]}").Command()
    command.create_parser("", words[0]).parse_args(words[1:])


LINES = [(page, line) for page in PAGES for line in _typed(page) if "…" not in line]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page.stem}: {line.strip()[:60]}" for page, line in LINES])
def test_every_line_to_type_in_a_page_is_one_that_its_command_takes(page: Path, line: str) -> None:
    _parse(_words(line))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_two_examples_that_its_command_takes(name: str) -> None:
    for subcommand, parser in _subcommands(name).items():
        title, *examples = str(parser.epilog).splitlines()

        assert (title, len(examples)) == ("examples:", 2), subcommand
        for example in examples:
            words = _words(example)
            assert words[:2] == [name, subcommand], example
            _parse(words)
