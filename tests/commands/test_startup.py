"""What a start may cost: no command imports what it does not use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.workshop import Workshop, inputs
from tests.shell import PROJECT, Shell

# Nothing of this is ever needed to start: Django's web half, the SDKs, and what an unrelated package may drag in.
NEVER = {
    *("django.urls", "django.http", "django.db.models", "django.forms", "django.template", "django.views"),
    *("django.utils.log", "django.core.mail", "sqlparse", "docker", "requests", "urllib3", "boto3", "botocore"),
    *("minio", "modal", "grpc", "rich", "jsonschema", "referencing", "rpds", "attr", "python_socks"),
}
# A run finds what it needs in the state; what reads YAML, builds, starts and asks engines is for other commands.
NOT_FOR_A_RUN = {
    *(
        "yaml",
        "tomllib",
        "tarfile",
        "apps.processors.registry",
        "apps.processors.marked_yaml",
        "apps.processors.images",
    ),
    *("apps.processors.sources", "apps.processors.dockerfile", "apps.processors.containers", "apps.processors.local"),
    *("apps.processors.adapters.base", "apps.processors.adapters.command", "apps.processors.adapters.host"),
    *("apps.processors.adapters.docker", "apps.processors.adapters.buildx"),
}
NOT_FOR_WORDS = {"yaml", "websockets", "jsonschema_rs", "rfc8785", "apps.storage.select"}

COMMANDS = ("processorctl", "localctl", "modalctl")


def modules(folder: Path, cli: Shell, *words: str) -> tuple[int, set[str]]:
    """Exit status and loaded modules of `manage.py WORDS…`."""
    found = folder / "modules.json"
    manage = PROJECT / "manage.py"
    script = (
        "import atexit, json, pathlib, runpy, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(found)!r}).write_text(json.dumps(sorted(sys.modules))))\n"
        f"sys.argv[0], sys.path[0] = {str(manage)!r}, {str(PROJECT)!r}\n"
        f"runpy.run_path({str(manage)!r}, run_name='__main__')\n"
    )
    argv = [sys.executable, "-c", script, *words]
    done = subprocess.run(argv, cwd=cli.root, env=cli.environment(), capture_output=True, timeout=60)
    return done.returncode, set(json.loads(found.read_text()))


def services(loaded: set[str]) -> set[str]:
    ours = {name for name in loaded if name.startswith(("apps.processors.", "apps.storage.", "processor_runtime."))}
    return {name for name in ours if not name.startswith(("apps.processors.management", "processor_runtime.codes"))}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", [("--help",), (), ("frobnicate", "--json"), ("--frobnicate",)])
def test_help_and_usage_errors_import_no_library_and_no_service(
    tmp_path: Path, cli: Shell, command: str, words: tuple[str, ...]
) -> None:
    status, loaded = modules(tmp_path, cli, command, *words)

    assert status == (0 if words == ("--help",) else 2)
    assert loaded & (NEVER | NOT_FOR_WORDS) == set()
    assert services(loaded) == set()


def test_list_imports_no_library_but_the_registrys(tmp_path: Path, cli: Shell) -> None:
    status, loaded = modules(tmp_path, cli, "processorctl", "list", "--json")

    assert status == 0
    assert "apps.processors.registry" in loaded
    assert loaded & (NEVER | {"websockets"}) == set()


def test_a_run_that_fails_early_imports_no_library_of_later_steps(tmp_path: Path, cli: Shell) -> None:
    status, loaded = modules(tmp_path, cli, "localctl", "run", "--ref", "llm/litellm@1", "--inputs-json", "{")

    assert status == 65
    assert loaded & NEVER == set()


def test_a_run_imports_neither_yaml_nor_what_builds_nor_an_engine(tmp_path: Path, workshop: Workshop) -> None:
    ref = workshop.running()
    words = ("localctl", "run", "--ref", ref, "--inputs-json", inputs(text="a b"), "--json")
    modules(tmp_path, workshop.shell, *words)  # the first one reads registry.yaml

    status, loaded = modules(tmp_path, workshop.shell, *words)

    assert status == 0
    assert "websockets" in loaded
    assert loaded & (NEVER | NOT_FOR_A_RUN) == set()


OCI = "localhost:5000/org/image@sha256:" + "ab" * 32
PLACE = ("--ref", "llm/litellm@1", "--env", "dev")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("start", "--ref", "nonsense", "--env", "dev", "--oci", OCI), 65),
        (("start", *PLACE, "--oci", "ghcr.io/org/image:tag"), 65),
        (("start", *PLACE, "--oci", OCI, "--platform", "arm64"), 2),
        (("start", *PLACE, "--oci", OCI), 78),  # neither GIT_BRANCH nor GIT_USER
        (("start", "--ref", "llm/litellm@1", "--env", "main", "--oci", OCI, "--dry-run"), 0),
        (("run", "--ref", "llm/litellm@1", "--inputs-json", "{"), 65),
        (("logs", *PLACE, "--since", "yesterday"), 2),
        (("rollback", *PLACE, "--to", "the-last-one"), 65),
        (("status", "--ref", "llm/litellm@1", "--env", "production"), 2),
    ],
)
def test_what_a_caller_gets_wrong_is_told_without_importing_modals_sdk(
    tmp_path: Path, cli: Shell, words: tuple[str, ...], expected: int
) -> None:
    status, loaded = modules(tmp_path, cli, "modalctl", *words)

    assert status == expected
    assert loaded & {"modal", "modal_proto", "grpclib", "synchronicity", "boto3", "docker"} == set()
