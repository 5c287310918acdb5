"""`run --attach`, and inputs that name what is stored already: as typed, against a processor that reads files."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.commands.workshop import Workshop
from tests.shell import Outcome

HANDLER = '''\
"""Says what it was given."""

import hashlib
import json
import pathlib


def run(context):
    files = {}
    for name, value in context.inputs["params"].items():
        if isinstance(value, str):
            files[name] = [value, hashlib.sha256(pathlib.Path(value).read_bytes()).hexdigest()]
    context.write("text/response.txt", json.dumps({"inputs": context.inputs["params"], "files": files}))
'''
FILE = {
    "type": "object",
    "required": ["$artifact"],
    "additionalProperties": False,
    "properties": {"$artifact": {"type": "string"}},
}
INPUTS = {
    "type": "object",
    "properties": {
        "schema": {"const": "v1"},
        "params": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"image": FILE, "other": FILE, "deep": {"type": "object"}, "frames": {"type": "array"}},
        },
    },
    "examples": [{"schema": "v1", "params": {"image": {"$artifact": "/artifacts/an/example.jpg"}}}],
}
PHOTO = b"a photo"
DIGEST = sha256(PHOTO).hexdigest()
KEY = f"artifacts/inputs/sha256/{DIGEST}/photo_1.jpg"


@pytest.fixture
def reader(workshop: Workshop) -> str:
    (workshop.root / "photo 1.jpg").write_bytes(PHOTO)
    return workshop.running("reads", handler=HANDLER, inputs=INPUTS)


def run(workshop: Workshop, ref: str, *options: str) -> Outcome:
    return workshop.shell("localctl", "run", "--ref", ref, "--json", *options)


def said(workshop: Workshop, done: Outcome) -> dict[str, Any]:
    assert done.status == 0, done
    (output,) = done.document["outputs"]
    return dict(json.loads((workshop.artifacts / output["path"][1:]).read_text()))


def error(done: Outcome, status: int, code: str) -> dict[str, Any]:
    found = dict(done.document["error"])
    assert (done.status, found["code"]) == (status, code), done
    return found


def uploaded(workshop: Workshop) -> list[str]:
    return sorted(
        path.relative_to(workshop.artifacts).as_posix()
        for path in workshop.artifacts.glob("artifacts/inputs/**/*")
        if path.is_file()
    )


# What works


@pytest.mark.parametrize("mode", ["mock", "real"])
def test_an_attached_file_is_stored_named_and_read(workshop: Workshop, reader: str, mode: str) -> None:
    done = run(workshop, reader, "--mode", mode, "--attach", "image=photo 1.jpg")

    assert said(workshop, done) == {
        "inputs": {"image": "inputs/1/photo_1.jpg"},
        "files": {"image": ["inputs/1/photo_1.jpg", DIGEST]},
    }
    assert (workshop.artifacts / KEY).read_bytes() == PHOTO


def test_the_same_file_from_elsewhere_is_the_same_inputs_and_is_stored_once(
    workshop: Workshop, reader: str, tmp_path: Path
) -> None:
    (tmp_path / "photo 1.jpg").write_bytes(PHOTO)
    first = run(workshop, reader, "--attach", "image=photo 1.jpg")
    before = (workshop.artifacts / KEY).stat()

    second = run(workshop, reader, "--attach", f"image={tmp_path}/photo 1.jpg")
    named = run(
        workshop, reader, "--inputs-json", json.dumps({"schema": "v1", "params": {"image": {"$artifact": f"/{KEY}"}}})
    )

    digests = {done.document["meta"]["inputs_digest"] for done in (first, second, named)}
    assert len(digests) == 1
    assert said(workshop, first) == said(workshop, second) == said(workshop, named)
    assert (workshop.artifacts / KEY).stat() == before


def test_files_join_what_the_inputs_hold(workshop: Workshop, reader: str) -> None:
    (workshop.root / "empty").write_bytes(b"")
    given = json.dumps({"schema": "v1", "params": {"deep": {"a": 1}}})
    words = ("--attach", "deep.b=photo 1.jpg", "--attach", "/params/frames/0=empty", "--attach", "frames.1=photo 1.jpg")

    done = run(workshop, reader, "--inputs-json", given, *words)

    assert said(workshop, done)["inputs"] == {
        "deep": {"a": 1, "b": "inputs/1/photo_1.jpg"},
        "frames": ["inputs/2/empty", "inputs/1/photo_1.jpg"],
    }


def test_an_output_of_one_run_is_an_input_of_the_next(workshop: Workshop, reader: str) -> None:
    first = run(workshop, reader, "--attach", "image=photo 1.jpg")
    (output,) = first.document["outputs"]

    document = {"schema": "v1", "params": {"image": {"$artifact": output["path"]}}}
    done = run(workshop, reader, "--inputs-json", json.dumps(document))

    assert said(workshop, done)["files"]["image"][1] == output["digest"].removeprefix("sha256:")


def test_the_same_execution_is_given_back_without_the_file(workshop: Workshop, reader: str) -> None:
    first = run(workshop, reader, "--attach", "image=photo 1.jpg")
    (workshop.artifacts / KEY).unlink()

    again = run(workshop, reader, "--attach", "image=photo 1.jpg", "--execution-id", first.document["execution_id"])

    assert again.stdout == first.stdout
    assert not (workshop.artifacts / KEY).exists()


def test_a_large_file_arrives_whole(workshop: Workshop, reader: str) -> None:
    data = b"0123456789abcdef" * (2 * 2**20 + 1)
    (workshop.root / "large.bin").write_bytes(data)

    done = run(workshop, reader, "--attach", "image=large.bin")

    assert said(workshop, done)["files"]["image"][1] == sha256(data).hexdigest()


# What can't be


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("image",), "--attach takes NAME=PATH, not 'image'"),
        (("image=",), "--attach takes NAME=PATH, not 'image='"),
        (("=photo 1.jpg",), "--attach takes NAME=PATH, not '=photo 1.jpg'"),
        (("a..b=x",), "--attach can't write 'a..b': no place in the inputs has that name"),
        (("/image=x",), "--attach can't write '/image': a pointer starts with /params/"),
        (("image=photo 1.jpg", "/params/image=photo 1.jpg"), "--attach names '/params/image' twice"),
    ],
)
def test_wrong_words_are_usage_errors(workshop: Workshop, reader: str, words: tuple[str, ...], message: str) -> None:
    done = run(workshop, reader, *(part for word in words for part in ("--attach", word)))

    assert error(done, 2, "ERR_USAGE")["message"] == message
    assert done.document["meta"]["adapter"] == "local"  # an envelope, as for every run


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent.jpg", "No such file or directory"), ("code", "it is a folder"), ("photo 1.jpg/x", "Not a directory")],
)
def test_a_file_that_cannot_be_read_is_err_inputs(workshop: Workshop, reader: str, name: str, reason: str) -> None:
    found = error(run(workshop, reader, "--attach", f"image={name}"), 65, "ERR_INPUTS")

    assert found["message"] == f"{name!r}, for inputs at /params/image, can't be read: {reason}"
    assert found["hint"] == "a path is relative to the current folder"
    assert found["details"] == {"file": name, "pointer": "/params/image"}


def test_a_place_that_is_given_already_is_err_inputs(workshop: Workshop, reader: str) -> None:
    given = json.dumps({"schema": "v1", "params": {"image": {"$artifact": "/artifacts/x"}}})

    done = run(workshop, reader, "--inputs-json", given, "--attach", "image=photo 1.jpg")

    found = error(done, 65, "ERR_INPUTS")
    assert found["message"] == "--attach can't write inputs at /params/image: it is given in the inputs already"
    assert found["details"] == {"pointer": "/params/image"}


@pytest.mark.parametrize("kind", ["inputs the schema refuses", "another prefix", "not started"])
def test_nothing_is_uploaded_for_a_run_that_cannot_be(workshop: Workshop, reader: str, kind: str) -> None:
    (workshop.root / "unseen.jpg").write_bytes(kind.encode())
    words = {
        "inputs the schema refuses": (reader, "--attach", "elsewhere=unseen.jpg"),
        "another prefix": (reader, "--attach", "image=unseen.jpg", "--write-prefix", "/elsewhere/"),
        "not started": ("llm/litellm@1", "--attach", "image=unseen.jpg"),
    }[kind]
    if kind == "not started":
        ref = workshop.have("idle", handler=HANDLER, inputs=INPUTS)
        words = (ref, *words[1:])

    done = run(workshop, *words)

    assert done.status in (65, 66)
    assert [key for key in uploaded(workshop) if "unseen" in key] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/artifacts/never/was.jpg", "there is no "),
        ("/etc/passwd", "'/etc/passwd' can't be the path of an artifact: it starts with /artifacts/"),
        ("/artifacts/../../etc/passwd", "can't be the path of an artifact: it has an empty segment, or one that is ."),
    ],
)
def test_an_artifact_that_is_not_there_is_err_inputs_before_anything_is_sent(
    workshop: Workshop, reader: str, path: str, words: str
) -> None:
    done = run(
        workshop, reader, "--inputs-json", json.dumps({"schema": "v1", "params": {"image": {"$artifact": path}}})
    )

    found = error(done, 65, "ERR_INPUTS")
    assert found["message"].startswith("inputs at /params/image: ")
    assert words in found["message"]
    assert found["details"]["pointer"] == "/params/image"
    assert done.document["meta"]["started_at"] is None


def test_the_first_example_without_its_file_says_so(workshop: Workshop, reader: str) -> None:
    found = error(run(workshop, reader), 65, "ERR_INPUTS")

    assert found["message"].endswith("artifacts/an/example.jpg")
    assert found["hint"] == "run --attach NAME=PATH puts a file into the store and names it"


def test_a_file_that_was_changed_in_the_store_is_err_storage(workshop: Workshop, reader: str) -> None:
    (workshop.root / "spoilt.jpg").write_bytes(b"as it was")
    assert run(workshop, reader, "--attach", "image=spoilt.jpg").status == 0
    (stored,) = workshop.artifacts.glob("artifacts/inputs/sha256/*/spoilt.jpg")
    stored.chmod(0o644)
    stored.write_bytes(b"as it is!")

    found = error(run(workshop, reader, "--attach", "image=spoilt.jpg"), 69, "ERR_STORAGE")

    assert "is not what the store says that it is: its SHA-256 differs" in found["message"]
    assert found["details"]["expected"] == f"sha256:{sha256(b'as it was').hexdigest()}"


def test_a_file_larger_than_scratch_is_a_limit(workshop: Workshop, reader: str) -> None:
    with (workshop.root / "huge.bin").open("wb") as file:
        file.truncate(80 * 2**20)

    found = error(run(workshop, reader, "--attach", "image=huge.bin"), 1, "ERR_LIMIT")

    assert found["details"]["limit"] == "scratch"
