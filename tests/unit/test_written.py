"""What an execution left under its prefix: listed, downloaded, discarded. Here over a folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apps.errors import ExecutionNotFound, InvalidInputs, OutputExists, StorageFailed
from apps.processors.envelope import new_execution_id
from apps.processors.outputs import Asked, Found, outputs
from apps.processors.reference import ProcessorRef
from apps.storage.filesystem import FilesystemBackend

REF = ProcessorRef.parse("llm/litellm@1")
MINE, OTHER = new_execution_id(), new_execution_id()
PREFIX = f"/artifacts/outputs/{REF.slug}/{MINE}/"
FILES = {"text/response.txt": b"hello", "usage.json": b"{}"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "digest": digest_of(data), "size_bytes": len(data), "mime": "text/plain"}


def write(root: Path, prefix: str = PREFIX, *, owner: str = MINE, index: bool = True, **changed: Any) -> None:
    """A run's files as they lie in the root; `changed` are keys of the index."""
    folder = root / prefix[1:]
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if index:
        document = {
            "schema": 1,
            "execution_id": owner,
            "ref": str(REF),
            "outputs": [entry(f"{prefix}{name}", data) for name, data in FILES.items()],
        }
        (folder / "outputs.json").write_text(json.dumps({**document, **changed}))
        (folder / "receipt.json").write_text(json.dumps({**document, "meta": {}}))


def ask(root: Path, **asked: Any) -> Found:
    return outputs(Asked(**{"ref": REF, "execution_id": MINE, **asked}), storage=FilesystemBackend(root))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_prefix_is_listed_from_its_index(root: Path) -> None:
    write(root)

    assert ask(root).document() == {
        "status": "success",
        "ref": "llm/litellm@1",
        "execution_id": MINE,
        "write_prefix": PREFIX,
        "storage": "filesystem",
        "complete": True,
        "outputs": [entry(f"{PREFIX}{name}", data) for name, data in FILES.items()],
        "downloaded": None,
        "discarded": False,
    }


def test_a_prefix_without_an_index_is_listed_and_is_not_complete(root: Path) -> None:
    write(root, index=False)

    document = ask(root).document()

    assert document["complete"] is False
    assert document["outputs"] == [
        {"path": f"{PREFIX}text/response.txt", "digest": None, "size_bytes": 5, "mime": None},
        {"path": f"{PREFIX}usage.json", "digest": None, "size_bytes": 2, "mime": None},
    ]


def test_nothing_there_is_told(root: Path) -> None:
    with pytest.raises(ExecutionNotFound, match="wrote nothing under"):
        ask(root)


def test_an_id_or_a_prefix_that_can_not_be_is_refused(root: Path) -> None:
    with pytest.raises(InvalidInputs, match="not an execution id"):
        ask(root, execution_id="../..")
    with pytest.raises(InvalidInputs, match="can't be a write prefix"):
        ask(root, write_prefix="/artifacts/../")


@pytest.mark.parametrize("how", [{}, {"discard": True}])
def test_another_executions_prefix_is_refused_and_left_alone(root: Path, how: dict[str, Any]) -> None:
    write(root, "/artifacts/fixed/", owner=OTHER)
    before = files(root)

    with pytest.raises(OutputExists, match=f"holds the outputs of execution {OTHER}") as caught:
        ask(root, write_prefix="/artifacts/fixed/", **how)

    assert caught.value.hint == f"--execution-id {OTHER}"
    assert files(root) == before


@pytest.mark.parametrize("prefix", ["/artifacts/", "/artifacts/outputs/", f"/artifacts/outputs/{REF.slug}/"])
@pytest.mark.parametrize("index", [True, False], ids=["complete", "unfinished"])
def test_a_prefix_that_spans_executions_is_refused(root: Path, prefix: str, index: bool) -> None:
    write(root, f"/artifacts/outputs/{REF.slug}/{OTHER}/", owner=OTHER, index=index)
    before = files(root)

    with pytest.raises(OutputExists, match="other executions wrote below"):
        ask(root, write_prefix=prefix, discard=True)

    assert files(root) == before


@pytest.mark.parametrize("prefix", ["/artifacts/", "/artifacts/inputs/", "/artifacts/inputs/sha256/"])
def test_what_was_attached_to_runs_is_no_executions_to_discard(root: Path, prefix: str) -> None:
    attached = root / f"artifacts/inputs/sha256/{'ab' * 32}/photo.jpg"
    attached.parent.mkdir(parents=True)
    attached.write_bytes(b"photo")

    with pytest.raises(OutputExists, match=r"photo\.jpg was attached to a run"):
        ask(root, write_prefix=prefix, discard=True)

    assert attached.read_bytes() == b"photo"


def test_another_refs_execution_is_refused(root: Path) -> None:
    write(root, ref="other/one@1")

    with pytest.raises(OutputExists, match="is of other/one@1, not of llm/litellm@1"):
        ask(root)


def test_a_download_has_every_output_and_nothing_else(root: Path, target: Path) -> None:
    write(root)

    found = ask(root, download=target)

    assert files(target) == FILES
    assert sorted(path.name for path in target.iterdir()) == ["text", "usage.json"]
    assert found.document()["downloaded"] == str(target)
    assert found.rows()[0] == (str(target / "text/response.txt"), 5, digest_of(b"hello"))


def test_a_download_again_leaves_equal_files_and_refuses_others(root: Path, target: Path) -> None:
    write(root)
    ask(root, download=target)
    ask(root, download=target)
    (target / "usage.json").write_bytes(b"mine")

    with pytest.raises(OutputExists, match="exists already with other content") as caught:
        ask(root, download=target)

    assert (target / "usage.json").read_bytes() == b"mine"
    assert caught.value.hint == f"name another folder than {target} with --download"


@pytest.mark.parametrize("data", [b"jello", b"hell", b"hello!"])
def test_a_stored_output_that_is_not_as_the_index_says_is_not_downloaded(root: Path, target: Path, data: bytes) -> None:
    write(root)
    (root / PREFIX[1:] / "text/response.txt").write_bytes(data)

    with pytest.raises(StorageFailed, match="is not what the index says of it"):
        ask(root, download=target)

    assert files(target) == {}


def test_an_output_that_is_gone_is_told(root: Path, target: Path) -> None:
    write(root)
    (root / PREFIX[1:] / "usage.json").unlink()

    with pytest.raises(StorageFailed, match="is not there"):
        ask(root, download=target)


@pytest.mark.parametrize("path", ["/etc/passwd", f"{PREFIX}../../x", f"{PREFIX}/x", f"{PREFIX}a/../../../../x", PREFIX])
def test_an_index_leads_nowhere_else(root: Path, target: Path, path: str) -> None:
    write(root, outputs=[entry(path, b"x")])

    with pytest.raises(StorageFailed, match="is damaged"):
        ask(root, download=target)

    assert not target.exists()


def test_a_link_in_the_folder_leads_nowhere_else(root: Path, target: Path, tmp_path: Path) -> None:
    write(root)
    target.mkdir()
    (tmp_path / "outside").mkdir()
    (target / "text").symlink_to(tmp_path / "outside")

    with pytest.raises(StorageFailed, match="symbolic link"):
        ask(root, download=target)

    assert files(tmp_path / "outside") == {}


def test_what_the_user_has_in_the_folder_is_left_alone(root: Path, target: Path) -> None:
    write(root)
    (target / ".tmp").mkdir(parents=True)
    (target / ".tmp" / "mine").write_bytes(b"mine")
    os.utime(target / ".tmp" / "mine", (0, 0))

    ask(root, download=target)

    assert files(target) == {**FILES, ".tmp/mine": b"mine"}


def test_a_folder_that_can_not_be_written_is_told(root: Path, tmp_path: Path) -> None:
    write(root)
    (tmp_path / "file").touch()

    with pytest.raises(StorageFailed) as caught:
        ask(root, download=tmp_path / "file" / "below")

    assert "--download" in caught.value.hint


def test_a_discard_removes_all_that_the_execution_wrote_and_nothing_else(root: Path) -> None:
    write(root)
    write(root, f"/artifacts/outputs/{REF.slug}/{OTHER}/", owner=OTHER)
    (root / PREFIX[1:] / "left-behind").write_bytes(b"of an attempt before")

    assert ask(root, discard=True).document()["discarded"] is True

    assert {name.split("/")[3] for name in files(root)} == {OTHER}
    with pytest.raises(ExecutionNotFound):
        ask(root, discard=True)


def test_a_discard_that_fails_half_way_leaves_no_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root)
    removed: list[str] = []

    def remove(_: FilesystemBackend, key: str) -> None:
        removed.append(key)
        if len(removed) == 3:
            raise StorageFailed("broken")

    monkeypatch.setattr(FilesystemBackend, "delete", remove)

    with pytest.raises(StorageFailed, match="broken"):
        ask(root, discard=True)

    assert [key.removeprefix(PREFIX[1:]) for key in removed[:2]] == ["outputs.json", "receipt.json"]


def test_what_was_downloaded_is_discarded_only_when_it_is_whole(root: Path, target: Path) -> None:
    write(root)
    (root / PREFIX[1:] / "usage.json").write_bytes(b"[]")

    with pytest.raises(StorageFailed):
        ask(root, download=target, discard=True)

    assert (root / PREFIX[1:] / "outputs.json").exists()
