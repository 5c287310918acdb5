import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import PROJECT, Shell

COMMANDS = ("processorctl", "localctl", "modalctl")


def python(cli: Shell, script: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A script that finds the project's packages, with `words` as its arguments."""
    paths = f"import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / 'code' / 'runtime')!r}]\n"
    argv = [sys.executable, "-W", "error", "-c", paths + script, *words]
    return subprocess.run(argv, cwd=cli.root, env=cli.environment(env), capture_output=True, text=True, timeout=60)


def console(cli: Shell, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The console script `name` as pip writes it."""
    script = f"from apps.entry import {name}\nsys.argv[0] = '/somewhere/bin/{name}'\nsys.exit({name}())"
    return python(cli, script, *words)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_itself_as_it_was_typed(cli: Shell, name: str) -> None:
    assert console(cli, name, "--help").stdout.startswith(f"usage: {name} [-h]")
    assert cli(name, "--help").stdout.startswith(f"usage: manage.py {name} [-h]")


def test_a_subcommand_calls_itself_as_it_was_typed(cli: Shell) -> None:
    scripted, managed = console(cli, "processorctl", "show", "--help"), cli("processorctl", "show", "--help")

    assert scripted.stdout.startswith("usage: processorctl show [-h] ")
    assert "\n  processorctl show --ref llm/litellm@1\n" in scripted.stdout
    assert managed.stdout.startswith("usage: manage.py processorctl show [-h] ")
    assert "\n  python manage.py processorctl show --ref llm/litellm@1\n" in managed.stdout


def test_a_hint_is_a_line_to_type(cli: Shell) -> None:
    assert "hint: processorctl show --help\n" in console(cli, "processorctl", "show").stderr
    assert "hint: python manage.py processorctl show --help\n" in cli("processorctl", "show").stderr


@pytest.mark.parametrize(
    "words",
    [
        ("processorctl", "list", "--json"),
        ("processorctl", "--version"),
        ("processorctl", "show", "--help"),
        ("processorctl", "show", "--json"),
        ("processorctl", "show", "--ref", "llm/absent@1", "--traceback", "--no-color", "--verbosity", "2", "--json"),
        ("modalctl", "run"),
    ],
)
def test_djangos_own_way_gives_the_same_answer(cli: Shell, words: tuple[str, ...]) -> None:
    short, stock = cli(*words), cli(*words, "--settings=apps.settings")  # which only Django's own way honours

    assert (stock.status, stock.stdout) == (short.status, short.stdout)
    assert stock.stderr.splitlines()[-2:] == short.stderr.splitlines()[-2:]


def test_settings_and_paths_in_the_call_are_honoured(cli: Shell, tmp_path: Path) -> None:
    outcome = cli("processorctl", "list", "--settings", "absent_settings")

    assert outcome.status != 0
    assert "absent_settings" in outcome.stderr


def test_what_the_short_way_leaves_out_can_be_set_up_afterwards(cli: Shell) -> None:
    script = (
        "import json, django\n"
        "from apps.entry import execute\n"
        "execute(['manage.py', 'processorctl', 'validate'])\n"
        "from django.apps import apps\n"
        "django.setup()\n"
        "print(json.dumps([apps.ready, [each.label for each in apps.get_app_configs()]]))\n"
    )

    done = python(cli, script)

    assert done.stdout.splitlines() == ["2 checked, all well", '[true, ["processors", "storage"]]']


def test_django_lists_the_three_commands(cli: Shell) -> None:
    assert set(COMMANDS) <= set(cli("help", "--commands").stdout.split())


@pytest.mark.parametrize(("words", "json_wanted"), [(("list", "--json"), True), (("list",), False)])
def test_ctrl_c_while_importing_is_a_cancel_too(cli: Shell, words: tuple[str, ...], json_wanted: bool) -> None:
    script = (
        "from apps import entry\n"
        "def interrupt(argv): raise KeyboardInterrupt\n"
        "entry._short = interrupt\n"
        "entry.execute(['manage.py', 'processorctl', *sys.argv[1:]])\n"
    )

    done = python(cli, script, *words)

    assert done.returncode == 130
    if json_wanted:
        error = json.loads(done.stdout)["error"]
        assert error == {"code": "ERR_CANCELLED", "message": "interrupted", "hint": "", "details": {"by": "user"}}
    else:
        assert done.stderr == "ERR_CANCELLED: interrupted\n"


@pytest.mark.parametrize(("flags", "frozen"), [((), True), (("-W", "error::ResourceWarning"), False)])
def test_the_last_collection_is_skipped_unless_warnings_are_wanted(
    cli: Shell, flags: tuple[str, ...], frozen: bool
) -> None:
    script = (
        f"import sys; sys.path[:0] = [{str(PROJECT)!r}]\n"
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"  # registered first, called last
        "from apps.entry import execute\n"
        "execute(['manage.py', 'processorctl', 'validate'])\n"
    )

    done = subprocess.run(
        [sys.executable, *flags, "-c", script], cwd=cli.root, env=cli.environment(), capture_output=True, text=True
    )

    assert done.stdout.splitlines() == ["2 checked, all well", str(frozen)]
