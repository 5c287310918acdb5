"""One output's way to the store by grants: tried again where that may help, in parts where it goes in parts."""

import asyncio
import random
import time
from typing import Any, Final

from processor_runtime import codes, direct
from processor_runtime.failures import Failure
from processor_runtime.protocol import Grant

PATIENCE_S: Final = 30.0  # from a request's first failure on: a store that is started anew is back by then
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
TAKEN: Final = 412
# Another writer of the key is not done, or the store had waited too long for us: AWS's words for 'send it again'.
AGAIN: Final = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout")
EXPIRED: Final = ("AccessDenied", "ExpiredToken", "RequestExpired", "ExpiredPresignRequest")  # among other things


class Expired(Exception):
    """The grant is good no longer: a fresh one goes on where this one ended."""


class Failed(Exception):
    """The store will not have it; `failure` ends the execution."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Delivery:
    """Brings one spooled file to the store, under as many grants as it takes."""

    def __init__(self, store: direct.Store, path: str, descriptor: int, size_bytes: int) -> None:
        self._store, self._path, self._descriptor, self._size_bytes = store, path, descriptor, size_bytes
        self._upload_id: str | None = None
        self._etags: list[str] = []
        self._failing_since: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._ends_at = 0.0
        self._doubted = False

    async def follow(self, grant: Grant) -> list[str] | None:
        """Send what is not there yet; returns the parts' ETags, None where it went in one.

        Raises Expired, Failed, and direct.Unreachable when there is no way to the store from here.
        """
        self._ends_at = time.monotonic() + grant.lifetime_s if grant.lifetime_s else float("inf")
        if grant.parts is None:
            if not isinstance(grant.request, dict):
                raise Failed(self._unusable(f"a grant by {grant.transfer!r} without a request"))
            await self._insist(grant.request, 0, self._size_bytes)
            return None
        await self._send_parts(grant)
        return self._etags

    async def _send_parts(self, grant: Grant) -> None:
        parts, size_bytes = grant.parts or [], grant.part_bytes
        if size_bytes < 1 or len(parts) != -(-self._size_bytes // size_bytes):
            raise Failed(self._unusable(f"{len(parts)} parts of {size_bytes} bytes"))
        if grant.upload_id != self._upload_id:
            self._upload_id, self._etags = grant.upload_id, []
        for number in range(len(self._etags), len(parts)):
            if number and time.monotonic() > self._ends_at:
                raise Expired
            offset = number * size_bytes
            answer = await self._insist(parts[number], offset, min(size_bytes, self._size_bytes - offset))
            self._etags.append(answer.etag)

    async def _insist(self, request: dict[str, Any], offset: int, size_bytes: int) -> direct.Answer:
        """Send one request until the store has taken it."""
        piece = direct.Piece(self._descriptor, offset, size_bytes)
        while True:
            try:
                answer = await self._store.send(request, piece)
            except direct.Unreachable as exc:
                await self._wait_or(exc, reached=self._store.reached)
            except direct.NoAnswer as exc:
                await self._wait_or(Failed(self._failure(codes.STORAGE, f"the store did not answer: {exc}")))
            except (ValueError, KeyError, TypeError) as exc:
                raise Failed(self._unusable(str(exc))) from exc
            else:
                # Taken: by an earlier try whose answer was lost, or before. The controller looks what is there.
                if 200 <= answer.status < 300 or answer.status == TAKEN:
                    self._failing_since, self._pause_s = None, FIRST_PAUSE_S
                    return answer
                await self._answered(answer)

    async def _answered(self, answer: direct.Answer) -> None:
        """What another answer than 'taken' means."""
        if answer.status >= 500 or answer.code in AGAIN:
            await self._wait_or(Failed(self._failure(codes.STORAGE, f"the store answered {_said(answer)}", answer)))
        elif answer.status == 403 and time.monotonic() > self._ends_at:
            await self._wait_or(Expired())
        elif answer.code in EXPIRED and not self._doubted:  # by a clock that went on while this machine slept
            self._doubted = True
            raise Expired
        elif answer.code == "NoSuchBucket":
            raise Failed(self._failure(codes.STORAGE, "the bucket is gone", answer))
        else:
            raise Failed(self._failure(codes.UPLOAD, f"the store answered {_said(answer)}", answer))

    async def _wait_or(self, end: Exception, *, reached: bool = True) -> None:
        """Pause before the next try; raises `end` once there was patience enough, Expired when a grant must be had."""
        now, patience_s = time.monotonic(), PATIENCE_S if reached else FIRST_PAUSE_S
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since >= patience_s:
            raise end
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1))  # noqa: S311  so that not all come at once
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
        if time.monotonic() > self._ends_at:
            raise Expired

    def _failure(self, code: str, why: str, answer: direct.Answer | None = None) -> Failure:
        details: dict[str, Any] = {"path": self._path, "status": answer.status if answer else None}
        hint = ""
        if answer and answer.code:
            details["store_code"] = answer.code
        if answer and answer.status == 403:
            hint = "see that this machine's clock and the store's agree"
        return Failure(code, f"the upload of {self._path!r} failed: {why}", hint, details)

    def _unusable(self, why: str) -> Failure:
        return self._failure(codes.UPLOAD, f"the grant can't be followed: {why}")


def _said(answer: direct.Answer) -> str:
    return f"{answer.status} {answer.code}".rstrip()
