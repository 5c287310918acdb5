"""localctl outputs as a user types it, on every storage backend, after a run that stored there."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.commands.workshop import Workshop, inputs
from tests.integration.buckets import Bucket
from tests.shell import Outcome

BUCKETS = [pytest.param("minio", marks=pytest.mark.bucket), pytest.param("s3", marks=pytest.mark.bucket)]


class Place:
    """The workshop with one storage backend."""

    def __init__(self, workshop: Workshop, backend: str, variables: dict[str, str]) -> None:
        self.workshop, self.backend, self.variables = workshop, backend, variables
        self.ref = workshop.running()

    def __call__(self, *words: str, **how: Any) -> Outcome:
        return self.workshop.shell("localctl", *words, env=self.variables, **how)

    def run(self, **params: Any) -> dict[str, Any]:
        return self("run", "--ref", self.ref, "--inputs-json", inputs(**params), "--json").document

    def outputs(self, execution_id: str, *options: str, **how: Any) -> Outcome:
        return self("outputs", "--ref", self.ref, "--execution-id", execution_id, *options, **how)


@pytest.fixture(params=["filesystem", *BUCKETS])
def place(request: pytest.FixtureRequest, workshop: Workshop) -> Place:
    if request.param == "filesystem":
        return Place(workshop, request.param, {})
    bucket: Bucket = request.getfixturevalue("bucket")
    return Place(workshop, request.param, bucket.variables(request.param))


def test_a_run_is_listed_downloaded_and_discarded(place: Place, tmp_path: Path) -> None:
    envelope = place.run(text="hello there")
    assert (envelope["status"], envelope["meta"]["storage"]) == ("success", place.backend)
    execution_id = envelope["execution_id"]

    listed = place.outputs(execution_id, "--json").document
    done = place.outputs(execution_id, "--download", "out", "--discard", "--json", cwd=tmp_path).document

    assert (listed["complete"], listed["storage"]) == (True, place.backend)
    assert listed["outputs"] == envelope["outputs"]
    assert (done["downloaded"], done["discarded"]) == (str(tmp_path / "out"), True)
    data = (tmp_path / "out" / "text" / "response.txt").read_bytes()
    assert (data, envelope["outputs"][0]["digest"]) == (b"hello there", f"sha256:{hashlib.sha256(data).hexdigest()}")
    again = place.outputs(execution_id, "--json")
    assert (again.status, again.document["error"]["code"]) == (66, "ERR_EXECUTION_NOT_FOUND")


def test_the_same_execution_is_given_back_and_never_overwritten(place: Place) -> None:
    first = place.run(text="hello")
    words = ("run", "--ref", place.ref, "--execution-id", first["execution_id"], "--json")

    again = place(*words, "--inputs-json", inputs(text="hello"))
    other = place(*words, "--inputs-json", inputs(text="other"))

    assert again.document == first
    assert other.document["error"]["code"] == "ERR_EXECUTION_CONFLICT"


def test_what_a_failed_run_left_is_listed_and_discarded(place: Place) -> None:
    envelope = place.run(do="surprise")
    assert envelope["error"]["code"] == "ERR_OUTPUT_INVALID"
    kept = place.run(do="fill", size_bytes=100_000_000)  # more than its scratch space has
    assert [output["size_bytes"] for output in kept["partial_outputs"]] == [5], kept["error"]

    listed = place.outputs(kept["execution_id"], "--json")
    place.outputs(kept["execution_id"], "--discard")

    assert "there is no index" in listed.stderr
    assert listed.document["complete"] is False
    assert [(each["path"], each["digest"]) for each in listed.document["outputs"]] == [
        (kept["partial_outputs"][0]["path"], None)
    ]
    assert place.outputs(kept["execution_id"]).status == 66


def test_people_see_where_each_output_is(place: Place) -> None:
    execution_id = place.run(text="hello")["execution_id"]

    done = place.outputs(execution_id)

    heads, row = done.stdout.splitlines()
    assert heads.split() == ["OUTPUT", "BYTES", "DIGEST"]
    assert row.split()[0].endswith(f"{execution_id}/text/response.txt")
    assert row.split()[1] == "5"
