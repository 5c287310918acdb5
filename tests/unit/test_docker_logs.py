"""The engine's log stream, however the wire cuts it."""

from collections.abc import Iterator

import pytest

from apps.processors.adapters.base import LogLine
from apps.processors.adapters.docker_logs import entries, milliseconds, nanoseconds, since

TIME = "2026-11-22T10:02:33.123456789Z"
MS = "2026-11-22T10:02:33.123Z"


def frame(stream: int, text: bytes, time: str = TIME) -> bytes:
    message = f"{time} ".encode() + text
    return bytes([stream, 0, 0, 0]) + len(message).to_bytes(4, "big") + message


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 10_000])
def test_lines_are_the_same_wherever_the_stream_is_cut(size: int) -> None:
    data = frame(1, b"one\n") + frame(2, "zwei \N{EURO SIGN}\n".encode()) + frame(1, b"\n") + frame(1, b"a b\r\n")

    lines = [entry.line for entry in entries(cut(data, size))]

    assert lines == [
        LogLine(MS, "stdout", "one"),
        LogLine(MS, "stderr", "zwei \N{EURO SIGN}"),
        LogLine(MS, "stdout", ""),
        LogLine(MS, "stdout", "a b"),
    ]


def test_the_parts_of_a_long_line_are_joined_across_the_other_stream() -> None:
    data = frame(1, b"long ") + frame(2, b"between\n") + frame(1, b"line\n")

    assert [(entry.line.stream, entry.line.line) for entry in entries([data])] == [
        ("stderr", "between"),
        ("stdout", "long line"),
    ]


def test_a_character_that_is_cut_between_two_parts_is_whole() -> None:
    euro = "\N{EURO SIGN}".encode()

    (entry,) = entries([frame(1, euro[:1]) + frame(1, euro[1:] + b"\n")])

    assert entry.line.line == "\N{EURO SIGN}"


def test_an_unfinished_line_comes_at_the_end() -> None:
    found = [entry.line.line for entry in entries([frame(1, b"cut") + frame(2, b"whole\n")])]

    assert found == ["whole", "cut"]


def test_half_a_frame_at_the_end_is_dropped() -> None:
    assert [entry.line.line for entry in entries([frame(1, b"whole\n") + frame(1, b"half\n")[:-3]])] == ["whole"]


def test_times_are_in_utc_and_milliseconds() -> None:
    assert milliseconds(TIME) == MS
    assert milliseconds("2026-11-22T10:02:33Z") == "2026-11-22T10:02:33.000Z"
    assert milliseconds("2026-11-22T12:02:33.9999+02:00") == "2026-11-22T10:02:33.999Z"


def test_no_digit_of_a_time_is_lost_on_its_way_to_the_engine() -> None:
    assert since(nanoseconds(TIME)) == "1795341753.123456789"
    assert since(nanoseconds(TIME) + 1) == "1795341753.123456790"
    assert since(nanoseconds("2026-11-22T10:02:33Z")) == "1795341753.000000000"
    assert nanoseconds("2026-11-22T12:02:33.5+02:00") == nanoseconds("2026-11-22T10:02:33.500Z")


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        nanoseconds("yesterday")
