"""One door each to the environment, to processes, to YAML, to the terminal; heavy libraries behind late imports."""

import ast
from collections.abc import Container

from tests.architecture.sources import imports, imports_of_the_module, names, trees

ENTRY = "apps/entry.py"
SETTINGS = "apps/settings.py"
YAML = {"apps/processors/registry.py", "apps/processors/marked_yaml.py"}  # the registry, and its reader
BASE = "apps/processors/management/commands/_base.py"
ADAPTERS = "apps/processors/adapters/"
SHIM = f"{ADAPTERS}host_shim.py"  # a program of its own, run beside each process of the host engine

ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb"}
PROCESSES = {"subprocess", "multiprocessing", "pty", "os.system", "os.popen", "os.fork", "os.posix_spawn"}
EXITS = {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout", "sys.stderr"}
HEAVY = {"docker", "modal", "boto3", "botocore", "minio", "rich", "jsonschema", "litellm"}


def _uses(wanted: Container[str], but: Container[str]) -> list[str]:
    return [
        f"{path}:{line} {name}"
        for path, tree in trees("apps")
        if path not in but
        for name, line in (*names(tree), *imports(tree))
        if name in wanted
    ]


def _top(module: str) -> str:
    return module.partition(".")[0]


def test_only_settings_reads_the_environment() -> None:
    assert _uses(ENVIRONMENT, but={SETTINGS, ENTRY}) == []


def test_the_entry_only_defaults_a_variable_and_reads_none() -> None:
    tree = dict(trees("apps"))[ENTRY]

    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Subscript)}

    assert {name for name in used if name.startswith("os.environ")} <= {"os.environ", "os.environ.setdefault"}


def test_only_the_host_engine_and_the_command_adapter_start_processes() -> None:
    found = [
        f"{path}:{line} {module}"
        for path, tree in trees("apps")
        if path != f"{ADAPTERS}command.py" and not path.startswith(f"{ADAPTERS}host")
        for module, line in imports(tree)
        if module in PROCESSES
    ]

    assert found == []
    assert [
        use for use in _uses(PROCESSES, but=()) if not use.startswith((f"{ADAPTERS}command", f"{ADAPTERS}host"))
    ] == []


def test_only_the_registry_reads_yaml() -> None:
    found = [path for path, tree in trees("apps") for module, _ in imports(tree) if _top(module) in {"yaml", "ruamel"}]

    assert set(found) <= YAML


def test_only_the_base_command_prints_and_exits() -> None:
    assert _uses(EXITS, but={BASE, ENTRY, SHIM}) == []


def test_only_the_base_command_catches_every_exception() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees("apps")
        if path != BASE
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception")
    ]

    assert found == []


def test_no_module_imports_a_heavy_library_at_its_top() -> None:
    found = [
        f"{path}:{line} {module}"
        for path, tree in trees("apps")
        for module, line in imports_of_the_module(tree)
        if _top(module) in HEAVY
    ]

    assert found == []


def test_commands_import_services_only_when_they_run() -> None:
    allowed = {
        "apps.errors",
        "apps.processors.management.commands._arguments",
        "apps.processors.management.commands._base",
        "apps.processors.management.commands._modal_arguments",
        "apps.processors.management.commands._running",
    }

    found = [
        f"{path}:{line} {module}"
        for path, tree in trees("apps/processors/management/commands")
        for module, line in imports_of_the_module(tree)
        if _top(module) == "apps" and not any(module == name or module.startswith(f"{name}.") for name in allowed)
    ]

    assert found == []
