"""``ArtifactDesk``: one run's artifacts on their way from a worker, or from the host itself, up to execution.

Bytes pass through in pieces and are not kept here; execution stores them, and answers each upload with its reference.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from carrel.errors import (
    CarrelError,
    InvalidRequestError,
    LimitExceededError,
    ProtocolError,
    StoreUnavailableError,
    TooLargeError,
)
from services.agent_instance.models import ChunkUp, StoredArtifact

__all__ = ["MAX_ARTIFACT_BYTES", "MAX_CHUNK_BYTES", "ArtifactDesk", "artifact_url", "check_artifact"]

MAX_ARTIFACT_BYTES: Final = 8 * 1024 * 1024
MAX_CHUNK_BYTES: Final = 256 * 1024
# Execution takes 8 of a run at once; one place is the host's own, for what is too large to travel.
MAX_WORKER_UPLOADS: Final = 7
_MEDIA_TYPE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}(;[ -~]{0,64})?"
)


def artifact_url(run_id: str, name: str) -> str:
    """Where the run's owner reads it, at the gateway."""
    return f"/api/runs/{quote(run_id, safe='')}/artifacts/{quote(name, safe='')}"


def check_artifact(name: object, media_type: object) -> None:
    """Check an artifact's name and media type.

    Raises:
        InvalidRequestError: The name is not 1 to 255 bytes of text without path separators and control
            characters, or is ``.`` or ``..``; or the media type is not one.
    """
    problem = ""
    if not isinstance(name, str) or not name or len(name.encode("utf-8", "replace")) > 255:
        problem = "must be 1 to 255 bytes of text"
    elif name in (".", "..") or any(c in "/\\" or not c.isprintable() for c in name):
        problem = "may hold neither path separators nor control characters, nor be '.' or '..'"
    if problem:
        raise InvalidRequestError(f"an artifact's name {problem}", fields={"name": problem})
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        problem = "must be a media type such as text/markdown or image/svg+xml"
        raise InvalidRequestError(f"an artifact's media_type {problem}", fields={"media_type": problem})


@dataclass(slots=True)
class _Upload:
    upload_id: str
    name: str
    media_type: str
    size: int = 0
    sent_first: bool = False
    hash: Any = field(default_factory=hashlib.sha256)
    answer: asyncio.Future[StoredArtifact] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ArtifactDesk:
    """Takes artifacts apart into pieces, sends them up, and hands the answers to who waits for them.

    Args:
        send: Sends one piece up; waits while the stream is slow.
        timeout_s: How long execution may take to answer.
    """

    def __init__(
        self,
        send: Callable[[ChunkUp], Awaitable[None]],
        *,
        max_bytes: int = MAX_ARTIFACT_BYTES,
        timeout_s: float = 30.0,
    ) -> None:
        self._send = send
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._uploads: dict[str, _Upload] = {}
        self._number = 0
        self._own = asyncio.Lock()

    @property
    def open_uploads(self) -> int:
        """Uploads that are not answered yet."""
        return len(self._uploads)

    async def put(self, name: str, media_type: str, data: bytes) -> StoredArtifact:
        """Store whole bytes of the host's; one at a time.

        Raises:
            InvalidRequestError: The name or the media type is wrong.
            TooLargeError: More than ``max_bytes``.
            StoreUnavailableError: No answer in time.
            CarrelError: What execution answered.
        """
        async with self._own:
            self._check(name, media_type, len(data))
            upload_id = self._add(name, media_type)
            try:
                for start in range(0, max(len(data), 1), MAX_CHUNK_BYTES):
                    piece = data[start : start + MAX_CHUNK_BYTES]
                    await self.piece(upload_id, piece, last=start + MAX_CHUNK_BYTES >= len(data))
                return await self.stored(upload_id)
            finally:
                self._uploads.pop(upload_id, None)

    def begin(self, name: str, media_type: str, *, size: int = 0) -> str:
        """Open a worker's upload, whose pieces follow.

        Raises:
            InvalidRequestError: The name or the media type is wrong.
            TooLargeError: ``size`` is known and too much.
            LimitExceededError: Too many uploads of this run at once.
        """
        self._check(name, media_type, size)
        use = len(self._uploads) - self._own.locked()
        if use >= MAX_WORKER_UPLOADS:
            raise LimitExceededError(
                "the run stores too many artifacts at once",
                advice="wait for some of them before storing more",
                limit="artifact_uploads",
                limit_value=MAX_WORKER_UPLOADS,
                use=use,
            )
        return self._add(name, media_type)

    async def piece(self, upload_id: str, data: bytes, *, last: bool) -> None:
        """Send the next piece.

        Raises:
            ProtocolError: No such upload, or the piece is too large.
            TooLargeError: The artifact is.
        """
        upload = self._uploads.get(upload_id)
        if upload is None or len(data) > MAX_CHUNK_BYTES:
            raise ProtocolError("a piece of an artifact that was not begun, or over its bound")
        upload.size += len(data)
        self._check_size(upload.name, upload.size)
        upload.hash.update(data)
        name, media_type = ("", "") if upload.sent_first else (upload.name, upload.media_type)
        upload.sent_first = True
        await self._send(ChunkUp(upload_id, data, last, name, media_type))

    def abandon(self, upload_id: str) -> None:
        """Nobody waits for this upload any more."""
        self._uploads.pop(upload_id, None)

    async def stored(self, upload_id: str) -> StoredArtifact:
        """Wait for execution's answer to an upload whose last piece is sent.

        Raises:
            StoreUnavailableError: No answer in time.
            CarrelError: What execution answered.
        """
        upload = self._uploads[upload_id]
        try:
            async with asyncio.timeout(self._timeout_s):
                stored = await upload.answer
        except TimeoutError:
            raise StoreUnavailableError(
                f"artifact {upload.name} was not stored within {self._timeout_s:g} s", advice="try again"
            ) from None
        finally:
            self._uploads.pop(upload_id, None)
        if stored.sha256 and stored.sha256 != upload.hash.hexdigest():
            raise StoreUnavailableError(f"artifact {upload.name} was stored with other bytes", advice="try again")
        return stored

    def answered(self, upload_id: str, answer: StoredArtifact | CarrelError) -> None:
        """Execution's answer. One for an upload that nobody waits for any more is ignored."""
        upload = self._uploads.get(upload_id)
        if upload is None or upload.answer.done():
            return
        if isinstance(answer, CarrelError):
            upload.answer.set_exception(answer)
            # Who waits may be gone by now; then nobody else would look at it.
            upload.answer.exception()
        else:
            upload.answer.set_result(answer)

    def _add(self, name: str, media_type: str) -> str:
        self._number += 1
        upload_id = f"up-{self._number}"
        self._uploads[upload_id] = _Upload(upload_id, name, media_type)
        return upload_id

    def _check(self, name: str, media_type: str, size: int) -> None:
        check_artifact(name, media_type)
        self._check_size(name, size)

    def _check_size(self, name: str, size: int) -> None:
        if size > self._max_bytes:
            raise TooLargeError(
                f"artifact {name} is larger than {self._max_bytes} bytes",
                advice="store it in several artifacts",
                limit="artifact_max_bytes",
                limit_value=self._max_bytes,
                use=size,
            )
