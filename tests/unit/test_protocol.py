"""The wire format: its encoding, its order, its schema, and the page that explains it."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processor_runtime import protocol
from processor_runtime.protocol import (
    CHUNK_BYTES,
    CHUNK_HEADER,
    WINDOW_BYTES,
    Accepted,
    Attach,
    Cancel,
    Cancelled,
    Completed,
    ControllerMessage,
    ControllerSide,
    Credit,
    Event,
    Grant,
    Hello,
    ProtocolError,
    Refused,
    Run,
    RuntimeMessage,
    RuntimeSide,
    Stored,
    Upload,
    Uploaded,
    chunk,
    decode_controller,
    decode_runtime,
    encode,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "protocol.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
EXAMPLES = [line for line in (DOCS / "protocol.md").read_text().splitlines() if line.startswith('{"type"')]
CONTROLLER = get_args(ControllerMessage)
RUNTIME = get_args(RuntimeMessage)

ID = "01900000-0000-7000-8000-000000000001"
OTHER = "01900000-0000-7000-8000-000000000002"
HELLO = Hello("a/b@1", "sha256:" + "1" * 64, "sha256:" + "2" * 64, "pin", "1.0.0", 2, [])
UPLOAD = Upload(ID, 1, "a.txt", 10, "sha256:" + "4" * 64, "text/plain")
COMPLETED = Completed(ID, "success", None, [], {})


def event(seq: int, name: str = "token", **data: Any) -> str:
    return encode(Event(ID, seq, name, "2026-11-22T10:00:00.000Z", data))


def accepted_side() -> ControllerSide:
    side = ControllerSide()
    side.receive(encode(HELLO))
    side.run(Run(ID, "mock", {}, "/artifacts/a/", 1.0))
    side.receive(encode(Accepted(ID, "sha256:" + "3" * 64)))
    return side


# Encoding

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_OBJECT = st.dictionaries(st.text(), _JSON, max_size=4)
_FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    str | None: st.none() | st.text(),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    dict[str, Any]: _OBJECT,
    dict[str, Any] | None: st.none() | _OBJECT,
    list[str]: st.lists(st.text(), max_size=3),
    list[str] | None: st.none() | st.lists(st.text(), max_size=3),
    list[dict[str, Any]]: st.lists(_OBJECT, max_size=3),
    list[dict[str, Any]] | None: st.none() | st.lists(_OBJECT, max_size=3),
}


def messages(kinds: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    return st.one_of(
        [st.builds(kind, **{name: _FIELDS[hint] for name, hint in kind.__annotations__.items()}) for kind in kinds]
    )


@given(messages(CONTROLLER))
def test_what_a_controller_says_arrives_as_it_was(message: ControllerMessage) -> None:
    assert decode_controller(encode(message)) == message


@given(messages(RUNTIME))
def test_what_a_runtime_says_arrives_as_it_was(message: RuntimeMessage) -> None:
    assert decode_runtime(encode(message).encode()) == message


@given(messages((*CONTROLLER, *RUNTIME)))
def test_a_message_is_one_line(message: protocol.Message) -> None:
    assert "\n" not in encode(message)


@given(st.text() | st.binary() | _JSON.map(json.dumps))
def test_anything_else_is_a_protocol_error_and_no_other(text: str | bytes) -> None:
    for decode in (decode_controller, decode_runtime):
        with pytest.raises(ProtocolError):
            decode(text)


@given(messages(CONTROLLER), st.data())
def test_a_field_of_another_type_is_refused(message: Any, data: st.DataObject) -> None:
    document = json.loads(encode(message))
    field = data.draw(st.sampled_from([name for name in document if name != "type"]))
    other: Any = {} if field == "parts" else ["x"]  # an array of anything passes for one
    document[field] = data.draw(st.sampled_from([True, other, "x" if isinstance(document[field], int | float) else 7]))

    with pytest.raises(ProtocolError, match="wrong type"):
        decode_controller(json.dumps(document))


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ProtocolError, match="credit without bytes"):
        decode_controller('{"type":"credit","upload":1}')


def test_an_optional_field_may_be_absent() -> None:
    assert decode_controller('{"type":"grant","upload":1,"transfer":"relay"}') == Grant(1, "relay", 0, None)


def test_an_unknown_field_is_ignored() -> None:
    assert decode_controller('{"type":"stored","upload":1,"since":"tomorrow"}') == Stored(1)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_only_python_calls_json_is_refused(constant: str) -> None:
    with pytest.raises(ProtocolError):
        decode_controller(f'{{"type":"run","execution_id":"{ID}","mode":"mock","inputs":{{"x":{constant}}}}}')


def test_endless_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_controller('{"a":' * 100_000)


def test_a_whole_number_is_a_number_of_seconds() -> None:
    message = decode_controller(encode(Run(ID, "mock", {}, "/artifacts/a/", 1)))

    assert isinstance(message, Run)
    assert math.isclose(message.timeout_s, 1)


# The schema and the page


def test_every_message_type_has_an_example_on_the_page() -> None:
    found = {json.loads(line)["type"] for line in EXAMPLES}

    assert found == {kind.__name__.lower() for kind in (*CONTROLLER, *RUNTIME)}


def test_every_event_has_an_example_on_the_page() -> None:
    found = {document["event"] for document in map(json.loads, EXAMPLES) if document["type"] == "event"}

    assert found == protocol.EVENTS


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_fits_the_schema_and_the_module(line: str) -> None:
    VALIDATOR.validate(json.loads(line))
    kinds = {kind.__name__.lower() for kind in CONTROLLER}
    decode: Any = decode_controller if json.loads(line)["type"] in kinds else decode_runtime

    again = json.loads(encode(decode(line)))

    assert again.items() >= json.loads(line).items()


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_schema_has_the_fields_that_the_module_needs(line: str) -> None:
    document = json.loads(line)
    required = set(SCHEMA["$defs"][document["type"]]["required"])
    for name in required - {"type"}:
        broken = {key: value for key, value in document.items() if key != name}
        assert not VALIDATOR.is_valid(broken)


def test_the_schema_itself_is_sound() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


# What may follow what: the controller


def test_the_first_message_is_hello() -> None:
    with pytest.raises(ProtocolError, match="before accepted"):
        ControllerSide().receive(event(1))


def test_run_waits_for_hello_and_is_sent_once() -> None:
    side = ControllerSide()
    run = Run(ID, "mock", {}, "/artifacts/a/", 1.0)

    with pytest.raises(ProtocolError, match="after hello"):
        side.run(run)
    side.receive(encode(HELLO))
    side.run(run)
    with pytest.raises(ProtocolError, match="once"):
        side.run(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (encode(HELLO), "hello twice"),
        (event(2), "event 2 where 1 was due"),
        (encode(Accepted(OTHER, "")), "another execution"),
        (encode(Uploaded(1)), "unknown upload 1"),
        (encode(Stored(1)), "unknown message type 'stored'"),
    ],
)
def test_a_message_out_of_order_is_refused(text: str, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        accepted_side().receive(text)


def test_nothing_follows_completed() -> None:
    side = accepted_side()
    side.receive(encode(COMPLETED))

    with pytest.raises(ProtocolError, match="after completed"):
        side.receive(event(1))


def test_completed_may_be_the_only_answer() -> None:
    side = ControllerSide()
    side.receive(encode(HELLO))
    side.run(Run(ID, "mock", {}, "/artifacts/a/", 1.0))

    side.receive(encode(COMPLETED))

    assert side.completed == COMPLETED


@given(st.integers(1, 50), st.integers(1, 50))
def test_numbers_go_on_after_a_gap(length: int, after: int) -> None:
    side = accepted_side()
    side.receive(event(length, "gap", **{"from": 1, "to": length}))

    for seq in range(length + 1, length + after):
        side.receive(event(seq))

    assert side.next_seq == length + after


@pytest.mark.parametrize(("seq", "first", "last"), [(5, 2, 5), (5, 1, 4), (0, 1, 0), (5, "1", 5), (5, None, None)])
def test_a_gap_that_does_not_fit_is_refused(seq: int, first: object, last: object) -> None:
    with pytest.raises(ProtocolError, match="where 1 was due"):
        accepted_side().receive(event(seq, "gap", **{"from": first, "to": last}))


def attached_side(after: int) -> ControllerSide:
    side = ControllerSide()
    side.receive(encode(HELLO))
    assert decode_controller(side.attach(Attach(ID, after))) == Attach(ID, after)
    return side


@given(st.integers(0, 50))
def test_who_attaches_gets_the_events_after_those_that_it_has(after: int) -> None:
    side = attached_side(after)
    side.receive(encode(Accepted(ID, "")))

    side.receive(event(after + 1))

    assert side.next_seq == after + 2
    with pytest.raises(ProtocolError, match="was due"):
        side.receive(event(after + 1))


def test_one_connection_asks_once() -> None:
    with pytest.raises(ProtocolError, match="once"):
        attached_side(0).attach(Attach(ID, 0))
    with pytest.raises(ProtocolError, match="once"):
        attached_side(0).run(Run(ID, "mock", {}, "/artifacts/a/", 1.0))
    with pytest.raises(ProtocolError, match="after hello"):
        ControllerSide().attach(Attach(ID, 0))


def granted_side(size_bytes: int) -> ControllerSide:
    side = accepted_side()
    side.receive(encode(UPLOAD._replace(size_bytes=size_bytes)))
    side.grant_relay(1)
    return side


@given(st.integers(0, 3 * WINDOW_BYTES))
def test_a_relay_under_credit_carries_any_size(size_bytes: int) -> None:
    side, sent, credit, piece = granted_side(size_bytes), 0, WINDOW_BYTES, bytes(CHUNK_BYTES)

    while sent < size_bytes:
        size = min(CHUNK_BYTES, credit, size_bytes - sent)
        assert size > 0
        side.receive_chunk(chunk(1, sent, piece[:size]))
        sent, credit = sent + size, credit - size
        if (more := side.consumed(1)) is not None:
            message = decode_controller(more)
            assert isinstance(message, Credit)
            credit += message.bytes
        assert credit <= WINDOW_BYTES

    assert isinstance(side.receive(encode(Uploaded(1))), Uploaded)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"short", "shorter"),
        (chunk(2, 0, b"x"), "unknown upload 2"),
        (chunk(1, 1, b"x"), "out of place"),
        (chunk(1, 0, bytes(CHUNK_BYTES + 1)), "out of place"),
        (chunk(1, 0, bytes(11)), "beyond its credit or size"),
    ],
)
def test_a_chunk_that_should_not_be_is_refused(message: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        granted_side(10).receive_chunk(message)


def test_a_chunk_beyond_the_credit_is_refused() -> None:
    side = granted_side(WINDOW_BYTES * 2)
    for at in range(0, WINDOW_BYTES, CHUNK_BYTES):
        side.receive_chunk(chunk(1, at, bytes(CHUNK_BYTES)))

    with pytest.raises(ProtocolError, match="beyond its credit"):
        side.receive_chunk(chunk(1, WINDOW_BYTES, b"x"))


REQUEST = {"method": "PUT", "url": "http://store/a", "headers": {}}


def test_a_direct_grant_holds_one_request_or_one_for_each_part() -> None:
    side = accepted_side()
    side.receive(encode(UPLOAD))

    whole = Grant(1, "direct", request=REQUEST, lifetime_s=900)
    parts = Grant(1, "direct", parts=[REQUEST] * 2, part_bytes=5, upload_id="u", lifetime_s=9.5)
    for grant in (whole, parts):
        text = side.grant_direct(grant)
        assert decode_controller(text) == grant
        VALIDATOR.validate(json.loads(text))


def test_a_direct_upload_may_end_without_a_chunk() -> None:
    side = accepted_side()
    side.receive(encode(UPLOAD))
    side.grant_direct(Grant(1, "direct", request=REQUEST))

    assert side.receive(encode(Uploaded(1, ["etag"]))) == Uploaded(1, ["etag"])


def test_an_upload_that_ends_before_its_grant_is_refused() -> None:
    side = accepted_side()
    side.receive(encode(UPLOAD))

    with pytest.raises(ProtocolError, match="before it was granted"):
        side.receive(encode(Uploaded(1)))


def test_an_output_may_be_asked_for_again_under_a_new_number() -> None:
    side, runtime = accepted_side(), RuntimeSide()
    for number in (1, 2):
        side.receive(runtime.ask(UPLOAD._replace(upload=number, relay=number == 2)))

    runtime.receive(side.grant_relay(2))
    runtime.receive(encode(Refused(1, {})))  # which crossed the second request

    assert list(runtime.uploads) == [2]


def test_a_chunk_before_its_grant_is_refused() -> None:
    side = accepted_side()
    side.receive(encode(UPLOAD))

    with pytest.raises(ProtocolError, match="beyond its credit"):
        side.receive_chunk(chunk(1, 0, b"x"))


def test_an_upload_that_ends_early_is_refused() -> None:
    side = granted_side(10)
    side.receive_chunk(chunk(1, 0, b"x"))

    with pytest.raises(ProtocolError, match="ended at 1 of 10 bytes"):
        side.receive(encode(Uploaded(1)))


def test_an_upload_number_is_used_once() -> None:
    side = granted_side(10)

    with pytest.raises(ProtocolError, match="upload 1 twice"):
        side.receive(encode(UPLOAD))


def test_a_chunk_is_its_header_and_its_bytes() -> None:
    assert chunk(7, 2**33, memoryview(b"abc")) == CHUNK_HEADER.pack(7, 2**33) + b"abc"


# What may follow what: the runtime


def running_side() -> RuntimeSide:
    side = RuntimeSide()
    side.receive(encode(Run(ID, "mock", {}, "/artifacts/a/", 1.0)))
    return side


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Run(OTHER, "mock", {}, "/artifacts/a/", 1.0), "one connection carries one execution"),
        (Attach(ID, 0), "one connection carries one execution"),
        (Cancel(OTHER, "user"), "cancel for another execution"),
        (Grant(1, "relay"), "unknown upload 1"),
        (Credit(1, 1), "unknown upload 1"),
        (Stored(1), "unknown upload 1"),
        (Refused(1, {}), "unknown upload 1"),
    ],
)
def test_a_controller_out_of_order_is_refused(message: ControllerMessage, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        running_side().receive(encode(message))


@pytest.mark.parametrize("identity", ["", "1", ID.replace("-7", "-4"), ID.upper() + "\n", ID + "\n"])
def test_an_execution_id_is_a_uuid_of_version_7(identity: str) -> None:
    with pytest.raises(ProtocolError, match="UUIDv7"):
        RuntimeSide().receive(encode(Run(identity, "mock", {}, "/artifacts/a/", 1.0)))


@pytest.mark.parametrize("settled", [Stored(1), Refused(1, {"code": "ERR_UPLOAD"})])
def test_an_upload_is_settled_once(settled: ControllerMessage) -> None:
    side = running_side()
    side.ask(UPLOAD)
    side.receive(encode(Grant(1, "relay", 10)))
    side.receive(encode(settled))

    with pytest.raises(ProtocolError, match="unknown upload 1"):
        side.receive(encode(settled))


def test_a_cancel_before_any_run_is_refused() -> None:
    with pytest.raises(ProtocolError, match="another execution"):
        RuntimeSide().receive(encode(Cancel(ID, "user")))


def test_cancelled_names_who_and_how() -> None:
    side = accepted_side()

    message = side.receive(encode(Cancelled(ID, "user", "interrupt")))

    assert message == Cancelled(ID, "user", "interrupt")
