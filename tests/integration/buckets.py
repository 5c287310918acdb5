"""A real S3 server, SeaweedFS from its Python package, and buckets on it.

It can be killed and started again on the same ports and data. That it refuses what S3 refuses is proven by
bucket_canary.py before any test gets it.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import urllib3

REGION: Final = "us-east-1"
WEED: Final = Path(sys.executable).with_name("weed")
_START_S: Final = 60.0
_PARTS: Final = ("s3", "master", "volume", "filer")
_QUICK: Final = urllib3.Timeout(connect=2, read=10)


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials of one identity of the server."""

    access_key: str = field(default_factory=lambda: f"AK{secrets.token_hex(9).upper()}")
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20))


@dataclass
class BucketServer:
    """One server. `owner` may do everything, `stranger` is known and may do nothing."""

    folder: Path
    """Its configuration, log and, where no other place was given, data."""
    data: Path
    ports: Mapping[str, int]
    owner: Login = field(default_factory=Login)
    stranger: Login = field(default_factory=Login)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def port(self) -> int:
        """Of S3. A container reaches it by host.docker.internal, this machine by 127.0.0.1."""
        return self.ports["s3"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def client(self, login: Login | None = None) -> Any:
        """A plain boto3 client of this test: path addressing, no retries."""
        import boto3
        from botocore.config import Config

        login = login or self.owner
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=login.access_key,
            aws_secret_access_key=login.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 0},
                connect_timeout=5,
                read_timeout=60,
            ),
        )

    def start(self) -> None:
        """Start, on the same ports and data; returns when a PUT succeeded, seconds after the port answers."""
        identities = [
            _identity("owner", self.owner, ["Admin", "Read", "Write", "List", "Tagging"]),
            _identity("stranger", self.stranger, ["Read:no-such-bucket"]),
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (self.folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait()

    def kill(self) -> None:
        """End it at once, as a crash would: asked politely it takes half a minute."""
        if self.process:
            self.process.kill()
            self.process.wait()
        for name in _PARTS:  # it puts some of its sockets there, whatever it is told
            for left in Path("/tmp").glob(f"seaweedfs-{name}-*{self.ports[f'{name} grpc']}.sock"):
                left.unlink()

    def make_bucket(self, name: str | None = None) -> "Bucket":
        """A new bucket, by default under a name of its own."""
        made = Bucket(self, name or f"bucket-{secrets.token_hex(6)}")
        self.client().create_bucket(Bucket=made.name)
        return made

    def _argv(self) -> list[str]:
        ports = [f"-{part}.port={self.ports[part]}" for part in _PARTS]
        ports += [f"-{part}.port.grpc={self.ports[f'{part} grpc']}" for part in _PARTS]
        sockets = [f"-{part}.localSocket={self.folder}/{part}.sock" for part in ("s3", "filer")]
        # S3 alone listens everywhere: containers come in by their bridge's address, of which there may be several,
        # and it takes one address. Its keys are random and live as long as the test run.
        addresses = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"]
        refused = ["-s3.autoCreateBucket=false", "-s3.allowedOrigins=", "-s3.iam=false", "-master.telemetry=false"]
        # Alone it need wait for nobody to be elected again.
        alone = ["-master.electionTimeout=1s"]
        unused = ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # Each bucket takes volumes of its own; with too few of them a PUT to a new bucket is answered with 500.
        room = ["-master.volumeSizeLimitMB=1024", "-volume.max=500"]
        server = [str(WEED), "-logtostderr=true", "server", f"-dir={self.data}", "-s3", "-s3.config=s3.json"]
        return [*server, *addresses, *ports, *sockets, *refused, *unused, *room, *alone]

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while not (self._answers() and self._stores()):
            assert self.process
            assert self.process.poll() is None, f"the server ended: {self._last_words()}"
            assert time.monotonic() < deadline, f"no PUT succeeded within {_START_S:g} s: {self._last_words()}"
            time.sleep(0.1)

    def _stores(self) -> bool:
        from botocore.exceptions import ClientError

        client = self.client()
        with suppress(ClientError):  # it is there from an attempt before
            client.create_bucket(Bucket="start")
        try:
            client.put_object(Bucket="start", Key="probe", Body=b"probe")
            client.delete_object(Bucket="start", Key="probe")
            client.delete_bucket(Bucket="start")
        except ClientError:  # 500 until all of its parts found each other
            return False
        return True

    def _answers(self) -> bool:
        try:
            with urllib3.PoolManager(timeout=_QUICK, retries=False) as http:
                return http.request("GET", self.endpoint).status == 403
        except urllib3.exceptions.HTTPError:
            return False

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket, and what a command needs to know to use it."""

    server: BucketServer
    name: str

    def variables(self, backend: str, login: Login | None = None) -> dict[str, str]:
        """What the environment says so that `backend` (minio or s3) stores here."""
        login = login or self.server.owner
        if backend == "minio":
            return {
                "STORAGE_BACKEND": "minio",
                "MINIO_STORAGE_ENDPOINT": self.server.address,
                "MINIO_STORAGE_ACCESS_KEY": login.access_key,
                "MINIO_STORAGE_SECRET_KEY": login.secret_key,
                "MINIO_STORAGE_USE_HTTPS": "false",
                "ARTIFACTS_BUCKET": self.name,
            }
        return {
            "STORAGE_BACKEND": "s3",
            "AWS_ACCESS_KEY_ID": login.access_key,
            "AWS_SECRET_ACCESS_KEY": login.secret_key,
            "ARTIFACTS_BUCKET": self.name,
            "ARTIFACTS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.server.endpoint,
        }

    def put(self, key: str, data: bytes) -> None:
        self.server.client().put_object(Bucket=self.name, Key=key, Body=data)

    def read(self, key: str) -> bytes | None:
        """What is stored under `key`; None when nothing is."""
        client = self.server.client()
        try:
            with client.get_object(Bucket=self.name, Key=key)["Body"] as body:
                data: bytes = body.read()
                return data
        except client.exceptions.NoSuchKey:
            return None

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def unfinished(self) -> list[str]:
        """Keys of multipart uploads that were begun and neither completed nor aborted."""
        answer = self.server.client().list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in answer.get("Uploads", [])]

    def remove(self) -> None:
        """With all that is in it."""
        client = self.server.client()
        for key in self.keys():
            client.delete_object(Bucket=self.name, Key=key)
        client.delete_bucket(Bucket=self.name)


@contextmanager
def bucket_server(
    folder: Path,
    *,
    data: Path | None = None,
    kind: type[BucketServer] = BucketServer,
    owner: Login | None = None,
    port: int | None = None,
) -> Iterator[BucketServer]:
    """A server of its own in the empty folder `folder`.

    `data` puts its data elsewhere, say on a small disk; `owner` and `port` are random unless given.
    """
    data = data or folder / "data"
    data.mkdir(exist_ok=True)
    ports = _free_ports([*_PARTS, *(f"{part} grpc" for part in _PARTS)])
    server = kind(folder, data, {**ports, "s3": port or ports["s3"]}, owner or Login())
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _identity(name: str, login: Login, actions: list[str]) -> dict[str, Any]:
    credentials = [{"accessKey": login.access_key, "secretKey": login.secret_key}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _free_ports(names: list[str]) -> dict[str, int]:
    with ExitStack() as stack:  # all are held until the last is found, so that no two are the same
        sockets = {name: stack.enter_context(socket.create_server(("", 0))) for name in names}
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def missing() -> str:
    """Why no server can be started here; empty when one can."""
    return "" if os.access(WEED, os.X_OK) else f"there is no {WEED}"
