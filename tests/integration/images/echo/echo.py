"""A server as a processor is one, told by its environment alone: HTTP/1.1 and WebSocket on PORT.

`GET /facts` answers with its environment and the request's headers; a WebSocket gets the version, then each text
back. `GET /say?words` prints, `GET /exit` ends it. Standard library alone.
"""

import base64
import hashlib
import json
import os
import signal
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, argument = self.path.partition("?")
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.talk()
        elif path == "/exit":
            os._exit(3)
        else:
            if path == "/say":
                print(unquote(argument), flush=True)
            self.answer({"environment": dict(os.environ), "headers": dict(self.headers), "path": self.path})

    def do_POST(self) -> None:
        self.answer({"body": self.rfile.read(int(self.headers["Content-Length"])).decode()})

    def answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def talk(self) -> None:
        key = self.headers["Sec-WebSocket-Key"].encode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key + MAGIC, usedforsecurity=False).digest()).decode()
        )
        self.end_headers()
        self.send_frame(
            1, json.dumps({"version": os.environ["VERSION"], "image": os.environ.get("IMAGE", "")}).encode()
        )
        self.close_connection = True
        while True:
            opcode, payload = self.receive_frame()
            self.send_frame(opcode, payload)
            if opcode == 8:
                return

    def receive_frame(self) -> tuple[int, bytes]:
        first, second = self.rfile.read(2)
        size = second & 127
        if size > 125:
            size = struct.unpack("!H" if size == 126 else "!Q", self.rfile.read(2 if size == 126 else 8))[0]
        mask = self.rfile.read(4)
        return first & 15, bytes(byte ^ mask[n % 4] for n, byte in enumerate(self.rfile.read(size)))

    def send_frame(self, opcode: int, payload: bytes) -> None:
        size = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
        self.wfile.write(bytes([0x80 | opcode]) + size + payload)

    def log_message(self, *_: object) -> None:
        return


def terminate(*_: object) -> None:
    print("terminated", flush=True)
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    print("listening", flush=True)
    print("a warning", file=sys.stderr, flush=True)
    ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
