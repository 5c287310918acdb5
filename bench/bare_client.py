"""What `run` is measured against: one round trip and its files, with nothing around them.

bare_client.py URL REF FOLDER, the headers as JSON on stdin: the same messages and the same four files, each fsynced,
with no YAML, no schema, no check of what arrives, no Django.
"""

import hashlib
import json
import os
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

INPUTS = {"schema": "v1", "params": {"messages": [{"role": "user", "content": "Name three uses of a paper clip"}]}}
CHUNK_HEADER = struct.calcsize("!IQ")


def main(url: str, ref: str, artifacts: str) -> None:
    execution = uuid.uuid4().hex
    name = f"{execution[:8]}-{execution[8:12]}-7{execution[13:16]}-8{execution[17:20]}-{execution[20:]}"
    folder = Path(artifacts, name)
    with connect(
        url,
        subprotocols=[Subprotocol("theory.run.v1")],
        additional_headers=json.load(sys.stdin),
        compression=None,
        proxy=None,
    ) as connection:
        hello = json.loads(connection.recv())
        prefix = f"/artifacts/{name}/"
        run = {"type": "run", "execution_id": name, "mode": "mock", "inputs": INPUTS, "write_prefix": prefix}
        connection.send(json.dumps({**run, "timeout_s": 600}))
        completed, outputs = converse(connection, folder)
    index = {"schema": 1, "execution_id": name, "ref": ref, "outputs": outputs}
    envelope = {**index, "status": completed["status"], "meta": {**completed["meta"], "image": hello["image_digest"]}}
    write(folder / "receipt.json", json.dumps(envelope).encode())
    write(folder / "outputs.json", json.dumps(index).encode())
    print(json.dumps(envelope))


def converse(connection: ClientConnection, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    uploads: dict[int, dict[str, Any]] = {}
    contents: dict[int, bytes] = {}
    while True:
        received = connection.recv()
        if isinstance(received, bytes):
            contents[struct.unpack_from("!IQ", received)[0]] = received[CHUNK_HEADER:]
            continue
        message = json.loads(received)
        match message["type"]:
            case "upload":
                uploads[message["upload"]] = message
                connection.send(json.dumps({"type": "grant", "upload": message["upload"], **RELAY}))
            case "uploaded":
                store(uploads[message["upload"]], contents[message["upload"]], folder)
                connection.send(json.dumps({"type": "stored", "upload": message["upload"]}))
            case "completed":
                return message, [
                    {"path": each["path"], "digest": each["digest"], "size_bytes": each["size_bytes"]}
                    for each in uploads.values()
                ]


RELAY = {"transfer": "relay", "credit": 4 * 1024 * 1024}


def store(upload: dict[str, Any], content: bytes, folder: Path) -> None:
    if upload["digest"] != "sha256:" + hashlib.sha256(content).hexdigest():
        sys.exit(f"{upload['path']} is not what was promised")
    write(folder / upload["path"], content)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
