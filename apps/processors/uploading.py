"""The controller's end of an execution's uploads: where each may go, what arrives, whether it is what was announced."""

from collections.abc import Callable

from processor_runtime import protocol

from apps.errors import OperationError
from apps.storage.artifacts import Artifacts
from apps.storage.base import ObjectWriter


class Uploading:
    """The uploads that come over one connection."""

    def __init__(
        self,
        side: protocol.ControllerSide,
        artifacts: Artifacts,
        *,
        send: Callable[[str], None],
        stored: Callable[[protocol.Upload], None],
    ) -> None:
        """`send` takes text messages for the runtime; `stored` hears of each output that is where it belongs."""
        self._side, self._artifacts, self._send, self._on_stored = side, artifacts, send, stored
        self._arriving: dict[int, tuple[protocol.Upload, ObjectWriter]] = {}

    def asked(self, upload: protocol.Upload) -> None:
        """Answer a request with a grant, or with why it can't be."""
        try:
            writer = self._artifacts.receive(
                upload.path, size_bytes=upload.size_bytes, digest=upload.digest, mime=upload.mime
            )
        except OperationError as error:
            self._refuse(upload.upload, error)
            return
        self._arriving[upload.upload] = (upload, writer)
        self._send(self._side.grant_relay(upload.upload))

    def chunk(self, received: bytes) -> None:
        """Take one binary message."""
        number, data = self._side.receive_chunk(received)
        if number not in self._arriving:
            return  # refused meanwhile; the rest of its window still arrives
        try:
            self._arriving[number][1].write(data)
        except OperationError as error:
            self._refuse(number, error)
            return
        if credit := self._side.consumed(number):
            self._send(credit)

    def uploaded(self, message: protocol.Uploaded) -> None:
        """All was sent: verify it, and say so."""
        if message.upload not in self._arriving:
            return
        upload, writer = self._arriving[message.upload]
        try:
            writer.commit(size_bytes=upload.size_bytes, digest=upload.digest)
        except OperationError as error:
            self._refuse(upload.upload, error)
            return
        del self._arriving[upload.upload]
        self._on_stored(upload)
        self._send(protocol.encode(protocol.Stored(upload.upload)))

    def close(self) -> None:
        """Forget what is not stored."""
        for _, writer in self._arriving.values():
            writer.abort()

    def _refuse(self, number: int, error: OperationError) -> None:
        if held := self._arriving.pop(number, None):
            held[1].abort()
        self._send(protocol.encode(protocol.Refused(number, error.words())))
