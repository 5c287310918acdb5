from pathlib import Path

import pytest

from apps.errors import BuildFailed
from apps.processors import dockerfile


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "Dockerfile"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("FROM python:3.13-slim\n", "python:3.13-slim"),
        ("from python:3.13-slim", "python:3.13-slim"),
        ("FROM\tpython:3.13-slim", "python:3.13-slim"),
        ("\ufeff# a comment\n\nFROM python:3.13-slim\r\nRUN true\r\n", "python:3.13-slim"),
        ("FROM one AS a\nFROM two AS b\n", "two"),
        ("FROM --platform=$BUILDPLATFORM one AS a\nFROM --platform=linux/amd64 two\n", "two"),
        ("FROM localhost:5000/a/b:1@sha256:00\n", "localhost:5000/a/b:1@sha256:00"),
        ("FROM scratch\n", "scratch"),
        # a last stage that stands on an earlier one
        ("FROM python:3.13 AS Base\nFROM other\nFROM base\n", "python:3.13"),
        ("FROM python:3.13 AS base\nFROM base AS base\nFROM base\n", "python:3.13"),
        # ARG
        ("ARG V=3.13\nFROM python:$V-slim\n", "python:3.13-slim"),
        ("ARG V=3.13\nFROM python:${V}-slim\n", "python:3.13-slim"),
        ("ARG A=1 B=2\nFROM x:$A.$B\n", "x:1.2"),
        ("ARG A=\"python\" B='3 4'\nFROM $A\n", "python"),
        ("ARG A=py\nARG B=${A}thon\nFROM $B\n", "python"),
        ("ARG A\nFROM x:${A:-1}\n", "x:1"),
        ("ARG A=\nFROM x:${A:-1}${A-2}\n", "x:1"),
        ("ARG A=1\nFROM x${A:+:y}${B:+:z}\n", "x:y"),
        ("ARG A=1\nFROM a\nARG A=2\nFROM x:$A\n", "x:1"),
        ("FROM $TARGETARCH-thing AS odd\nFROM python\n", "python"),
        # long lines
        ("FROM \\\n  # why\n\n  python:3.13 \\\n  AS last\n", "python:3.13"),
        ("FROM one\nRUN echo \\\n FROM two\n", "one"),
        # here-documents
        ("FROM one\nRUN <<EOF\nFROM two\nEOF\n", "one"),
        ("FROM one\nCOPY <<-'A' <<\"B\" /x/\nFROM two\n\tA\nFROM three\nB\nFROM four\n", "four"),
        ("FROM one\nRUN cat <<EOF > /x\nFROM two\n", "one"),
        ('FROM one\nRUN echo $((1<<2)) "<<x"\nFROM two\n', "two"),
    ],
)
def test_the_base_is_the_image_of_the_last_stage(text: str, name: str, written: Path) -> None:
    written.write_text(text, "utf-8", newline="")

    assert dockerfile.base_name(written) == name


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("ARG V\n\nFROM python:$V\n", 3, "variable without a default"),
        ('ARG V="3\nFROM python:$V\n', 2, "variable without a default"),
        ("FROM python:${TARGETARCH}\n", 1, "variable without a default"),
        ("FROM one\nFROM two AS\n", 2, "malformed"),
        ("FROM one two\n", 1, "malformed"),
        ("FROM\n", 1, "malformed"),
    ],
)
def test_a_base_that_cannot_be_told_is_refused_with_its_line(text: str, line: int, words: str, written: Path) -> None:
    written.write_text(text)

    with pytest.raises(BuildFailed) as caught:
        dockerfile.base_name(written)

    assert caught.value.message.startswith(f"{written}:{line}: ")
    assert words in caught.value.message
    assert caught.value.details == {"file": str(written), "line": line}


def test_a_dockerfile_without_from_is_refused(written: Path) -> None:
    written.write_text("# FROM python\nRUN true\n")

    with pytest.raises(BuildFailed, match="has no FROM"):
        dockerfile.base_name(written)


@pytest.mark.parametrize("content", [None, b"FROM \xff\n"])
def test_a_dockerfile_that_cannot_be_read_is_a_failed_build(content: bytes | None, written: Path) -> None:
    if content is not None:
        written.write_bytes(content)

    with pytest.raises(BuildFailed, match="can't be read"):
        dockerfile.base_name(written)
