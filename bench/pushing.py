"""What a push costs: of what is there already against `docker push`, and after a change of one line. Needs Docker."""

import json
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.checkout import HANDLER, REF, Checkout, checkout
from bench.images import absent, docker
from bench.measure import alternate, median, rounds, say, table

PLATFORMS: Final = ("amd64", "arm64")


def main() -> None:
    why = absent() or ("" if shutil.which("docker-registry") else "no docker-registry")
    if why:
        print(f"\nPushes are left out: {why}")
        return
    with registry() as (address, storage):
        prefix = f"{address}/theory-bench-{secrets.token_hex(4)}"
        with checkout("docker", PROCESSOR_REPOSITORY_PREFIX=prefix) as made:
            try:
                say("pushes: the first build and push")
                made("processorctl", "build", "--ref", REF)
                first = made("processorctl", "push", "--ref", REF)
                _unchanged(made, first)
                _changed(made, storage)
            finally:
                if images := docker("image", "ls", "--quiet", "--filter", f"reference={prefix}/*").split():
                    docker("image", "rm", "--force", *dict.fromkeys(images))


@contextmanager
def registry() -> Iterator[tuple[str, Path]]:
    """An image registry of our own: its address and the folder that it keeps things in."""
    with tempfile.TemporaryDirectory(prefix="theory-bench-") as folder, socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        storage = {"filesystem": {"rootdirectory": f"{folder}/storage"}}
        document = {"version": "0.1", "storage": storage, "http": {"addr": address}, "log": {"level": "error"}}
        config = Path(folder, "config.yml")
        config.write_text(json.dumps(document))  # JSON is YAML
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait(address, process)
            yield address, Path(folder, "storage")
        finally:
            process.terminate()
            process.wait()


def _wait(address: str, process: "subprocess.Popen[bytes]") -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the image registry does not answer") from exc
            time.sleep(0.05)


def _unchanged(made: Checkout, pushed: dict[str, Any]) -> None:
    say("pushes: unchanged")
    tags = [f"{pushed['repository']}:{pushed['tag']}-{each}" for each in PLATFORMS]
    measures: dict[str, Callable[[], float]] = {
        "`docker push` of both platforms' tags": lambda: _timed(
            lambda: [docker("push", "--quiet", tag) for tag in tags]
        ),
        "`processorctl list`, which asks nobody": lambda: _timed(lambda: made("processorctl", "list")),
        "`processorctl push`, to its end": lambda: _timed(lambda: made("processorctl", "push", "--ref", REF)),
    }
    for measure in measures.values():
        measure()
    count = rounds(7, 2)
    taken = {name: median(times) for name, times in alternate(measures, count).items()}
    plain = next(iter(taken.values()))
    table(
        "Push of what is there already, two platforms",
        ("", "ms wall", "x docker push"),
        [(name, value, value / plain) for name, value in taken.items()],
        f"Medians of {count} rounds, to a registry on this machine. `processorctl push` also asks it for both digests, "
        "the index, provenance and SBOM.",
    )


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _changed(made: Checkout, storage: Path) -> None:
    say("pushes: handler.py changed")
    with (made.root / HANDLER).open("a") as text:
        text.write(f"# {secrets.token_hex(8)}\n")
    made("processorctl", "build", "--ref", REF)
    before = _stored(storage)
    pushed = made("processorctl", "push", "--ref", REF)
    new = {digest: size for digest, size in _stored(storage).items() if digest not in before}
    layers: dict[str, int] = {}
    rows = []
    for image in pushed["images"]:
        manifest = json.loads(_blob(storage, image["oci"].rpartition("@")[2]).read_text())
        changed = {each["digest"]: each["size"] for each in manifest["layers"] if each["digest"] in new}
        size, sent, whole = sum(changed.values()), image["uploaded_bytes"], image["size_bytes"]
        rows.append((image["platform"], f"{whole:,}", f"{size:,}", f"{sent:,}", sent / size))
        layers |= changed
    table(
        "Push after one changed line of `handler.py`",
        ("", "bytes of the image", "of its changed layer", "of layers uploaded", "uploaded / changed layer"),
        rows,
        f"A layer that both platforms have in common is sent once. All that the registry did not have before: "
        f"{sum(new.values()):,} bytes in {len(new)} blobs, of which layers {sum(layers.values()):,}; the rest are "
        "configurations, manifests, index, provenance and SBOM.",
    )


def _stored(storage: Path) -> dict[str, int]:
    """Digest → bytes of each blob that the registry has, manifests included."""
    found = storage.glob("docker/registry/v2/blobs/sha256/*/*/data")
    return {f"sha256:{file.parent.name}": file.stat().st_size for file in found}


def _blob(storage: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


if __name__ == "__main__":
    main()
