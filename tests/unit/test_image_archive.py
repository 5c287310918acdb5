"""Files of an image out of `docker save`: the streams of old and new engines, layers over layers."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping

import pytest

from apps.errors import EngineFailed
from apps.processors.adapters import image_archive
from apps.processors.adapters.image_archive import Unreadable

Files = Mapping[str, bytes | tarfile.TarInfo | None]
"""Path → content, None for a folder, or a link."""

CONFIG = {"architecture": "arm64", "created": "2026-01-01T00:00:00Z"}


def tar(files: Files) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as made:
            for path, content in files.items():
                member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(path)
                member.name = path
                if content is None:
                    member.type = tarfile.DIRTYPE
                if isinstance(content, bytes):
                    member.size = len(content)
                made.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
        return file.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


def saved(*layers: bytes, last_first: bool = False, **more: bytes) -> io.BytesIO:
    """What `docker save` would write of these layers."""
    named = {f"blobs/sha256/{number}": data for number, data in enumerate(layers)}
    manifest = [{"Config": "blobs/sha256/c", "RepoTags": None, "Layers": list(named)}]
    order = reversed(named.items()) if last_first else named.items()
    files = {**dict(order), "blobs/sha256/c": json.dumps(CONFIG).encode(), **more}
    return io.BytesIO(tar({**files, "manifest.json": json.dumps(manifest).encode()}))


def files(*layers: Files, last_first: bool = False) -> Mapping[str, bytes]:
    stream = saved(*map(tar, layers), last_first=last_first)
    return image_archive.read(stream, lambda path: 100).files


def test_the_files_of_all_layers_are_found() -> None:
    assert files({"a": b"1"}, {"d": None, "d/b": b"2"}) == {"a": b"1", "d/b": b"2"}


@pytest.mark.parametrize("path", ["./a", "/a", "a"])
def test_a_path_is_one_from_the_root_however_it_is_written(path: str) -> None:
    assert files({path: b"1"}) == {"a": b"1"}


@pytest.mark.parametrize("last_first", [True, False])
def test_a_later_layers_file_goes_over_an_earlier_ones(last_first: bool) -> None:
    assert files({"a": b"old"}, {"a": b"new"}, last_first=last_first) == {"a": b"new"}


def test_a_file_that_a_later_layer_removes_is_gone() -> None:
    assert files({"d/a": b"1", "d/b": b"2"}, {"d/.wh.a": b""}) == {"d/b": b"2"}


def test_a_folder_that_a_later_layer_removes_is_gone_with_all_in_it() -> None:
    assert files({"d/e/a": b"1", "da": b"2"}, {".wh.d": b""}) == {"da": b"2"}


def test_a_folder_that_a_later_layer_replaces_has_only_what_is_new() -> None:
    assert files({"d/a": b"1", "a": b"2"}, {"d/.wh..wh..opq": b"", "d/b": b"3"}) == {"a": b"2", "d/b": b"3"}


def test_what_was_removed_may_come_back() -> None:
    assert files({"a": b"1"}, {".wh.a": b""}, {"a": b"3"}) == {"a": b"3"}


def test_a_link_hides_the_folder_that_was_there() -> None:
    assert files({"d/a": b"1"}, {"d": link("/elsewhere")}) == {}


def test_a_hard_link_has_the_files_content() -> None:
    assert files({"a": b"1", "b": link("a", tarfile.LNKTYPE)}) == {"a": b"1", "b": b"1"}


def test_only_the_wanted_beginning_of_wanted_files_is_kept() -> None:
    stream = saved(tar({"a": b"123456", "b": b"7"}))

    assert image_archive.read(stream, lambda path: 3 if path == "a" else 0).files == {"a": b"123"}


def test_compressed_layers_are_read_too() -> None:
    stream = saved(gzip.compress(tar({"a": b"1"})), tar({"b": b"2"}))

    assert image_archive.read(stream, lambda path: 100).files == {"a": b"1", "b": b"2"}


def test_the_config_is_the_images() -> None:
    assert image_archive.read(saved(tar({"a": b"1"})), lambda path: 0).config == CONFIG


def test_the_names_of_older_engines_are_understood() -> None:
    """A folder a layer, and a link where two images share one."""
    manifest = [{"Config": "c.json", "Layers": ["1/layer.tar", "2/layer.tar"]}]
    stream = tar(
        {
            "1/VERSION": b"1.0",
            "1/layer.tar": tar({"a": b"1"}),
            "2/layer.tar": link("../1/layer.tar"),
            "c.json": json.dumps(CONFIG).encode(),
            "manifest.json": json.dumps(manifest).encode(),
        }
    )

    assert image_archive.read(io.BytesIO(stream), lambda path: 100).files == {"a": b"1"}


def test_a_layer_that_python_cannot_read_is_said() -> None:
    with pytest.raises(Unreadable, match="zstd"):
        image_archive.read(saved(b"\x28\xb5\x2f\xfd" + b"x" * 100), lambda path: 100)


@pytest.mark.parametrize("part", [0, 700, 2000, -12000])
def test_a_stream_that_breaks_off_is_no_image(part: int) -> None:
    whole = saved(gzip.compress(tar({"a": b"1"})), tar({"b": b"2" * 9000})).getvalue()

    with pytest.raises(EngineFailed, match="no whole image"):
        image_archive.read(io.BytesIO(whole[:part]), lambda path: 100)


def test_an_archive_that_lacks_a_layer_is_no_image() -> None:
    manifest = json.dumps([{"Config": "c", "Layers": ["absent"]}]).encode()
    stream = io.BytesIO(tar({"c": json.dumps(CONFIG).encode(), "manifest.json": manifest}))

    with pytest.raises(EngineFailed, match="absent"):
        image_archive.read(stream, lambda path: 100)
