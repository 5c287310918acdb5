"""bench/: what the figures rest on. That they can be taken at all is seen by `make bench`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import measure
from bench.checkout import LOCK, leave_out_the_provider
from tests.shell import PROJECT


def test_rounds_go_there_and_back() -> None:
    order: list[str] = []

    def take(name: str) -> float:
        order.append(name)
        return len(order)

    taken = measure.alternate({name: lambda name=name: take(name) for name in "abc"}, 2)  # type: ignore[misc]

    assert "".join(order) == "abccba"
    assert taken == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_the_cpu_of_a_command_is_its_own_work_and_not_its_waiting() -> None:
    work, wait = (
        measure.cpu_ms([sys.executable, "-c", script], os.environ)
        for script in ("sum(range(10**7))", "import time; time.sleep(0.5)")
    )

    assert 0 < wait < work


def test_a_command_that_fails_gives_no_figure() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: .*no such thing"):
        measure.cpu_ms([sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)"], os.environ)


def test_the_cpu_of_a_tree_counts_its_children() -> None:
    child = [sys.executable, "-c", "sum(range(10**7)); print('done', flush=True); input()"]
    parent = f"import subprocess; subprocess.run({child})"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()

        whole, alone = measure.cpu_us(process.pid), measure.cpu_us(measure.tree(process.pid)[1])

        assert 0 < alone < whole
        process.stdin.write(b"\n")


def test_a_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    measure.table("Title", ("what", "a", "b"), [("x", 1234.5, 0.12345), ("y", None, float("nan"))], "Note.")

    assert capsys.readouterr().out == (
        "\n### Title\n\n| what | a | b |\n| --- | --- | --- |\n| x | 1,234 | 0.123 |\n| y | - | - |\n\nNote.\n"
    )


def test_the_lock_file_without_the_provider_has_the_runtimes_packages_and_their_hashes(tmp_path: Path) -> None:
    (tmp_path / LOCK).parent.mkdir(parents=True)
    shutil.copy(PROJECT / LOCK, tmp_path / LOCK)

    leave_out_the_provider(tmp_path)

    text = (tmp_path / LOCK).read_text()
    assert set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE)) == {
        *("jsonschema-rs", "orjson", "prometheus-client", "rfc8785", "uvloop", "websockets")
    }
    assert text.count("--hash=sha256:") > 6
