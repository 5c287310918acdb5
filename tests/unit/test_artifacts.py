import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import InvalidInputs, OutputExists, OutputInvalid, StorageFailed, UploadFailed
from apps.processors.envelope import Envelope, Meta, Output, encode, index_document, new_execution_id
from apps.storage.artifacts import Artifacts, expand, key
from apps.storage.filesystem import FilesystemBackend
from tests.places import small_disk

REF = "llm/litellm@1"
SLUG = "llm-litellm-v1"
MINE, OTHER = new_execution_id(), new_execution_id()
PREFIX = "/artifacts/outputs/test/"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def place(root: Path) -> Artifacts:
    return artifacts(root)


def artifacts(root: Path, prefix: str = PREFIX) -> Artifacts:
    backend = FilesystemBackend(root)
    backend.check()
    return Artifacts(backend, prefix)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put(place: Artifacts, path: str, data: bytes) -> Output:
    """Relay one output, as a run does."""
    digest = digest_of(data)
    writer = place.receive(path, size_bytes=len(data), digest=digest, mime="text/plain")
    try:
        writer.write(data)
        writer.commit(size_bytes=len(data), digest=digest)
    finally:
        writer.abort()
    return Output(place.prefix + path, digest, len(data), "text/plain")


def run(place: Artifacts, execution_id: str = MINE, *, duration_ms: int = 1) -> bytes:
    """A whole execution as the run service stores it; returns its receipt."""
    if (receipt := place.previous(execution_id)) is not None:
        return receipt
    outputs = (put(place, "text/response.txt", b"hello"), put(place, "usage.json", b"{}"))
    envelope = Envelope(execution_id, REF, Meta(duration_ms=duration_ms), outputs, place.prefix + "outputs.json")
    place.finish(encode(index_document(envelope)), encode(envelope.document()))
    return encode(envelope.document())


def at(root: Path, name: str) -> Path:
    return root / PREFIX[1:] / name


# Write prefixes


def test_the_default_prefix_is_the_references() -> None:
    assert expand(None, execution_id=MINE, ref_slug=SLUG) == f"/artifacts/outputs/{SLUG}/{MINE}/"


@pytest.mark.parametrize(
    ("prefix", "expanded"),
    [
        ("/artifacts/outputs/test/{execution_id}/", f"/artifacts/outputs/test/{MINE}/"),
        ("/artifacts/{ref_slug}-{execution_id}-{ref_slug}/", f"/artifacts/{SLUG}-{MINE}-{SLUG}/"),
        ("/artifacts/fixed/", "/artifacts/fixed/"),
        ("/artifacts/", "/artifacts/"),
        ("/artifacts/grüße 1/", "/artifacts/grüße 1/"),
    ],
)
def test_a_prefix_is_expanded(prefix: str, expanded: str) -> None:
    assert expand(prefix, execution_id=MINE, ref_slug=SLUG) == expanded


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "/",
        "artifacts/x/",
        "/artifacts",
        "/artifacts/x",
        "/artifactsx/",
        "/ARTIFACTS/x/",
        "/outputs/artifacts/",
        "//artifacts/x/",
        "/artifacts//",
        "/artifacts//x/",
        "/artifacts/x//",
        "/artifacts/../etc/",
        "/artifacts/x/../y/",
        "/artifacts/..",
        "/artifacts/../",
        "/artifacts/./",
        "/artifacts/x\n/",
        "/artifacts/x/\n",
        "/artifacts/\0/",
        "/artifacts/\x9b/",
        "/artifacts/{ref}/",
        "/artifacts/{}/",
        "/artifacts/{execution_id/",
        "/artifacts/execution_id}/",
        "/artifacts/{execution_id!r}/",
        "/artifacts/{ref_slug.__class__}/",
        "/artifacts/{{execution_id}}/",
        "/artifacts/" + "x" * 256 + "/",
        "s3://bucket/artifacts/",
    ],
)
def test_any_other_prefix_is_an_input_error_that_quotes_it(prefix: str) -> None:
    with pytest.raises(InvalidInputs) as caught:
        expand(prefix, execution_id=MINE, ref_slug=SLUG)

    assert repr(prefix) in caught.value.message
    assert "/artifacts/outputs/{ref_slug}/{execution_id}/" in caught.value.hint


@given(st.text(st.sampled_from("{}ab./_\0\n"), max_size=20) | st.text(max_size=20))
def test_an_accepted_prefix_is_a_key_between_two_slashes(middle: str) -> None:
    try:
        expanded = expand(f"/artifacts/{middle}/", execution_id=MINE, ref_slug=SLUG)
    except InvalidInputs:
        return

    segments = expanded[1:-1].split("/")
    assert segments[0] == "artifacts"
    assert all(segment not in ("", ".", "..") for segment in segments)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in expanded)
    assert "{" not in expanded


# Output names


def test_the_key_of_an_output_is_prefix_and_path_without_the_first_slash() -> None:
    assert key(PREFIX, "frames/0001.png") == "artifacts/outputs/test/frames/0001.png"


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../x", "a//b", "a/", ".", "a\0", "a\n", "x" * 256])
def test_an_output_that_would_lie_elsewhere_is_invalid(place: Artifacts, root: Path, path: str) -> None:
    with pytest.raises(OutputInvalid) as caught:
        put(place, path, b"x")

    assert caught.value.details == {"path": path}
    assert [each for each in root.rglob("*") if each.is_file()] == []


@pytest.mark.parametrize("path", ["outputs.json", "receipt.json", "Outputs.JSON", "RECEIPT.json", "a/outputs.json"])
def test_a_handler_may_not_write_the_executions_own_documents(place: Artifacts, path: str) -> None:
    with pytest.raises(OutputInvalid, match="kept for"):
        put(place, path, b"x")


def test_an_output_of_another_size_is_refused_before_a_byte_moves(place: Artifacts) -> None:
    put(place, "a", b"first")

    with pytest.raises(OutputExists, match="other content"):
        place.receive("a", size_bytes=4, digest=digest_of(b"four"), mime="")


def test_an_output_of_the_same_size_and_other_bytes_is_refused_at_its_end(place: Artifacts, root: Path) -> None:
    put(place, "a", b"first")

    with pytest.raises(OutputExists):
        put(place, "a", b"other")

    assert at(root, "a").read_bytes() == b"first"


def test_an_output_that_is_not_what_was_announced_is_dropped(place: Artifacts, root: Path) -> None:
    writer = place.receive("a", size_bytes=5, digest=digest_of(b"hello"), mime="")
    writer.write(b"hellO")

    with pytest.raises(UploadFailed):
        writer.commit(size_bytes=5, digest=digest_of(b"hello"))

    assert not at(root, "a").exists()


# A whole execution


def test_a_complete_prefix_holds_outputs_receipt_and_index(place: Artifacts, root: Path) -> None:
    receipt = run(place)

    assert at(root, "receipt.json").read_bytes() == receipt
    index = json.loads(at(root, "outputs.json").read_bytes())
    assert index == {"schema": 1, "execution_id": MINE, "ref": REF, "outputs": json.loads(receipt)["outputs"]}
    for output in index["outputs"]:
        data = (root / output["path"][1:]).read_bytes()
        assert (len(data), digest_of(data)) == (output["size_bytes"], output["digest"])


def test_an_output_is_found_and_read_by_its_path(place: Artifacts, root: Path) -> None:
    run(place)

    assert place.locate("usage.json") == str(at(root, "usage.json"))
    assert place.locate() == f"{root}{PREFIX}"
    with place.open("usage.json") as file:
        assert file.read() == b"{}"


def test_a_stored_output_is_told_from_one_that_is_not(place: Artifacts, root: Path) -> None:
    put(place, "a", b"hello")

    assert place.holds("a", digest_of(b"hello"), 5)
    assert not place.holds("a", digest_of(b"hellO"), 5)
    assert not place.holds("a", digest_of(b"hello"), 6)
    assert not place.holds("b", digest_of(b"hello"), 5)


def test_nothing_precedes_the_first_run(place: Artifacts) -> None:
    assert place.previous(MINE) is None


def test_the_same_execution_gets_its_receipt_back(place: Artifacts, root: Path) -> None:
    receipt = run(place)

    assert artifacts(root).previous(MINE) == receipt


def test_another_execution_does_not_get_a_complete_prefix(place: Artifacts, root: Path) -> None:
    run(place)

    with pytest.raises(OutputExists, match=MINE) as caught:
        artifacts(root).previous(OTHER)

    assert caught.value.details == {"execution_id": MINE}


def test_outputs_without_an_index_stop_nobody(place: Artifacts, root: Path) -> None:
    put(place, "text/response.txt", b"hello")

    assert run(artifacts(root), OTHER)


@pytest.mark.parametrize("name", ["outputs.json", "receipt.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"schema":2,"execution_id":"x"}',
        b'{"schema":1}',
        b'{"schema":1,"execution_id":7}',
        b"[" * 100_000,
    ],
)
def test_a_document_that_is_none_of_ours_is_never_replaced(
    place: Artifacts, root: Path, name: str, data: bytes
) -> None:
    at(root, name).parent.mkdir(parents=True)
    at(root, name).write_bytes(data)

    with pytest.raises(OutputExists, match="not a document of an execution"):
        place.previous(MINE)


def test_an_index_whose_receipt_is_gone_is_said(place: Artifacts, root: Path) -> None:
    run(place)
    at(root, "receipt.json").unlink()

    with pytest.raises(StorageFailed, match="is gone"):
        place.previous(MINE)


# A receipt without an index: killed between the two


@pytest.fixture
def half(place: Artifacts, root: Path) -> Artifacts:
    """A prefix whose run was killed after the receipt."""
    run(place)
    at(root, "outputs.json").unlink()
    return artifacts(root)


def test_a_leftover_receipt_gets_its_index_and_is_the_answer(half: Artifacts, root: Path) -> None:
    receipt = half.previous(MINE)

    assert receipt == at(root, "receipt.json").read_bytes()
    again = artifacts(root / "elsewhere")
    run(again)
    assert at(root, "outputs.json").read_bytes() == at(root / "elsewhere", "outputs.json").read_bytes()


def test_a_leftover_receipt_of_another_execution_keeps_the_prefix(half: Artifacts, root: Path) -> None:
    with pytest.raises(OutputExists, match=MINE):
        half.previous(OTHER)

    assert not at(root, "outputs.json").exists()


def _remove(path: Path) -> None:
    path.unlink()


def _shorten(path: Path) -> None:
    path.write_bytes(b"hell")


def _change(path: Path) -> None:
    path.write_bytes(b"hellO")


@pytest.mark.parametrize("damage", [_remove, _shorten, _change])
def test_a_leftover_receipt_whose_outputs_are_not_true_gets_no_index(
    half: Artifacts, root: Path, damage: Callable[[Path], None]
) -> None:
    damage(at(root, "text/response.txt"))

    with pytest.raises(OutputExists, match="not there as it says"):
        half.previous(MINE)

    assert not at(root, "outputs.json").exists()


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        7,
        [7],
        [{}],
        [{"path": "/etc/passwd", "digest": "", "size_bytes": 0, "mime": ""}],
        [{"path": "../../x", "digest": "", "size_bytes": 0, "mime": ""}],
        [{"path": 7, "digest": "", "size_bytes": 0, "mime": ""}],
    ],
)
def test_a_leftover_receipt_that_is_none_gets_no_index(half: Artifacts, root: Path, outputs: Any) -> None:
    receipt = json.loads(at(root, "receipt.json").read_bytes())
    at(root, "receipt.json").write_bytes(encode({**receipt, "outputs": outputs}))

    with pytest.raises(OutputExists):
        half.previous(MINE)

    assert not at(root, "outputs.json").exists()


# Failures between the writes


def test_a_disk_too_full_for_the_documents_gets_neither(tmp_path: Path) -> None:
    for disk in small_disk(tmp_path / "disk", size="64k"):
        place = artifacts(disk / "root")

        with pytest.raises(StorageFailed, match="no space left"):
            place.finish(index=bytes(48_000), receipt=bytes(48_000))

        assert [path for path in disk.rglob("*") if path.is_file()] == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_run_killed_before_any_system_call_leaves_a_prefix_that_the_same_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill loses nothing that a power cut would
    for number in range(200):
        root = tmp_path / str(number)
        killed = _killed_at(number, partial(_whole_run, root))
        _assert_complete_or_without_index(root)

        receipt = run(artifacts(root), duration_ms=2)

        assert at(root, "receipt.json").read_bytes() == receipt
        assert _assert_complete_or_without_index(root)
        if not killed:
            break
    else:
        pytest.fail("it never came to an end")
    assert number > 30


def _whole_run(root: Path) -> None:
    run(artifacts(root))


def _killed_at(number: int, act: Callable[[], object]) -> bool:
    """Do `act` in a forked process that kills itself before its system call `number`; False when it ended."""
    child = os.fork()
    if child == 0:
        calls = iter(range(number))
        for name in ("open", "write", "fsync", "link", "unlink", "mkdir"):
            setattr(os, name, _counted(getattr(os, name), calls))
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


def _counted(call: Callable[..., Any], calls: Iterator[int]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)

    return counted


def _assert_complete_or_without_index(root: Path) -> bool:
    """What every prefix is, whatever happened; True when it is complete."""
    if not at(root, "outputs.json").exists():
        return False
    index = json.loads(at(root, "outputs.json").read_bytes())
    assert json.loads(at(root, "receipt.json").read_bytes())["outputs"] == index["outputs"]
    for output in index["outputs"]:
        assert digest_of((root / output["path"][1:]).read_bytes()) == output["digest"]
    return True
