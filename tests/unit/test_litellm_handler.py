"""The handler of llm/litellm@1 without LiteLLM: its mock, and what it makes of whatever LiteLLM raises."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processor_runtime.handler import Content, Context, ProviderError

from tests.shell import PROJECT

HANDLER = PROJECT / "code/processors/llm/litellm/1/handler.py"
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
KEY = "sk-not-to-be-seen"


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("litellm_handler", HANDLER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


handler: Any = imported()


class Recorded:
    """One run: the context for the handler, and what came of it."""

    def __init__(self, messages: Any, *, mode: str = "mock", model: str | None = None) -> None:
        params = {"messages": messages, **({"model": model} if model else {})}
        request = {"inputs": {"schema": "v1", "params": params}, "mode": mode}
        request |= {"execution_id": "0", "inputs_digest": "0"}
        self.tokens: list[str] = []
        self.files: dict[str, Content] = {}
        self.context = Context(request, emit=self._emit, write=self.files.__setitem__, redact=str)

    def _emit(self, fragment: bytes) -> None:
        self.tokens.append(json.loads(b"{%b}" % fragment)["data"]["text"])

    def run(self) -> "Recorded":
        handler.run(self.context)
        return self

    @property
    def response(self) -> Content:
        return self.files["text/response.txt"]

    @property
    def usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = json.loads(str(self.files["usage.json"]))
        return usage


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Stream:
    """What litellm.completion returns: chunks, then perhaps a failure."""

    def __init__(self, *texts: str, usage: Any = None, failure: Exception | None = None, finish: str = "stop") -> None:
        self.texts, self.failure = texts, failure
        self.received_finish_reason, self.intermittent_finish_reason = finish, None
        self.completion_stream = self
        self.chunks = [SimpleNamespace(usage=usage)]
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        for text in self.texts:
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=text))])
        if self.failure:
            raise self.failure

    def close(self) -> None:
        self.closed = True


class Fault(Exception):
    """An exception of LiteLLM: most have a status, some of them made up."""

    def __init__(self, status_code: int | None = None, text: str = "") -> None:
        super().__init__(text)
        self.status_code = status_code


class Timeout(Fault):
    pass


class APIConnectionError(Fault):
    pass


class BadRequestError(Fault):
    pass


def get_llm_provider(model: str) -> tuple[str, str]:
    provider, slash, name = model.partition("/")
    if not slash:
        raise BadRequestError(400, "LLM Provider NOT provided")
    return name, provider


@pytest.fixture(autouse=True)
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for what load() returns; the real one can't be imported."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.setenv("SOME_API_KEY", KEY)
    module = SimpleNamespace(
        Timeout=Timeout,
        APIConnectionError=APIConnectionError,
        BadRequestError=BadRequestError,
        get_llm_provider=get_llm_provider,
        validate_environment=lambda model: {"missing_keys": []},
    )
    monkeypatch.setattr(handler, "load", lambda: module)
    return module


def answered(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Recorded:
    monkeypatch.setattr(handler, "_ask", lambda *_: stream)
    return Recorded(said("test"), mode="real")


def failed(monkeypatch: pytest.MonkeyPatch, failure: Exception, *texts: str) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        answered(monkeypatch, Stream(*texts, failure=failure)).run()
    return raised.value


# mock


def test_mock_answers_the_same_on_every_machine() -> None:
    recorded = Recorded(said("test")).run()

    assert recorded.response == (
        "Indigo jasper hollow mosaic drift flint opal zephyr. Flint gentle pebble lunar maple opal clover beacon. "
        "Zephyr glacier raven slate velvet beacon silver bridge."
    )


def test_the_tokens_of_mock_are_the_response_file() -> None:
    recorded = Recorded(said("test")).run()

    assert len(recorded.tokens) == 24
    assert "".join(recorded.tokens) == recorded.response


def test_two_prompts_that_differ_in_one_word_give_different_answers() -> None:
    assert Recorded(said("name a red fruit")).run().response != Recorded(said("name a tea fruit")).run().response


def test_mock_counts_words_and_tokens() -> None:
    recorded = Recorded(said("three short words"), model="anthropic/claude").run()

    assert recorded.usage == {
        "model": "anthropic/claude",
        "prompt_tokens": 3,
        "completion_tokens": 24,
        "total_tokens": 27,
    }


def test_the_default_model_is_the_contract_s() -> None:
    assert Recorded(said("test")).run().usage["model"] == "openai/gpt-4o-mini"


@given(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text() | st.lists(st.text())}), min_size=1))
def test_mock_answers_whatever_the_messages_are(messages: list[dict[str, Any]]) -> None:
    assert Recorded(messages).run().files == Recorded(messages).run().files


def test_a_cancelled_run_writes_nothing() -> None:
    recorded = Recorded(said("test"))
    recorded.context.cancelled = True

    recorded.run()

    assert (recorded.tokens, recorded.files) == ([], {})


# real


def test_real_passes_on_the_tokens_and_the_provider_s_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(prompt_tokens=3, completion_tokens=2, total_tokens=6)
    recorded = answered(monkeypatch, Stream("Hel", "", "lo", usage=usage)).run()

    assert recorded.tokens == ["Hel", "lo"]
    assert recorded.response == "Hello"
    assert [recorded.usage[name] for name in COUNTS] == [3, 2, 6]


def test_counts_that_the_provider_did_not_send_are_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = answered(monkeypatch, Stream("Hello")).run()

    assert [recorded.usage[name] for name in COUNTS] == [None, None, None]


def test_a_cancelled_real_run_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream("Hel", "lo")
    recorded = answered(monkeypatch, stream)
    recorded.context.cancelled = True

    recorded.run()

    assert stream.closed
    assert recorded.files == {}


def test_an_answer_that_was_not_finished_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = answered(monkeypatch, Stream("Hel", finish=""))

    with pytest.raises(ProviderError, match="openai stopped in the middle of its answer") as raised:
        recorded.run()

    assert raised.value.details == {"status": None, "provider": "openai", "retryable": True}
    assert recorded.files == {}


def test_an_answer_that_is_no_completion_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError, match="no chat completion") as raised:
        answered(monkeypatch, Stream(finish="")).run()

    assert not raised.value.details["retryable"]


@pytest.mark.parametrize(
    ("failure", "message", "status", "retryable"),
    [
        (Fault(401), "openai refused the credentials (401)", 401, False),
        (Fault(403), "openai refused the credentials (403)", 403, False),
        (Fault(404, "x - no such model"), "openai refused the request (404): no such model", 404, False),
        (Fault(409, "x - busy"), "openai refused the request (409): busy", 409, True),
        (Fault(429), "openai says that it has too many requests (429)", 429, True),
        (Fault(429, "insufficient_quota"), "openai says that the quota is used up (429)", 429, False),
        (Fault(500), "openai failed (500)", 500, True),
        (Fault(529), "openai failed (529)", 529, True),
        (Timeout(408), "openai was silent for too long", None, True),
        (APIConnectionError(500), "no answer from openai: the connection failed", None, True),
        (KeyError("choices"), "openai can't be asked: KeyError", None, False),
    ],
)
def test_a_failure_says_status_and_whether_to_try_again(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str, status: int | None, retryable: bool
) -> None:
    error = failed(monkeypatch, failure)

    assert error.message == message
    assert error.details == {"status": status, "provider": "openai", "retryable": retryable}


def test_a_failure_in_mid_stream_is_told_by_what_caused_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Fault(500)
    failure.original_exception = APIConnectionError(500)  # type: ignore[attr-defined]

    error = failed(monkeypatch, failure, "Hel")

    assert error.message == "openai broke off in the middle of its answer"
    assert error.details["status"] is None


def test_refused_credentials_name_the_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch, litellm: Any) -> None:
    litellm.validate_environment = lambda model: {"missing_keys": ["OPENAI_API_KEY"]}

    error = failed(monkeypatch, Fault(401))

    assert error.message == "openai refused the credentials (401); not set: OPENAI_API_KEY"


def test_a_model_without_a_known_provider_is_named() -> None:
    with pytest.raises(ProviderError, match="no provider for model 'nonsense'"):
        Recorded(said("test"), mode="real", model="nonsense").run()


@pytest.mark.parametrize(
    "text",
    [
        f"x - key {KEY} at https://user:{KEY}@example.org/v1?key={KEY} is wrong",
        f'x - b\'{{"error": {{"message": "key {KEY} at http://example.org/{KEY} is wrong"}}}}\'',
    ],
)
def test_a_provider_s_words_are_passed_on_without_key_and_url(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    error = failed(monkeypatch, Fault(400, text))

    assert error.message == "openai refused the request (400): key <SOME_API_KEY> at <URL> is wrong"


def test_a_provider_s_words_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    error = failed(monkeypatch, Fault(400, "x - " + "long " * 1000))

    assert len(error.message) < 250


def test_the_original_exception_is_in_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    error = failed(monkeypatch, Fault(401, f"wrong key {KEY}"))

    assert error.__cause__ is None
    assert error.__suppress_context__
