"""Parts of the runtime that hold without any process: frames, events, paths, scratch space."""

import os
import stat
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processor_runtime import events, failures, ipc, outcome, outputs, scratch, system
from processor_runtime.environment import OutputRule, redact
from processor_runtime.handler import OutputInvalid
from processor_runtime.inputs import InvalidInputs, canonical

IDENTITY = "01900000-0000-7000-8000-000000000001"

# frames between processes


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300))), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(ipc.pack(kind, body) for kind, body in frames)
    splitter, found = ipc.Splitter(), []

    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]

    assert found == frames


def test_a_frame_of_absurd_length_is_refused_before_it_is_awaited() -> None:
    with pytest.raises(ipc.BrokenFrame):
        ipc.Splitter().feed(ipc.HEADER.pack(2**31, 1))


# events


def numbers(texts: list[bytes]) -> list[int]:
    return [orjson.loads(text)["seq"] for text in texts]


def test_events_are_numbered_from_one_and_kept_for_a_later_reader() -> None:
    log = events.EventLog(IDENTITY)
    for _ in range(5):
        log.add(events.fragment("token", {"text": "x"}))

    assert numbers(log.after(0)[0]) == [1, 2, 3, 4, 5]
    assert numbers(log.after(3)[0]) == [4, 5]
    assert log.after(5) == ([], 5)


def test_a_later_reader_gets_many_events_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PIECE_EVENTS", 3)
    monkeypatch.setattr(events, "RING_EVENTS", 8)
    log = events.EventLog(IDENTITY)
    for _ in range(10):
        log.add(events.fragment("token", {"text": "x"}))

    pieces, seen = list[list[int]](), 0
    while seen < log.last:
        texts, seen = log.after(seen)
        pieces.append(numbers(texts))

    assert pieces == [[2, 3, 4, 5], [6, 7, 8], [9, 10]]  # 2 is the gap


def test_a_reader_too_far_behind_gets_one_gap_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RING_EVENTS", 3)
    log = events.EventLog(IDENTITY)
    for _ in range(10):
        log.add(events.fragment("token", {"text": "x"}))

    texts = [orjson.loads(text) for text in log.after(2)[0]]

    assert [text["seq"] for text in texts] == [7, 8, 9, 10]
    assert (texts[0]["event"], texts[0]["data"]) == ("gap", {"from": 3, "to": 7})


def test_the_ring_is_bounded_in_bytes() -> None:
    log = events.EventLog(IDENTITY)
    for _ in range(100):
        log.add(events.fragment("token", {"text": "x" * 50_000}))

    assert sum(map(len, log.after(0)[0])) < events.RING_BYTES + 1000


def test_an_event_larger_than_the_ring_is_kept() -> None:
    log = events.EventLog(IDENTITY)
    log.add(events.fragment("token", {"text": "x" * (events.RING_BYTES + 1)}))

    assert numbers(log.after(0)[0]) == [1]


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_790_000_000.5, "2026-09-21T14:13:20.500Z"),
        (0.9999, "1970-01-01T00:00:00.999Z"),
    ],
)
def test_times_are_utc_to_the_millisecond(at: float, text: str) -> None:
    assert events.timestamp(at) == text


# outputs


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("frames/*.png", "frames/1.png", True),
        ("frames/*.png", "frames/a/1.png", False),
        ("frames/*.png", "frames/1.PNG", False),
        ("*", "one", True),
        ("*", "one/two", False),
        ("*/*.json", "a/b.json", True),
        ("a?.[tc]xt", "ab.txt", True),
        ("a?.[tc]xt", "ab.dxt", False),
    ],
)
def test_a_wildcard_stays_within_its_segment(pattern: str, path: str, fits: bool) -> None:
    assert outputs.matches(pattern, path) is fits


def test_a_plain_entry_goes_before_a_glob(tmp_path: Path) -> None:
    rules = (OutputRule("*.txt", "text/x-any"), OutputRule("one.txt", "text/x-one"))
    spool = outputs.Spool(tmp_path / "spool", rules, prefix_bytes=10)

    assert spool.write("one.txt", "1")["mime"] == "text/x-one"
    assert spool.write("two.txt", "2")["mime"] == "text/x-any"
    assert spool.missing() == []


def test_a_failed_write_leaves_nothing_and_may_be_done_again(tmp_path: Path) -> None:
    spool = outputs.Spool(tmp_path / "spool", (OutputRule("*", None),), prefix_bytes=10)

    def broken() -> Any:
        yield b"some"
        raise LookupError

    with pytest.raises(LookupError):
        spool.write("one", broken())

    assert list((tmp_path / "spool").iterdir()) == []
    assert spool.write("one", b"whole")["size_bytes"] == 5


def test_prefix_and_path_together_fit_every_store() -> None:
    outputs.check_path("/".join(["x" * 100] * 5), prefix_bytes=1024 - 504)

    with pytest.raises(OutputInvalid, match="too long"):
        outputs.check_path("/".join(["x" * 100] * 5), prefix_bytes=1024 - 503)


@given(st.text())
def test_no_path_that_is_let_through_can_leave_its_prefix(path: str) -> None:
    try:
        outputs.check_path(path, prefix_bytes=10)
    except OutputInvalid:
        return
    assert os.path.normpath("/artifacts/x/" + path) == "/artifacts/x/" + path


@pytest.mark.parametrize(
    ("path", "mime"),
    [
        ("a/b.JSON", "application/json"),
        ("archive.tar.gz", "application/gzip"),
        ("plain", "application/octet-stream"),
        ("odd.xyzzy", "application/octet-stream"),
    ],
)
def test_media_types_come_from_one_table(path: str, mime: str) -> None:
    assert outputs.media_type(path) == mime


# inputs


def test_equal_inputs_have_one_form_and_one_digest() -> None:
    assert canonical({"b": 1.0, "a": "é"}) == canonical({"a": "é", "b": 1})
    assert canonical({"b": 1.0, "a": "é"}).text == '{"a":"é","b":1}'.encode()


@pytest.mark.parametrize("value", [2**53 + 1, float("inf"), "\ud800"])
def test_inputs_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(InvalidInputs):
        canonical({"a": value})


# scratch space


def test_usage_counts_each_folder_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "deep" / "file").write_bytes(bytes(100_000))
    os.symlink("/", tmp_path / "b" / "link")

    used = scratch.usage(tmp_path)

    assert used["a"] >= 100_000
    assert used["b"] < 10_000


def test_a_tree_that_forbids_it_is_removed_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "closed"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    folder.chmod(0)

    scratch.remove(tmp_path / "tree")

    assert not (tmp_path / "tree").exists()


def test_removing_a_symlink_leaves_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    os.symlink(tmp_path / "kept", tmp_path / "link")

    scratch.remove(tmp_path / "link")

    assert (tmp_path / "kept" / "file").exists()
    assert not (tmp_path / "link").is_symlink()


def test_cleaning_tmp_takes_what_is_new_and_leaves_what_is_old(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", (1, 1))
    time.sleep(0.2)
    since = time.time()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "new").touch()

    scratch.clean_tmp(since, Path("/scratch"), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_cleaning_tmp_leaves_scratch_space_in_it(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "worker-1").mkdir(parents=True)
    (tmp_path / "scratch-of-a-handler").mkdir()

    scratch.clean_tmp(0.0, tmp_path / "scratch", tmp_path)

    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["scratch", "scratch/worker-1"]


def test_prepare_keeps_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "worker-7").mkdir()
    (tmp_path / "spool-3").mkdir()
    (tmp_path / "mine").mkdir()

    scratch.prepare(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert stat.S_ISDIR((tmp_path / "mine").stat().st_mode)


# words


def test_the_longest_secret_is_blanked_first_and_short_ones_stay() -> None:
    assert redact("abcdefgh abcdef abc", ("abcdef", "abcdefgh", "abc")) == "*** *** abc"


def test_a_message_is_cut_to_a_bearable_length() -> None:
    words = failures.Failure("ERR_RUNTIME", "x" * 10_000).words()

    assert len(words["message"]) == failures.MAX_MESSAGE_CHARACTERS


def test_failures_survive_the_way_between_processes() -> None:
    failure = failures.limit("scratch", "full", "write less", bytes=7)

    assert failures.from_words(orjson.loads(orjson.dumps(failure.words()))) == failure


def test_an_exception_whose_words_raise_is_named_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert "Mute" in outcome.of_exception(Mute(), scratch="/nowhere").message


def test_a_handle_never_signals_another_process() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    handle = system.ProcessHandle(pid)
    os.waitpid(pid, 0)

    handle.signal(9)
    handle.close()
    handle.signal(9)
