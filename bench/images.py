"""What Docker adds: container start, image size, build time. Left out, and said, where no Docker Engine answers."""

import math
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from bench import commands
from bench.checkout import HANDLER, LOCK, REF, Checkout, checkout
from bench.measure import SHORT, alternate, median, pss_mb, rounds, say, table

BASE: Final = "python:3.13-slim"
ONE, TWO = "linux/amd64", "linux/amd64,linux/arm64"
READY: Final = re.compile(r"(\S+) .*ready for mock runs")


def main() -> None:
    if why := absent():
        print(f"\nContainers, images and builds are left out: no Docker Engine answers ({why})")
        return
    prefix = f"localhost/theory-bench-{secrets.token_hex(4)}"
    with checkout("docker", PROCESSOR_REPOSITORY_PREFIX=prefix) as made:
        try:
            say("images: the first build")
            image = str(made("processorctl", "build", "--ref", REF, "--platforms", ONE)["images"][0]["image_id"])
            _starts(made, image)
            _sizes(image)
            _builds(made)
        finally:
            made("localctl", "stop", "--all")
            if images := docker("image", "ls", "--quiet", "--filter", f"reference={prefix}/*").split():
                docker("image", "rm", "--force", *dict.fromkeys(images))


def absent() -> str:
    try:
        docker("version")
    except (OSError, RuntimeError) as exc:
        return str(exc).strip().splitlines()[-1]
    return ""


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"docker {words[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def _base() -> str:
    """The base image by a name that this machine has or can pull: builds may be told another than the Dockerfile's."""
    for word in os.environ.get("PROCESSOR_BUILD_CONTEXTS", "").split():
        name, _, value = word.partition("=")
        if name == BASE:
            return value.removeprefix("docker-image://")
    return BASE


# Container start


def _starts(made: Checkout, image: str) -> None:
    base = _base()
    say("images: starts")
    inside: list[float] = []
    measures: dict[str, Callable[[], float]] = {
        "`docker run` of http.server, base image, to the first answer": lambda: _http_server(base),
        "the same in the processor's image, which has bytecode": lambda: _http_server(image),
        "`localctl start`, to its end": lambda: _start(made, inside),
    }
    for measure in measures.values():
        measure()
    taken = {name: median(times) for name, times in alternate(measures, rounds(7, 2)).items()}
    taken["of that: from the container's start to its readiness"] = median(inside)
    first, second = list(taken.values())[:2]
    table(
        "Container start",
        ("", "ms wall", "x base image", "x processor's image"),
        [(name, value, value / first, value / second) for name, value in taken.items()],
        f"Medians of {len(inside) - 1} rounds.",
    )
    made("localctl", "start", "--ref", REF, "--allow-missing-secrets")
    _idle(made)
    if not SHORT:
        commands.report("`localctl run --mode mock`, docker engine", made)


def _http_server(image: str) -> float:
    """ms from `docker run` to the first answer of Python's own trivial server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    serve = ("python", "-m", "http.server", "--directory", "/tmp", "8000")  # noqa: S108
    name = docker("run", "--detach", "--publish", f"127.0.0.1:{port}:8000", image, *serve).strip()
    try:
        while not _answers(port):
            time.sleep(0.005)
        return (time.perf_counter() - began) * 1000
    finally:
        docker("rm", "--force", name)


def _answers(port: int) -> bool:
    """Whether a request is answered: Docker's proxy takes connections before the server does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(connection.recv(1))
    except OSError:
        return False


def _start(made: Checkout, inside: list[float]) -> float:
    """ms that `localctl start` takes; appends the part between the container's start and its readiness."""
    began = time.perf_counter()
    started = made("localctl", "start", "--ref", REF, "--allow-missing-secrets")
    taken = (time.perf_counter() - began) * 1000
    container = started["container"]["id"]
    since = _moment(docker("inspect", "--format", "{{.State.StartedAt}}", container).strip())
    done = subprocess.run(["docker", "logs", "--timestamps", container], capture_output=True, text=True)
    if (ready := READY.search(done.stderr)) is None:
        raise RuntimeError(f"the container's log has no line of its readiness: {done.stderr}")
    inside.append((_moment(ready[1]) - since) * 1000)
    made("localctl", "stop", "--ref", REF)
    return taken


def _moment(text: str) -> float:
    """Seconds since 1970 of the engine's RFC 3339 with nanoseconds."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _idle(made: Checkout) -> None:
    name = made("localctl", "status", "--ref", REF)["containers"][0]["id"]
    pids = [int(pid) for pid in docker("top", name, "-eo", "pid").split()[1:]]
    time.sleep(1)
    try:
        memory = pss_mb(pids)
    except PermissionError:
        print("\nThe memory of containers is left out: only root may read it")
        return
    rows = [(f"MB PSS of {len(pids)} processes, idle, no secrets given", memory, 40)]
    table("The runtime in its image", ("", "measured", "target"), rows)


# Image size


def _sizes(image: str) -> None:
    say("images: sizes")
    base = _base()
    parts: dict[str, tuple[float, float]] = {"base image": (_size(base), _unpacked(base, "/"))}
    for folder, what in (("/deps", "site-packages"), ("/pyc", "bytecode of both"), ("/app", "runtime and handler")):
        parts[f"`{folder}`: {what}"] = (_compressed(image, folder), _unpacked(image, folder))
    whole = (_size(image), sum(unpacked for _, unpacked in parts.values()))
    plain = [sum(part[which] for part in list(parts.values())[:2]) for which in (0, 1)]
    names = ("the image", "the image / (base + site-packages)")
    table(
        "Image size, linux/amd64",
        ("", "MB as the engine says", "MB unpacked"),
        [
            *((name, size / 1e6, unpacked / 1e6) for name, (size, unpacked) in parts.items()),
            (names[0], whole[0] / 1e6, whole[1] / 1e6),
            (names[1], whole[0] / plain[0], whole[1] / plain[1]),
        ],
        "`docker image inspect` tells the compressed size with the containerd image store, which is what a registry "
        "keeps and a pull fetches; folders were compressed alone, by gzip.",
    )


def _size(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def _in(image: str, *words: str) -> str:
    return docker("run", "--rm", "--user", "0", "--network", "none", "--entrypoint", words[0], image, *words[1:])


def _unpacked(image: str, folder: str) -> int:
    return int(_in(image, "du", "--summarize", "--bytes", "--one-file-system", folder).split()[0])


def _compressed(image: str, folder: str) -> float:
    if SHORT:  # it takes half a minute
        return math.nan
    return int(_in(image, "sh", "-c", f"tar -C / -cf - {Path(folder).name} | gzip | wc -c"))


# Build time


def _builds(made: Checkout) -> None:
    say("images: builds")
    _build(made, TWO)
    count = rounds(3, 1)
    kinds: dict[str, tuple[Callable[[str], float], int]] = {
        "nothing changed": (partial(_build, made), count),
        "`handler.py` changed": (partial(_changed, made, HANDLER), count),
        "`requirements.lock` changed: all is fetched and compiled": (partial(_changed, made, LOCK), rounds(1, 0)),
    }
    rows = []
    for name, (build, times) in kinds.items():
        if times:
            taken = alternate({platforms: partial(build, platforms) for platforms in (ONE, TWO)}, times)
            one, two = median(taken[ONE]), median(taken[TWO])
            rows.append((name, one, two, two / one))
    heads = ("`processorctl build`", "s, one platform", "s, two platforms", "ratio")
    table("Build time", heads, rows, f"Medians of {count} rounds, of the last row one.")


def _build(made: Checkout, platforms: str) -> float:
    """s"""
    return float(made("processorctl", "build", "--ref", REF, "--platforms", platforms)["duration_ms"]) / 1000


def _changed(made: Checkout, file: Path, platforms: str) -> float:
    """s of a build that cannot use what was built from `file` before."""
    with (made.root / file).open("a") as text:
        text.write(f"# {secrets.token_hex(8)}\n")
    return _build(made, platforms)
