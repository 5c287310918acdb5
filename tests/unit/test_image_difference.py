"""What differs between two archives of an image, which are written here by hand."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from apps.errors import EngineFailed
from apps.processors.image_difference import FILES, FileDifference, compare, digest

Members = Sequence[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]


def entry(name: str, content: bytes | None = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(info, key, value)
    info.size = len(content or b"")
    return info, content or b""


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return written.getvalue()


def config(layers: Sequence[bytes], **more: Any) -> dict[str, Any]:
    steps = [{"created_by": f"step {index}"} for index in range(len(layers))]
    return {
        "architecture": "amd64",
        "history": [{"created_by": "ENV", "empty_layer": True}, *steps],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]},
        **more,
    }


def oci(file: Path, *layers: bytes, level: int = 6, **more: Any) -> Path:
    """An archive as BuildKit writes it."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> dict[str, str]:
        found = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{found}"] = data
        return {"digest": f"sha256:{found}"}

    manifest = {
        "config": put(json.dumps(config(layers, **more)).encode()),
        "layers": [put(gzip.compress(each, level, mtime=0)) for each in layers],
    }
    index = {"manifests": [put(json.dumps(manifest).encode())]}
    return _archive(file, {"index.json": json.dumps(index).encode(), **blobs})


def saved(file: Path, *layers: bytes, **more: Any) -> Path:
    """An archive as `docker save` of old engines writes it."""
    names = [f"{index}/layer.tar" for index in range(len(layers))]
    image = {"Config": "config.json", "RepoTags": None, "Layers": names}
    documents = {"manifest.json": [image], "config.json": config(layers, **more)}
    written = {name: json.dumps(document).encode() for name, document in documents.items()}
    return _archive(file, written | dict(zip(names, layers, strict=True)))


def _archive(file: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            tar.addfile(*_member(name, data))
    return file


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, io.BytesIO(data)


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        (entry("a", b"1"), entry("a", b"2"), "bytes"),
        (entry("a", mode=0o600), entry("a", mode=0o644), "mode"),
        (entry("a", mtime=1), entry("a", mtime=2), "mtime"),
        (entry("a", mtime=1.25), entry("a", mtime=1.5), "mtime"),
        (entry("a", uid=1), entry("a", uid=2), "owner"),
        (entry("a", gname="staff"), entry("a", gname="wheel"), "owner"),
        (entry("a", type=tarfile.SYMTYPE, linkname="b"), entry("a", type=tarfile.SYMTYPE, linkname="c"), "link"),
        (entry("a", type=tarfile.CHRTYPE, devminor=1), entry("a", type=tarfile.CHRTYPE, devminor=2), "link"),
        (entry("a", type=tarfile.DIRTYPE), entry("a", type=tarfile.FIFOTYPE), "type"),
        (
            entry("a", pax_headers={"SCHILY.xattr.user.x": "1"}),
            entry("a", pax_headers={"SCHILY.xattr.user.x": "2"}),
            "attributes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("write", [oci, saved])
def test_a_file_differs_in_what_its_layers_say_of_it(
    write: Any, tmp_path: Path, first: Any, second: Any, differs: str
) -> None:
    same = entry("b", b"same")

    found = compare(
        write(tmp_path / "1.tar", layer(same), layer(first, same)),
        write(tmp_path / "2.tar", layer(same), layer(second, same)),
    )

    [only] = found.layers
    assert (only.index, only.created_by, only.differs) == (1, "step 1", "files")
    assert only.files == (FileDifference("a", (differs,)),)
    assert found.config == ()


def test_a_file_that_one_layer_has_alone_is_told(tmp_path: Path) -> None:
    found = compare(
        oci(tmp_path / "1.tar", layer(entry("a"), entry("b"), entry("d"))),
        oci(tmp_path / "2.tar", layer(entry("a"), entry("c"), entry("d"))),
    )

    assert found.layers[0].files == (FileDifference("b", ("only_first",)), FileDifference("c", ("only_second",)))


def test_equal_files_in_another_order_are_a_difference_of_the_order(tmp_path: Path) -> None:
    found = compare(
        oci(tmp_path / "1.tar", layer(entry("a"), entry("b"), entry("c"))),
        oci(tmp_path / "2.tar", layer(entry("c"), entry("a"), entry("b"))),
    )

    assert (found.layers[0].differs, found.layers[0].files) == ("order", ())


def test_equal_layers_that_are_compressed_differently_are_told_apart(tmp_path: Path) -> None:
    content = layer(entry("a", bytes(10_000)))

    found = compare(oci(tmp_path / "1.tar", content, level=1), oci(tmp_path / "2.tar", content, level=9))

    assert [each.differs for each in found.layers] == ["compression"]


def test_a_layer_that_one_image_has_alone_is_told(tmp_path: Path) -> None:
    found = compare(
        oci(tmp_path / "1.tar", layer(entry("a"))), oci(tmp_path / "2.tar", layer(entry("a")), layer(entry("b")))
    )

    assert [(each.index, each.created_by, each.differs) for each in found.layers] == [(1, "step 1", "presence")]


def test_keys_of_the_configuration_are_named_without_their_values(tmp_path: Path) -> None:
    found = compare(
        oci(tmp_path / "1.tar", layer(), created="1", config={"Env": ["KEY=secret"], "Labels": {"x": "1"}}),
        oci(tmp_path / "2.tar", layer(), created="2", config={"Env": ["KEY=other"], "Labels": {"x": "2", "y": "3"}}),
    )

    assert found.config == ("config.Env", "config.Labels.x", "config.Labels.y", "created")
    assert found.layers == ()


def test_equal_images_differ_in_nothing(tmp_path: Path) -> None:
    content = layer(entry("a", b"1"))

    found = compare(oci(tmp_path / "1.tar", content), oci(tmp_path / "2.tar", content))

    assert (found.config, found.layers) == ((), ())


def test_of_many_files_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    def many(mtime: int) -> bytes:
        return layer(*(entry(f"f{index:04}", mtime=mtime) for index in range(FILES + 7)))

    [found] = compare(oci(tmp_path / "1.tar", many(1)), oci(tmp_path / "2.tar", many(2))).layers

    assert (len(found.files), found.more) == (FILES, 7)


def test_the_digest_is_the_one_of_the_manifest(tmp_path: Path) -> None:
    archive = oci(tmp_path / "1.tar", layer())

    with tarfile.open(archive) as tar:
        names = tar.getnames()

    assert f"blobs/{digest(archive).replace(':', '/')}" in names


@pytest.mark.parametrize("content", [b"", b"no archive at all", gzip.compress(b"x")])
def test_what_is_no_image_is_a_failure_of_the_engine(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "1.tar"
    file.write_bytes(content)

    with pytest.raises(EngineFailed, match="no whole image"):
        compare(file, file)
    with pytest.raises(EngineFailed, match="no whole image"):
        digest(file)


def test_an_archive_that_ends_early_is_a_failure_of_the_engine(tmp_path: Path) -> None:
    whole = oci(tmp_path / "1.tar", layer(entry("a", bytes(range(256)) * 4000)))
    other = oci(tmp_path / "2.tar", layer(entry("a", b"2" * 1_024_000)))
    other.write_bytes(other.read_bytes()[:600])

    with pytest.raises(EngineFailed, match="no whole image"):
        compare(whole, other)
