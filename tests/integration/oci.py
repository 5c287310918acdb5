"""A registry that serves one image made of nothing, and remembers who asked: what a pull is tested against."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from apps.processors.reference import ImageReference

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass
class Registry:
    """What it serves, and what it was asked."""

    address: str
    image: ImageReference
    blobs: dict[str, tuple[str, bytes]]
    """digest → media type and bytes."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Authorization of each request."""
    refusal: int = 0
    """The HTTP status that everything is answered with; 0: it serves."""

    @property
    def absent(self) -> ImageReference:
        return ImageReference(self.image.repository, "sha256:" + "0" * 64)


@contextmanager
def registry(architecture: str) -> Iterator[Registry]:
    """A registry on 127.0.0.1 with an image for `architecture` that no engine has seen."""

    class Handler(BaseHTTPRequestHandler):
        default_request_version = "HTTP/1.0"  # engines try TLS first, and know a plain server by its answer

        def do_GET(self) -> None:
            served.requests.append((self.command, self.path, self.headers.get("Authorization")))
            if served.refusal:
                self._answer(served.refusal, "application/json", b'{"errors": []}')
            elif self.path == "/v2/":
                self._answer(200, "application/json", b"{}")
            else:
                found = served.blobs.get(self.path.rpartition("/")[2])
                body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
                self._answer(200, *found) if found else self._answer(404, "application/json", body)

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, media_type: str, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", self.path.rpartition("/")[2])
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"localhost:{server.server_port}"
        digest, blobs = _image(architecture)
        served = Registry(address, ImageReference(f"{address}/test/nothing", digest), blobs)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def _image(architecture: str) -> tuple[str, dict[str, tuple[str, bytes]]]:
    blobs: dict[str, tuple[str, bytes]] = {}

    def blob(media_type: str, content: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        blobs[digest] = (media_type, content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    layer = _layer()
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/absent"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(layer))],
    }
    return str(blob(_MANIFEST, json.dumps(manifest).encode())["digest"]), blobs


def _layer() -> bytes:
    archive, content = io.BytesIO(), os.urandom(64 * 1024)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        file = tarfile.TarInfo("random")
        file.size = len(content)
        tar.addfile(file, io.BytesIO(content))
    return archive.getvalue()
