"""Artifacts on their way in: chunks put together within bounds, then stored and recorded, or answered with an error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from carrel.errors import (
    CarrelError,
    InvalidRequestError,
    QueueFullError,
    RunEndedError,
    TooLargeError,
    UnavailableError,
)
from services.execution.domain.ports import ArtifactChunk, ArtifactStored
from services.execution.models import ArtifactRecord, Micros, RunRef, UserKey
from services.execution.store import ArtifactFolder, RunStore

__all__ = ["ArtifactLimits", "Uploads", "check_artifact_name", "remove_unused", "store_artifact"]

# What can stand in a URL's last part and be a file's name on every system: a letter or digit first, no separator.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()+@=,-]{0,254}")
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(\s*;\s*[\w.-]+=[\w.\"-]+)*")
_MAX_OPEN: Final = 8


@dataclass(frozen=True, slots=True)
class ArtifactLimits:
    """Bytes of one artifact and of all of a user's, how long one is kept, and how many one run may have."""

    max_bytes: int = 8 * 1024 * 1024
    quota: int = 256 * 1024 * 1024
    retention_s: float = 30 * 86_400.0
    per_run: int = 200


def check_artifact_name(name: str, media_type: str) -> None:
    """Raises:
    InvalidRequestError: The name or the media type has another form.
    """
    if not _NAME.fullmatch(name) or name != name.strip() or ".." in name:
        raise InvalidRequestError(
            "an artifact's name is 1 to 255 letters, digits, spaces and ._()+@=,- without '..'",
            fields={"name": "give it a plain file name"},
        )
    if len(media_type) > 255 or not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidRequestError(
            "the artifact's media type has not the form type/subtype", fields={"media_type": "for example text/csv"}
        )


async def store_artifact(
    store: RunStore,
    folder: ArtifactFolder,
    ref: RunRef,
    limits: ArtifactLimits,
    now: Micros,
    content: tuple[str, str, bytes],
) -> ArtifactRecord:
    """Store name, media type and bytes for a run: first the file, then the row that makes it count.

    Raises:
        QuotaError: The user's artifacts would take too much, or the run has as many as it may.
        RunEndedError: The run is over, or somebody newer holds it.
        StoreUnavailableError: The folder or the database can't be written.
    """
    name, media_type, data = content
    former = await store.get_artifact(ref.user, ref.run_id, name)
    digest = await folder.put(ref.user, ref.run_id, data)
    record = ArtifactRecord(ref.run_id, name, media_type, len(data), digest, now)
    kept = False
    try:
        kept = await store.save_artifact(ref, record, limits.quota, limits.per_run)
    finally:
        if not kept:
            await remove_unused(store, folder, ref.user, ref.run_id, digest)
    if not kept:
        raise RunEndedError("the run has ended; nothing can be added to it")
    if former is not None and former.sha256 != digest:
        await remove_unused(store, folder, ref.user, ref.run_id, former.sha256)
    return record


async def remove_unused(store: RunStore, folder: ArtifactFolder, user: UserKey, run_id: str, digest: str) -> None:
    """Remove a file unless another artifact of the run has the same content. A store that is away keeps the file."""
    with contextlib.suppress(UnavailableError):
        run = await store.get_run(user, run_id)
        if run is None or all(artifact.sha256 != digest for artifact in run.artifacts):
            await folder.remove(user, run_id, digest)


@dataclass(slots=True)
class _Upload:
    name: str
    media_type: str
    data: bytearray = field(default_factory=bytearray)
    refused: bool = False


class Uploads:
    """The uploads of one attempt."""

    def __init__(
        self,
        store: RunStore,
        folder: ArtifactFolder,
        ref: RunRef,
        limits: ArtifactLimits,
        clock: Callable[[], Micros],
    ) -> None:
        self._store = store
        self._folder = folder
        self._ref = ref
        self._limits = limits
        self._clock = clock
        self._open: dict[str, _Upload] = {}

    async def take(self, chunk: ArtifactChunk) -> ArtifactStored | None:
        """Take a chunk; the answer, once there is one: after the last chunk, or at the first that breaks a bound."""
        try:
            upload = self._add(chunk)
            if upload is None or not chunk.last:
                return None
            content = (upload.name, upload.media_type, bytes(upload.data))
            record = await store_artifact(self._store, self._folder, self._ref, self._limits, self._clock(), content)
            return ArtifactStored(chunk.upload_id, record)
        except CarrelError as error:
            return ArtifactStored(chunk.upload_id, error=error.to_dict())

    def _add(self, chunk: ArtifactChunk) -> _Upload | None:
        upload = self._open.get(chunk.upload_id) or self._begin(chunk)
        if chunk.last:
            self._open.pop(chunk.upload_id, None)
        if upload.refused:  # answered already; the rest of its chunks was on the way
            return None
        if len(upload.data) + len(chunk.data) > self._limits.max_bytes:
            upload.refused, upload.data = True, bytearray()
            raise TooLargeError(
                f"the artifact is larger than {self._limits.max_bytes} bytes",
                advice="split it, or store less",
                limit="artifact_max_bytes",
                limit_value=self._limits.max_bytes,
            )
        upload.data += chunk.data
        return upload

    def _begin(self, chunk: ArtifactChunk) -> _Upload:
        if len(self._open) >= _MAX_OPEN:
            raise QueueFullError(
                f"more than {_MAX_OPEN} artifacts are on their way at once",
                advice="put one after the other",
                limit="artifact_uploads",
                limit_value=_MAX_OPEN,
                use=len(self._open),
            )
        upload = _Upload(chunk.name, chunk.media_type or "application/octet-stream")
        if not chunk.last:
            self._open[chunk.upload_id] = upload
        try:
            check_artifact_name(upload.name, upload.media_type)
        except CarrelError:
            upload.refused = True
            raise
        return upload
