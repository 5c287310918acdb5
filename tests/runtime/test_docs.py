"""The page for authors: its handlers run, and do what it says."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.runtime import keeper
from tests.runtime.conftest import Runtime

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "writing-a-processor.md").read_text()
HANDLERS = dict(re.findall(r'```python\n"""(?:text|image)/(\w+)@1(.*?)```', PAGE, re.DOTALL))


def handler(name: str) -> str:
    return f'"""{name}{HANDLERS[name]}'


def test_the_first_handler_streams_and_writes(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(handler("shout"), outputs=[{"path": "text/response.txt"}])

    result = runtime.run(inputs={"params": {"text": "say it"}})

    assert result.text == "SAY IT "
    assert result.files == {"text/response.txt": b"SAY IT"}


def test_the_handler_with_load_answers_in_both_modes(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(handler("heavy"), outputs=[{"path": "answer.txt"}])
    inputs = {"params": {"text": "four"}}

    assert runtime.run(inputs=inputs).files == {"answer.txt": b"mock: 0"}
    assert runtime.run(inputs=inputs, mode="real").files == {"answer.txt": b"real: 4"}


def test_the_handler_of_a_busy_provider_says_so(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(handler("remote"))

    assert runtime.run(mode="real").error["code"] == "ERR_PROVIDER"


def test_the_handler_of_a_file_finds_it(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(handler("size"), outputs=[{"path": "size.txt"}])

    _, result = keeper.run(runtime, {keeper.PATH: bytes(321)}, {"image": keeper.artifact()})

    assert result.files == {"size.txt": b"321"}


def test_the_page_shows_no_other_handler() -> None:
    assert set(HANDLERS) == {"shout", "heavy", "remote", "size"}
    assert PAGE.count("```python") == 4
