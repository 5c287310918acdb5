"""llm/litellm@1: a chat completion by any provider and model that LiteLLM knows, or a mock of one."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from types import ModuleType
from typing import Any

from processor_runtime.handler import ProviderError

DEFAULT_MODEL = "openai/gpt-4o-mini"
CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 300.0  # between two pieces of an answer; models that think first are silent for minutes

# LiteLLM reads these when it is imported.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else the import downloads a price list
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",  # the same, for another list
    "LITELLM_MODE": "PRODUCTION",  # else it reads a .env file
    "LOGGING_EXECUTOR_MAX_PENDING_TASKS": "0",  # no callbacks are registered: no threads to call them
}

# What a first request would import, 0.3 s of it, in every worker anew.
LATE_IMPORTS = ("openai.resources.chat.completions", "h2.connection")

VOCABULARY = (
    "amber autumn basalt beacon bramble bridge candle canyon cedar cinder clover copper coral cradle dapple delta "
    "drift ember fable fathom fern flint gentle glacier grove harbor hazel hollow indigo island ivory jasper juniper "
    "kettle lantern lark linen lunar maple marble meadow mellow mosaic nectar north opal orchard pebble quartz quiet "
    "raven ripple saffron silver slate spiral thicket timber velvet violet willow winter yonder zephyr"
)


def load() -> ModuleType:
    """Import LiteLLM, silent and offline: once, in the template process that all real workers are forked from."""
    os.environ.update(ENVIRONMENT)
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # it prints requests' URLs and errors
    import litellm

    litellm.suppress_debug_info = True
    litellm.disable_streaming_logging = True
    litellm.disable_token_counter = True  # usage is what the provider counted, or nothing
    litellm.disable_hf_tokenizer_download = True
    for module in LATE_IMPORTS:
        import_module(module)
    return litellm


def run(context: Any) -> None:
    """Stream the answer as tokens; write it to text/response.txt, and what it cost to usage.json."""
    params = context.inputs["params"]
    model, messages = params.get("model", DEFAULT_MODEL), params["messages"]
    said, usage = [], {}
    with closing(_mock(messages) if context.mode == "mock" else _real(model, messages)) as answer:
        for piece in answer:
            if context.cancelled:
                return
            if isinstance(piece, dict):
                usage = piece
            else:
                said.append(piece)
                context.token(piece)
    context.write("text/response.txt", "".join(said))
    context.write("usage.json", json.dumps({"model": model, **usage}, indent=2) + "\n")


def _mock(messages: list[dict[str, Any]]) -> Iterator[str | dict[str, int | None]]:
    """Three sentences that depend on every byte of the messages and on nothing else; then the counts."""
    # Not context.random: choice() may differ between versions of Python, and the engines have different ones.
    document = json.dumps(messages, sort_keys=True, separators=(",", ":"))
    vocabulary = VOCABULARY.split()
    words = [vocabulary[byte % len(vocabulary)] for byte in hashlib.sha256(document.encode()).digest()[:24]]
    for number, word in enumerate(words):
        place = number % 8
        yield ("" if number == 0 else " ") + (word.capitalize() if place == 0 else word) + ("." if place == 7 else "")
    yield _counts(sum(len(str(message["content"]).split()) for message in messages), len(words))


def _real(model: str, messages: list[dict[str, Any]]) -> Iterator[str | dict[str, int | None]]:
    """What the provider says, as it says it; then the counts. Raises ProviderError."""
    litellm, begun, stream = load(), False, None
    provider = _provider(litellm, model)
    try:
        stream = _ask(litellm, model, messages)
        for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                begun = True
                yield text
    except Exception as exc:  # whatever LiteLLM trips over in an answer is the provider's failure
        # Not chained: the original's text may hold the key, and tracebacks are logged.
        raise _failure(litellm, exc, model, provider, begun) from None
    finally:
        _hang_up(stream)
    if not (stream.received_finish_reason or stream.intermittent_finish_reason):  # LiteLLM makes up a "stop"
        raise _unfinished(provider, begun)
    yield _usage(stream.chunks)


def _provider(litellm: ModuleType, model: str) -> str:
    try:
        return str(litellm.get_llm_provider(model)[1])
    except litellm.BadRequestError:
        message = f"LiteLLM knows no provider for model {model!r}; write PROVIDER/MODEL"
        raise _error(message, model.partition("/")[0]) from None


def _ask(litellm: ModuleType, model: str, messages: list[dict[str, Any]]) -> Any:
    import httpx

    return litellm.completion(
        model=model,
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        num_retries=0,
        max_retries=0,  # the provider's own client retries by default: a second try may be a second charge
    )


def _hang_up(stream: Any) -> None:
    """Close the connection: a provider that sees its client leave stops generating, and charging."""
    source = getattr(stream, "completion_stream", None)
    for closable in (source, getattr(source, "response_iterator", None)):
        if hasattr(closable, "close"):
            closable.close()


def _usage(chunks: list[Any]) -> dict[str, int | None]:
    """The last counts that the provider sent; null where it sent none (LiteLLM would guess)."""
    counted = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    if not counted:
        return dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"))
    return _counts(counted[-1].prompt_tokens, counted[-1].completion_tokens, counted[-1].total_tokens)


def _counts(prompt: int, completion: int, total: int | None = None) -> dict[str, int | None]:
    total = prompt + completion if total is None else total
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _failure(litellm: ModuleType, exc: Exception, model: str, provider: str, begun: bool) -> ProviderError:
    """A failure in our words: a provider's own may repeat the key, or a URL that holds one."""
    exc = getattr(exc, "original_exception", None) or exc  # of a failure in mid-stream
    if isinstance(exc, litellm.Timeout):  # its status is made up, as the next one's
        return _error(f"{provider} was silent for too long", provider, retryable=True)
    if isinstance(exc, litellm.APIConnectionError):
        if begun:
            return _error(f"{provider} broke off in the middle of its answer", provider, retryable=True)
        return _error(f"no answer from {provider}: the connection failed", provider, retryable=True)
    status = getattr(exc, "status_code", None)
    if not isinstance(status, int):
        return _error(f"{provider} can't be asked: {type(exc).__name__}", provider)
    if status in (401, 403):
        return _error(f"{provider} refused the credentials ({status}){_absent(litellm, model)}", provider, status)
    if status == 429 and "insufficient_quota" in str(exc):
        return _error(f"{provider} says that the quota is used up (429)", provider, status)
    if status == 429:
        return _error(f"{provider} says that it has too many requests (429)", provider, status, retryable=True)
    if status >= 500:
        return _error(f"{provider} failed ({status})", provider, status, retryable=True)
    retryable = status in (408, 409, 425)
    return _error(f"{provider} refused the request ({status}): {_excerpt(str(exc))}", provider, status, retryable)


def _unfinished(provider: str, begun: bool) -> ProviderError:
    if begun:
        return _error(f"{provider} stopped in the middle of its answer", provider, retryable=True)
    return _error(f"the answer of {provider} is no chat completion: is its base URL right?", provider)


def _error(message: str, provider: str, status: int | None = None, retryable: bool = False) -> ProviderError:
    return ProviderError(message, status=status, provider=provider, retryable=retryable)


def _absent(litellm: ModuleType, model: str) -> str:
    names = litellm.validate_environment(model)["missing_keys"]
    return f"; not set: {', '.join(names)}" if names else ""


def _excerpt(text: str) -> str:
    """A provider's own words on a request it refused: at most 200 characters, no URL, no secret."""
    quoted = re.search(r'"message": ?"((?:[^"\\]|\\.)+)"', text)
    text = quoted[1] if quoted else text.partition(" - ")[2] or text
    for name, value in os.environ.items():
        if value and re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name):
            text = text.replace(value, f"<{name}>")
    return " ".join(re.sub(r"\w+://\S+", "<URL>", text).split())[:200]
