"""The Docker engine when there is none, when it is another machine's, silent, garbled or gone amid an answer."""

import gc
import json
import os
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from apps.errors import ConfigurationError, EngineFailed, Unauthorized
from apps.processors.adapters import docker_client, docker_pull
from apps.processors.adapters.base import Container, Engine
from apps.processors.adapters.docker import DockerEngine
from apps.processors.reference import AMD64, ImageReference
from tests.integration.probe import Place, free_port

CONTAINER = Container("a1", "x", "running", {}, 18000, None)
DIGEST = "sha256:" + "0" * 64

CALLS: dict[str, Callable[[Engine], Any]] = {
    "platform": lambda engine: engine.platform(),
    "local_image": lambda engine: engine.local_image(DIGEST, repository="localhost/x", platform=AMD64),
    "has_image": lambda engine: engine.has_image("x"),
    "pull": lambda engine: engine.pull(ImageReference("localhost/x", DIGEST), AMD64, progress=lambda _: None),
    "launch": lambda engine: engine.launch(Place(lambda _: engine, "x", "y").request(platform=AMD64)),
    "containers": lambda engine: engine.containers(),
    "stop": lambda engine: engine.stop(CONTAINER, grace_s=1),
    "remove": lambda engine: engine.remove(CONTAINER),
    "logs": lambda engine: list(engine.logs(CONTAINER)),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can look into, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def engine_at(host: str) -> DockerEngine:
    return DockerEngine("0123abcd", environment={"DOCKER_HOST": host})


@contextmanager
def daemon(path: Path, answers: dict[str, bytes]) -> Iterator[str]:
    """An engine of a few answers, whole HTTP responses by the end of the path; anything else is 404."""
    with socketserver.ThreadingUnixStreamServer(str(path), _handler(answers)) as server:
        server.daemon_threads = True
        yield from _served(server, f"unix://{path}")


def _served(server: socketserver.BaseServer, url: str) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        thread.join()


def _handler(answers: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].rpartition("/")[2]
            self.wfile.write(answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
            self.close_connection = True

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    return Handler


def ok(document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


VERSION = {"ApiVersion": "1.45", "Os": "linux", "Arch": "amd64"}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_is_asked_no_engine_is_said_at_once(call: Callable[[Engine], Any], folder: Path) -> None:
    engine = engine_at(f"unix://{folder}/absent.sock")

    began_s = time.monotonic()
    with pytest.raises(EngineFailed) as caught:
        call(engine)

    assert time.monotonic() - began_s < 5  # the first loads the SDK; a connection to nowhere takes minutes
    assert caught.value.message == f"no Docker Engine answers at unix://{folder}/absent.sock: No such file or directory"
    assert caught.value.hint == "start Docker, or do without it: LOCAL_ENGINE=process"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_is_asked_an_engine_on_another_machine_is_refused_at_once(call: Callable[[Engine], Any]) -> None:
    engine = engine_at("tcp://192.0.2.1:2375")

    began_s = time.monotonic()
    with pytest.raises(ConfigurationError, match="another machine"):
        call(engine)

    assert time.monotonic() - began_s < 5  # the first loads the SDK; a connection to nowhere takes minutes


def test_a_socket_that_nobody_listens_on_is_no_engine(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "stale.sock"))

    with pytest.raises(EngineFailed, match="Connection refused"):
        engine_at(f"unix://{folder}/stale.sock").platform()


def test_a_port_that_nobody_listens_on_is_no_engine() -> None:
    with pytest.raises(EngineFailed, match="Connection refused"):
        engine_at(f"tcp://127.0.0.1:{free_port()}").platform()


def test_a_file_that_is_no_socket_is_no_engine(folder: Path) -> None:
    (folder / "file").touch()

    with pytest.raises(EngineFailed, match="no Docker Engine answers"):
        engine_at(f"unix://{folder}/file").platform()


def test_a_path_that_is_too_long_for_a_socket_is_no_engine(folder: Path) -> None:
    with pytest.raises(EngineFailed, match="too long"):
        engine_at(f"unix://{folder}/{'x' * 120}").platform()


def test_no_permission_on_the_socket_is_said_with_the_line_that_gives_it(folder: Path) -> None:
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0)
        with unprivileged(), pytest.raises(EngineFailed) as caught:
            engine_at(f"unix://{path}").containers()

    assert caught.value.message == f"no permission to use the Docker Engine at unix://{path}"
    assert "sudo usermod -aG docker $USER" in caught.value.hint
    assert "LOCAL_ENGINE=process" in caught.value.hint


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may open anything; nobody may not."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_an_engine_that_accepts_and_is_silent_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_client, "_GREETING_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "docker.sock"))
        listener.listen()

        with pytest.raises(EngineFailed, match="took too long to say its version"):
            engine_at(f"unix://{folder}/docker.sock").platform()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
    ],
    ids=["nothing", "no-http", "no-json", "500", "cut"],
)
def test_what_talks_otherwise_is_no_engine(folder: Path, answer: bytes) -> None:
    with daemon(folder / "docker.sock", {"version": answer}) as host, pytest.raises(EngineFailed):
        engine_at(host).platform()


def test_an_engine_that_goes_away_amid_the_logs_is_an_error_after_the_lines_that_came(folder: Path) -> None:
    message = b"2026-11-22T10:02:33.123456789Z one\n"
    body = b"\x01\0\0\0" + len(message).to_bytes(4, "big") + message
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)
    with daemon(folder / "docker.sock", {"version": ok(VERSION), "logs": cut}) as host:
        lines = engine_at(host).logs(CONTAINER, follow=True)
        first = next(lines)

        with pytest.raises(EngineFailed, match="read the logs of x"):
            next(lines)

    assert first.line == "one"


# The SDK does not close the socket that it could not connect.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_went_away_since_is_no_engine(folder: Path) -> None:
    with daemon(folder / "docker.sock", {"version": ok(VERSION), "json": ok([])}) as host:
        engine = engine_at(host)
        assert engine.containers() == []
    (folder / "docker.sock").unlink(missing_ok=True)

    with pytest.raises(EngineFailed, match="no Docker Engine answers"):
        engine.containers()
    gc.collect()


@pytest.mark.parametrize(("system", "architecture"), [("windows", "windows/x"), ("linux", "s390x")])
def test_an_engine_for_another_kind_of_machine_is_refused(folder: Path, system: str, architecture: str) -> None:
    version = {"ApiVersion": "1.45", "Os": system, "Arch": architecture}
    with (
        daemon(folder / "docker.sock", {"version": ok(version)}) as host,
        pytest.raises(ConfigurationError, match=f"runs {system}/{architecture}"),
    ):
        engine_at(host).platform()


def test_the_callers_proxy_is_not_for_an_engine_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    answers = {"version": ok(VERSION), "json": ok([])}
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers)) as server:
        for host in _served(server, f"tcp://127.0.0.1:{server.server_port}"):
            assert engine_at(host).platform() == AMD64
            assert engine_at(host).containers() == []


def test_a_pull_says_how_far_it_is_and_ends_with_what_the_engine_says_amid_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_pull, "_EVERY_S", 0)
    items = [
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "one"},
        {"status": "Downloading", "progressDetail": {"current": 1_000_000, "total": 3_000_000}, "id": "one"},
        {"status": "Downloading", "progressDetail": {"current": 500_000, "total": 1_000_000}, "id": "two"},
        {"errorDetail": {"message": "unauthorized"}, "error": "unauthorized: token expired"},
    ]
    body = b"\r\n".join(json.dumps(item).encode() for item in items)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    image, said = ImageReference("localhost:5000/x", DIGEST), list[str]()

    with (
        daemon(folder / "docker.sock", {"version": ok(VERSION), "create": answer}) as host,
        pytest.raises(Unauthorized, match="token expired"),
    ):
        engine_at(host).pull(image, AMD64, progress=said.append)

    assert said == [f"pulling {image}", "pulled 1.0 of 3.0 MB", "pulled 1.5 of 4.0 MB"]
