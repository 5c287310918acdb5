import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from processor_runtime.protocol import EXECUTION_ID

from apps.errors import TimedOut
from apps.processors.envelope import Envelope, Meta, Output, decode, encode, index_document, new_execution_id, now
from apps.processors.management.commands._base import Result, SubcommandCommand

DIGEST = "sha256:" + "0" * 64
ANY_OPTIONS = {"verbosity": 1, "no_color": True, "force_color": False}
PREFIX = "/artifacts/outputs/llm-litellm-v1/019/"
USAGE = Output(PREFIX + "usage.json", DIGEST, 7, "application/json")
TEXT = Output(PREFIX + "text/response.txt", DIGEST, 42, "text/plain")
META = Meta(
    adapter="local",
    engine="docker",
    mode="mock",
    image_digest=DIGEST,
    spec_digest=DIGEST,
    inputs_digest=DIGEST,
    secrets_present=("OPENAI_API_KEY",),
    storage="filesystem",
    transfer="relay",
    isolation="container",
    started_at="2026-11-22T10:00:00.000Z",
    duration_ms=1234,
    runtime_version="1.0.0",
)
SUCCESS = Envelope("019", "llm/litellm@1", META, (USAGE, TEXT), PREFIX + "outputs.json")


def test_a_success_has_the_contracts_shape_and_order() -> None:
    assert encode(SUCCESS.document()).decode() == (
        '{"schema":1,"status":"success","execution_id":"019","ref":"llm/litellm@1","outputs":['
        f'{{"path":"{PREFIX}text/response.txt","digest":"{DIGEST}","size_bytes":42,"mime":"text/plain"}},'
        f'{{"path":"{PREFIX}usage.json","digest":"{DIGEST}","size_bytes":7,"mime":"application/json"}}],'
        f'"index_path":"{PREFIX}outputs.json",'
        '"meta":{"adapter":"local","engine":"docker","mode":"mock",'
        f'"image_digest":"{DIGEST}","spec_digest":"{DIGEST}","inputs_digest":"{DIGEST}",'
        '"secrets_present":["OPENAI_API_KEY"],"storage":"filesystem","transfer":"relay",'
        '"isolation":"container","started_at":"2026-11-22T10:00:00.000Z","duration_ms":1234,'
        '"runtime_version":"1.0.0"}}'
    )


def test_what_is_stored_is_what_json_prints() -> None:
    odd = SUCCESS._replace(outputs=(TEXT._replace(path=PREFIX + "grüße 😀"),)).document()
    stdout = StringIO()

    command = SubcommandCommand(stdout=stdout)
    command.handle(**ANY_OPTIONS, json=True, run=lambda _: Result(odd))

    assert stdout.getvalue().encode() == encode(odd) + b"\n"


def test_an_error_has_error_and_partial_outputs_in_the_place_of_outputs_and_index() -> None:
    error = TimedOut("it took 5 s", hint="raise --timeout").words()

    document = SUCCESS._replace(index_path=None, error=error).document()

    assert list(document) == ["schema", "status", "execution_id", "ref", "error", "partial_outputs", "meta"]
    assert document["status"] == "error"
    assert document["error"] == {
        "code": "ERR_TIMEOUT",
        "message": "it took 5 s",
        "hint": "raise --timeout",
        "details": {},
    }
    assert document["partial_outputs"] == SUCCESS.document()["outputs"]


def test_an_error_before_anything_was_stored_has_no_partial_outputs() -> None:
    assert Envelope("019", "llm/litellm@1", Meta(), error={}).document()["partial_outputs"] == []


def test_meta_has_every_key_and_null_for_what_is_not_known() -> None:
    unknown = Meta().document()

    assert list(unknown) == list(META.document())
    assert set(unknown.values()) == {None}


def test_no_secret_present_is_known_and_not_null() -> None:
    assert Meta(secrets_present=()).document()["secrets_present"] == []


def test_the_index_names_the_same_outputs() -> None:
    document = index_document(SUCCESS)

    assert list(document) == ["schema", "execution_id", "ref", "outputs"]
    assert document["outputs"] == SUCCESS.document()["outputs"]


def test_encoded_documents_are_one_line_of_ascii_that_reads_back() -> None:
    odd = {"error": {"message": "grüße\n\u2028 \ud800 😀"}}

    data = encode(odd)

    assert data.isascii()
    assert b"\n" not in data
    assert json.loads(data) == odd


@pytest.mark.parametrize("meta", [META, Meta(), META._replace(secrets_present=())])
def test_a_receipt_reads_back_to_its_envelope(meta: Meta) -> None:
    envelope = SUCCESS._replace(meta=meta)

    again = decode(encode(envelope.document()))

    assert again.meta == meta
    assert again.document() == envelope.document()


def test_a_number_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"duration_ms": float("nan")})


def test_execution_ids_are_uuid_version_7_of_this_moment() -> None:
    before = datetime.now(UTC)

    text = new_execution_id()

    found = uuid.UUID(text)
    assert EXECUTION_ID.fullmatch(text)
    assert str(found) == text
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    made = datetime.fromtimestamp((found.int >> 80) / 1000, UTC)
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC)


def test_execution_ids_differ_and_every_random_bit_varies() -> None:
    values = [uuid.UUID(new_execution_id()).int for _ in range(200)]
    fixed = 0xF << 76 | 0x3 << 62

    ever_set, always_set = 0, (1 << 128) - 1
    for value in values:
        ever_set |= value
        always_set &= value

    assert len(set(values)) == 200
    random_bits = ((1 << 80) - 1) & ~fixed
    assert ever_set & random_bits == random_bits
    assert always_set & random_bits == 0


def test_times_are_utc_with_milliseconds() -> None:
    before = datetime.now(UTC)

    text = now()

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(text) <= datetime.now(UTC)
