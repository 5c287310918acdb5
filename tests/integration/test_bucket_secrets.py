"""What a store's credentials must never reach: any process of a container, its description, its image, its logs.

They are in the environment of every command, of `build` and `start` too, and are searched for while outputs are
under way. That the search finds what is there is proven with what each container has, its run token above all.
"""

import base64
import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.buckets import Bucket, BucketServer
from tests.integration.writers import MIB, REF, Writer, last, writer

pytestmark = pytest.mark.bucket

BLOCK = 4 * MIB


@dataclass(frozen=True, slots=True)
class Place:
    writer: Writer
    bucket: Bucket

    @property
    def secret(self) -> bytes:
        return self.bucket.server.owner.secret_key.encode()

    @property
    def token(self) -> bytes:
        tokens = json.loads((self.writer.state / "run_tokens.json").read_text())["tokens"]
        return str(tokens[REF]).encode()

    def container(self) -> str:
        return str(json.loads((self.writer.state / "containers.json").read_text())["containers"][REF]["id"])

    def pids(self) -> list[int]:
        """Every process of the container."""
        if self.writer.engine == "docker":
            listed = docker("top", self.container(), "-eo", "pid")
            return [int(pid) for pid in listed.split()[1:]]
        (record,) = self.writer.state.glob("processes/*/process.json")
        found = [json.loads(record.read_text())["pid"]]
        for pid in found:  # which grows meanwhile
            with suppress(FileNotFoundError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def place(
    request: pytest.FixtureRequest, bucket_server: BucketServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    bucket = bucket_server.make_bucket()
    variables = {**bucket.variables("minio"), **bucket.variables("s3")}  # of both backends; the last is the one
    with writer(tmp_path_factory.mktemp(request.param), request.param, variables) as made:
        yield Place(made, bucket)
    if request.param == "docker":
        docker("image", "rm", "--force", *docker("image", "ls", "--quiet", "localhost:5000/test/writes").split())
    bucket.remove()


def memory(pid: int) -> Iterator[bytes]:
    """All that the process has written, in blocks that overlap by more than a secret's length."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for each in maps:
            bounds, mode, *_ = each.split()
            if not mode.startswith("rw"):  # what it can't write is of files: those of its image are searched apart
                continue
            at, end = (int(bound, 16) for bound in bounds.split("-"))
            while at < end:
                with suppress(OSError):  # a page that can't be had
                    file.seek(at)
                    yield file.read(min(BLOCK, end - at))
                at += BLOCK - 256


def found(place: Place, words: dict[str, bytes]) -> set[str]:
    """`WORD in environment`, `WORD in memory` for each that any process has."""
    seen = set()
    for pid in place.pids():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            seen |= {f"{word} in environment" for word, text in words.items() if text in environment}
            for block in memory(pid):
                seen |= {f"{word} in memory" for word, text in words.items() if text in block}
    return seen


def test_no_process_has_a_credential_while_outputs_are_under_way(place: Place) -> None:
    process = place.writer.spawn({"a.bin": 5, "b.bin": MIB, "c.bin": 5}, {}, pause_s=1.5)
    assert process.stdout
    while json.loads(process.stdout.readline()).get("event") != "output":
        pass

    words = {"secret": place.secret, "in base64": base64.b64encode(place.secret)}
    seen = found(place, {**words, "token": place.token, "path": b"PATH=/"})
    envelope = last(process)

    # The runtime takes its token out of its environment, and keeps it.
    assert seen == {"token in memory", "path in environment", "path in memory"}
    assert envelope["status"] == "success", envelope
    assert envelope["meta"]["transfer"] == "direct"


def test_no_log_and_no_state_has_a_credential(place: Place) -> None:
    assert place.writer.run({"a.bin": 5}, {})["status"] == "success"

    logs = place.writer.cli("localctl", "logs", "--ref", REF)
    files = [path for path in place.writer.state.rglob("*") if path.is_file() and "venv" not in path.parts]

    assert place.secret.decode() not in logs.stdout + logs.stderr
    assert [path for path in files if place.secret in path.read_bytes()] == []
    assert any(place.token in path.read_bytes() for path in files)


@pytest.mark.parametrize("place", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_no_description_and_no_layer_has_a_credential(place: Place) -> None:
    described = docker("inspect", place.container())
    image = json.loads(described)[0]["Image"]

    assert place.token.decode() in described
    for text in (described, docker("image", "inspect", image), docker("history", "--no-trunc", image)):
        assert place.secret.decode() not in text
    saved = subprocess.run(["docker", "save", image], capture_output=True, check=True, timeout=120).stdout
    layers = list(contents(saved))
    assert any(b"context.write(path, pieces(path, size))" in layer for layer in layers)
    assert not any(place.secret in layer for layer in layers)


def contents(saved: bytes) -> Iterator[bytes]:
    """Each file of a saved image, a layer in the plain."""
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                data = file.read()
                yield gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
