"""--attach: where a file goes in the inputs, under which key, and what can't be."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import InvalidInputs, StorageFailed, UsageError
from apps.processors import attaching
from apps.storage import keys
from apps.storage.filesystem import FilesystemBackend

PHOTO = b"a photo"
KEY = f"artifacts/inputs/sha256/{sha256(PHOTO).hexdigest()}/photo.jpg"
VALUE = {"$artifact": f"/{KEY}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    return tmp_path


@pytest.fixture
def backend(tmp_path: Path) -> FilesystemBackend:
    made = FilesystemBackend(tmp_path / "artifacts")
    made.check()
    return made


def attached(folder: Path, document: dict[str, Any], *names: str) -> dict[str, Any]:
    attaching.attach(document, attaching.parse([f"{name}=photo.jpg" for name in names]), folder)
    return document


# What is typed


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("image", ("params", "image")),
        ("a.b.c", ("params", "a", "b", "c")),
        ("frames.0", ("params", "frames", "0")),
        ("/params/image", ("params", "image")),
        ("/params/a.b/c~1d~0", ("params", "a.b", "c/d~")),
        ("bild ü", ("params", "bild ü")),
    ],
)
def test_a_name_is_a_place(name: str, place: tuple[str, ...]) -> None:
    assert attaching.parse([f"{name}=a=b.jpg"]) == [attaching.Attachment(place, "a=b.jpg")]


@pytest.mark.parametrize(
    "word",
    [
        *("", "image", "image=", "=photo.jpg", "=", "a..b=x", ".a=x", "a.=x", "/=x", "/params=x", "/params/=x"),
        *("/schema=x", "/image=x", "/params//a=x", ".".join("a" * 33) + "=x"),
    ],
)
def test_what_is_no_name_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        attaching.parse([word])

    assert caught.value.hint == "NAME is a key of params, or a dotted path or JSON pointer to a deeper place"


def test_a_place_twice_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="names '/params/a' twice"):
        attaching.parse(["a=x", "b=x", "/params/a=y"])


# Where it goes


@pytest.mark.parametrize(
    ("document", "names", "params"),
    [
        ({"params": {}}, ["image"], {"image": VALUE}),
        ({}, ["image"], {"image": VALUE}),
        ({"params": {"a": 1}}, ["b.c"], {"a": 1, "b": {"c": VALUE}}),
        ({"params": {}}, ["frames.0", "frames.1"], {"frames": [VALUE, VALUE]}),
        ({"params": {"frames": [1]}}, ["frames.-", "frames.-.x"], {"frames": [1, VALUE, {"x": VALUE}]}),
        ({"params": {"frames": [{}]}}, ["frames.0.image"], {"frames": [{"image": VALUE}]}),
        ({"params": {"0": {}}}, ["0.0"], {"0": {"0": VALUE}}),
    ],
)
def test_the_value_is_put_in_its_place(
    folder: Path, document: dict[str, Any], names: list[str], params: dict[str, Any]
) -> None:
    assert attached(folder, document, *names)["params"] == params


@pytest.mark.parametrize(
    ("params", "name", "pointer", "words"),
    [
        ({"image": None}, "image", "/params/image", "given in the inputs already"),
        ({"frames": [1]}, "frames.0", "/params/frames/0", "given in the inputs already"),
        ({"frames": [1]}, "frames.2", "/params/frames/2", "an array, with 1 elements"),
        ({"frames": [1]}, "frames.x", "/params/frames/x", "an array, with 1 elements"),
        ({"image": "text"}, "image.x", "/params/image/x", "has no inside"),
        ({"image": "text"}, "image.x.y", "/params/image/x/y", "has no inside"),
        ([], "image", "/params/image", "an array, with 0 elements"),
    ],
)
def test_a_place_that_is_taken_or_cannot_be_is_named(
    folder: Path, params: Any, name: str, pointer: str, words: str
) -> None:
    with pytest.raises(InvalidInputs, match=words) as caught:
        attached(folder, {"params": params}, name)

    assert caught.value.details == {"pointer": pointer}


# The file


def test_the_same_bytes_under_the_same_name_are_the_same_key(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other/photo.jpg").write_bytes(PHOTO)

    words = ["a=photo.jpg", f"b={folder}/other/photo.jpg"]
    one, two = attaching.attach({}, attaching.parse(words), folder)

    assert one.key == two.key == KEY
    assert (one.size_bytes, one.digest) == (len(PHOTO), f"sha256:{sha256(PHOTO).hexdigest()}")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Photo 1 (copy).jpg", "Photo_1_copy_.jpg"),
        ("größe.png", "gr_e.png"),
        (".hidden", "hidden"),
        ("..x", "x"),
        ("ü", "_"),
        ("...", "file"),
        ("x" * 255, "x" * 100),
        ("x" * 200 + ".jpeg", "x" * 95 + ".jpeg"),
        ("a.tar.gz", "a.tar.gz"),
    ],
)
def test_a_key_has_a_name_that_every_store_takes(name: str, safe: str) -> None:
    assert attaching._safe(name) == safe


@given(st.text(min_size=1, max_size=300))
def test_any_name_gives_a_key(name: str) -> None:
    assert len(keys.split(f"artifacts/inputs/sha256/{'0' * 64}/{attaching._safe(name)}")) == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "No such file or directory"),
        ("folder", "it is a folder"),
        ("fifo", "it is no plain file, and has to be read twice"),
        ("a\0b", "embedded null byte"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str, reason: str) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")

    with pytest.raises(InvalidInputs) as caught:
        attaching.attach({}, attaching.parse([f"image={name}"]), folder)

    assert caught.value.message == f"{name!r}, for inputs at /params/image, can't be read: {reason}"
    assert caught.value.details == {"file": name, "pointer": "/params/image"}


# The store


def test_a_file_is_stored_once(folder: Path, backend: FilesystemBackend) -> None:
    found = attaching.attach({}, attaching.parse(["a=photo.jpg", "b=photo.jpg"]), folder)

    attaching.store(found, backend)
    before = (backend.root / KEY).stat()
    attaching.store(found, backend)

    assert (backend.root / KEY).read_bytes() == PHOTO
    assert (backend.root / KEY).stat() == before


def test_a_large_file_is_never_in_memory(folder: Path, backend: FilesystemBackend) -> None:
    import tracemalloc

    with (folder / "large").open("wb") as file:
        file.truncate(64 * 2**20)

    tracemalloc.start()
    attaching.store(attaching.attach({}, attaching.parse(["a=large"]), folder), backend)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 * 2**20


@pytest.mark.parametrize("change", ["other", "longer", "removed"])
def test_a_file_that_changes_between_is_refused_and_leaves_nothing(
    folder: Path, backend: FilesystemBackend, change: str
) -> None:
    found = attaching.attach({}, attaching.parse(["image=photo.jpg"]), folder)
    if change == "removed":
        (folder / "photo.jpg").unlink()
    else:
        (folder / "photo.jpg").write_bytes(b"A photo" if change == "other" else PHOTO + b"!")

    with pytest.raises(InvalidInputs, match="was changed while it was read") as caught:
        attaching.store(found, backend)

    assert caught.value.details["pointer"] == "/params/image"
    assert [path for path in backend.root.rglob("*") if path.is_file()] == []


def test_something_else_under_the_files_key_is_told(folder: Path, backend: FilesystemBackend) -> None:
    (backend.root / KEY).parent.mkdir(parents=True)
    (backend.root / KEY).write_bytes(b"something else")

    with pytest.raises(StorageFailed, match="is not what its name says: 14 bytes, not 7"):
        attaching.store(attaching.attach({}, attaching.parse(["image=photo.jpg"]), folder), backend)
