"""The project's own sources as syntax trees, for rules about them."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent


def trees(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """(path relative to the project, syntax tree) of each Python file under `folder`."""
    for path in sorted((PROJECT / folder).rglob("*.py")):
        yield path.relative_to(PROJECT).as_posix(), ast.parse(path.read_bytes(), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of each absolute import in `tree`; `from a import b` counts as `a` and as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def imports_of_the_module(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """`imports` of what runs when the module is imported: neither in functions nor for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.Import | ast.ImportFrom | ast.If | ast.Try | ast.With) and not for_types:
            yield from imports(node)


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of each name or attribute that `tree` uses: `print`, `sys.exit`, `os.environ`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield ast.unparse(node), node.lineno


def committed() -> list[Path]:
    """The files that git knows or would add."""
    if not (shutil.which("git") and (PROJECT / ".git").exists()):
        pytest.skip("needs a git checkout")
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=PROJECT, capture_output=True, check=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := PROJECT / name).is_file()]
