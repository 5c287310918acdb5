"""The controller's end of an execution's uploads: where each may go, what arrives, whether it is what was announced.

Where outputs lie on this machine all is done at once. What asks a store is done in lanes, one for each upload.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from processor_runtime import protocol

from apps.errors import OperationError
from apps.storage.artifacts import Artifacts
from apps.storage.base import Grant, ObjectWriter

if TYPE_CHECKING:
    from apps.processors.lanes import Lane, Workers

LEAVE_S: Final = 2.0
"""How long what was begun may take to be undone, once the conversation is over."""


class _Arriving:  # no dataclass: every run would pay for making it
    """One upload that is neither stored nor refused."""

    def __init__(self, upload: protocol.Upload, lane: "Lane | None") -> None:
        self.upload, self.lane = upload, lane
        self.writer: ObjectWriter | None = None
        self.grant: Grant | None = None
        self.over = False
        """Stored, refused or replaced: what still comes of it is dropped."""


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
        """`send` takes text messages for the runtime; `stored` hears of each output that is where it belongs.

        Both are called from other threads too.
        """
        self._side, self._artifacts, self._send, self._on_stored = side, artifacts, send, stored
        self._arriving: dict[int, _Arriving] = {}
        self._counting = threading.Lock()  # of credit, in `side`
        self._workers = _workers() if artifacts.remote else None
        self.transfer = "direct" if artifacts.grants else "relay"
        """Whether all outputs so far went by grants, or some over this connection."""

    def asked(self, upload: protocol.Upload) -> None:
        """Answer a request with a grant, or with why it can't be."""
        former = next((each for each in list(self._arriving.values()) if each.upload.path == upload.path), None)
        if former is not None:
            self._end(former)
        arriving = self._arriving[upload.upload] = _Arriving(upload, self._lane(former))
        if upload.relay or not self._artifacts.grants:
            self.transfer = "relay"
        self._do(arriving, partial(self._grant, arriving, former))

    def chunk(self, received: bytes) -> None:
        """Take one binary message."""
        with self._counting:
            number, data = self._side.receive_chunk(received)
        if (arriving := self._arriving.get(number)) is not None:  # else the rest of a window, refused meanwhile
            self._do(arriving, partial(self._store, arriving, data))

    def uploaded(self, message: protocol.Uploaded) -> None:
        """All was sent: verify it, and say so."""
        if (arriving := self._arriving.get(message.upload)) is not None:
            self._do(arriving, partial(self._settle, arriving, message))

    def check(self) -> None:
        """Raise what went wrong where nobody could be told."""
        if self._workers is not None:
            self._workers.check()

    def close(self) -> None:
        """Forget what is not stored."""
        for arriving in list(self._arriving.values()):
            self._end(arriving)
            if arriving.lane is None:
                self._forget(arriving)
            else:
                arriving.lane.do(partial(self._forget, arriving))
        if self._workers is not None:
            self._workers.close(LEAVE_S)

    # inside, in the upload's lane

    def _grant(self, arriving: _Arriving, former: _Arriving | None) -> None:
        upload = arriving.upload
        if upload.relay or not self._artifacts.grants:
            if former is not None:
                self._forget(former)
            arriving.writer = self._artifacts.receive(
                upload.path, size_bytes=upload.size_bytes, digest=upload.digest, mime=upload.mime
            )
            self._tell(arriving, self._side.grant_relay(upload.upload))
            return
        arriving.grant = self._artifacts.grant(
            upload.path,
            size_bytes=upload.size_bytes,
            digest=upload.digest,
            mime=upload.mime,
            former=former.grant if former is not None else None,
        )
        self._tell(arriving, self._side.grant_direct(_direct(upload.upload, arriving.grant)))

    def _store(self, arriving: _Arriving, data: memoryview) -> None:
        assert arriving.writer is not None  # noqa: S101  the protocol's side has seen to it
        arriving.writer.write(data)
        with self._counting:
            credit = self._side.consumed(arriving.upload.upload)
        if credit:
            self._tell(arriving, credit)

    def _settle(self, arriving: _Arriving, message: protocol.Uploaded) -> None:
        upload = arriving.upload
        if arriving.writer is not None:
            arriving.writer.commit(size_bytes=upload.size_bytes, digest=upload.digest)
        elif arriving.grant is not None:
            etags = message.etags or ()
            self._artifacts.accept(
                upload.path, arriving.grant, size_bytes=upload.size_bytes, digest=upload.digest, etags=etags
            )
        self._on_stored(upload)
        self._tell(arriving, protocol.encode(protocol.Stored(upload.upload)))
        self._end(arriving)

    def _forget(self, arriving: _Arriving) -> None:
        if arriving.writer is not None:
            arriving.writer.abort()
        if arriving.grant is not None:
            self._artifacts.abandon(arriving.upload.path, arriving.grant)

    def _end(self, arriving: _Arriving) -> None:
        arriving.over = True
        self._arriving.pop(arriving.upload.upload, None)

    # where work is done

    def _lane(self, former: _Arriving | None) -> "Lane | None":
        if self._workers is None:
            return None
        if former is not None:
            return former.lane  # after what is still done for it
        from apps.processors.lanes import Lane

        return Lane(self._workers)

    def _do(self, arriving: _Arriving, work: Callable[[], None]) -> None:
        if arriving.lane is None:
            self._try(arriving, work)
        else:
            arriving.lane.do(partial(self._try, arriving, work))

    def _try(self, arriving: _Arriving, work: Callable[[], None]) -> None:
        if arriving.over:
            return
        try:
            work()
        except OperationError as error:
            self._tell(arriving, protocol.encode(protocol.Refused(arriving.upload.upload, error.words())))
            self._end(arriving)
            self._forget(arriving)

    def _tell(self, arriving: _Arriving, text: str) -> None:
        if arriving.over:
            return
        if arriving.lane is None:
            self._send(text)
            return
        from websockets.exceptions import ConnectionClosed

        try:
            self._send(text)
        except ConnectionClosed:
            arriving.over = True  # the thread that reads sees it too, and says why


def _workers() -> "Workers":
    from apps.processors.lanes import Workers  # a run on the filesystem needs no thread

    return Workers()


def _direct(number: int, grant: Grant) -> protocol.Grant:
    """The grant as it crosses the wire. It says how long it is good: the clock over there may be another's.

    That is a second less than it is: stores count whole ones.
    """
    requests = [{**request._asdict(), "headers": dict(request.headers)} for request in grant.requests]
    lifetime_s = round(max(1.0, grant.expires_at - time.time() - 1), 3)
    if grant.upload_id is None:
        return protocol.Grant(number, "direct", request=requests[0], lifetime_s=lifetime_s)
    return protocol.Grant(
        number,
        "direct",
        parts=requests,
        part_bytes=grant.part_bytes,
        upload_id=grant.upload_id,
        lifetime_s=lifetime_s,
    )
