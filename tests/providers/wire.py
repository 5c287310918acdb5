"""The two wire formats a provider may speak, as server-sent events: OpenAI chat completions, Anthropic messages.

Sources: https://platform.openai.com/docs/api-reference/chat-streaming,
https://docs.anthropic.com/en/api/messages-streaming.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

PROMPT_TOKENS, COMPLETION_TOKENS = 11, 7  # no tokenizer counts the test's words like this: they must be the server's


class Wire(Protocol):
    """One format: what comes before, with and after each token, and how an error looks."""

    path: str

    def opening(self, model: str) -> Iterator[str]: ...

    def token(self, model: str, text: str) -> str: ...

    def closing(self, model: str, *, usage: bool) -> Iterator[str]: ...

    def error(self, status: int, message: str) -> dict[str, Any]: ...


class OpenAI:
    path = "/v1/chat/completions"

    def opening(self, model: str) -> Iterator[str]:
        yield self._chunk(model, {"role": "assistant", "content": ""})

    def token(self, model: str, text: str) -> str:
        return self._chunk(model, {"content": text})

    def closing(self, model: str, *, usage: bool) -> Iterator[str]:
        yield self._chunk(model, {}, finish_reason="stop")
        if usage:
            counts = {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": COMPLETION_TOKENS,
                "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
            }
            yield _event({**self._head(model), "choices": [], "usage": counts})
        yield "data: [DONE]\n\n"

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "error", "param": None, "code": None}}

    def _chunk(self, model: str, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _event({**self._head(model), "choices": [choice]})

    def _head(self, model: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}


class Anthropic:
    path = "/v1/messages"

    def opening(self, model: str) -> Iterator[str]:
        message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": 1},
        }
        yield _event({"type": "message_start", "message": message})
        yield _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        yield _event({"type": "ping"})

    def token(self, model: str, text: str) -> str:
        return _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})

    def closing(self, model: str, *, usage: bool) -> Iterator[str]:
        yield _event({"type": "content_block_stop", "index": 0})
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        yield _event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": COMPLETION_TOKENS}})
        yield _event({"type": "message_stop"})

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "error", "message": message}}


def _event(data: dict[str, Any]) -> str:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n"
