"""One execution, from request to completion."""

from collections.abc import Callable

from tests.runtime.conftest import Runtime

ECHO = """
    def run(context):
        context.log("begin")
        for word in context.inputs["text"].split():
            context.token(word)
        context.write("text/response.txt", context.inputs["text"].upper())
"""
TEXT = [{"path": "text/response.txt", "mime": "text/plain"}]


def test_a_handler_streams_tokens_and_writes_an_output(start_runtime: Callable[..., Runtime]) -> None:
    runtime = start_runtime(ECHO, outputs=TEXT)

    result = runtime.run(inputs={"text": "hello big world"})

    assert result.completed.status == "success"
    assert result.text == "hellobigworld"
    assert result.files == {"text/response.txt": b"HELLO BIG WORLD"}
    assert [event.event for event in result.events] == ["started", "log", "token", "token", "token", "output"]
