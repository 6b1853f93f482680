"""The bytes of artifacts in a folder. Which of them count is the run store's to say.

A path is made of hashes of the user, the run and the content: no name that a client or an agent chose is ever part of
one, and the same bytes put twice are one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from carrel.errors import CorruptStoreError, StoreUnavailableError
from services.execution.models import UserKey
from services.execution.store_sealing import PLAIN, Seals

__all__ = ["FIELD", "LocalArtifactFolder", "open_artifact"]

_T = TypeVar("_T")
FIELD: Final = "artifact.bytes"


class LocalArtifactFolder:
    """``ArtifactFolder`` on a local disk.

    Args:
        root: The folder.
        seals: Seals the files' contents, bound to the names of the folders that they are in. The files' own names are
            hashes of what is in them, which whoever knows a content can compare.
    """

    def __init__(self, root: Path, seals: Seals = PLAIN) -> None:
        self._root = root
        self._seals = seals

    async def put(self, user: UserKey, run_id: str, data: bytes) -> str:
        """See ``ArtifactFolder``."""
        return await _in_thread(lambda: self._put(self._folder(user, run_id), data, self._seals))

    async def read(self, user: UserKey, run_id: str, sha256: str) -> bytes:
        """See ``ArtifactFolder``."""
        return await _in_thread(lambda: self._read(self._folder(user, run_id) / sha256, sha256, self._seals))

    async def remove(self, user: UserKey, run_id: str, sha256: str) -> None:
        """See ``ArtifactFolder``."""
        await _in_thread(lambda: (self._folder(user, run_id) / sha256).unlink(missing_ok=True))

    async def remove_run(self, user: UserKey, run_id: str) -> None:
        """See ``ArtifactFolder``."""
        await _in_thread(lambda: shutil.rmtree(self._folder(user, run_id), ignore_errors=True))

    async def probe(self) -> None:
        """See ``ArtifactFolder``."""
        await _in_thread(self._probe)

    def _folder(self, user: UserKey, run_id: str) -> Path:
        return self._root / _hashed(user) / _hashed(run_id)

    def _probe(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        trial = self._root / f".probe-{secrets.token_hex(4)}"
        try:
            trial.write_bytes(b"carrel")
        finally:
            trial.unlink(missing_ok=True)

    @staticmethod
    def _put(folder: Path, data: bytes, seals: Seals) -> str:
        digest = hashlib.sha256(data).hexdigest()
        data = seals.seal(FIELD, folder.parent.name, folder.name, data)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f".{digest}.{secrets.token_hex(4)}"
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(folder / digest)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        return digest

    @staticmethod
    def _read(path: Path, sha256: str, seals: Seals) -> bytes:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptStoreError("the artifact's file is gone", sha256=sha256) from None
        opened = open_artifact(seals, path.parent.parent.name, path.parent.name, data, sha256)
        if opened is None:
            raise CorruptStoreError("the artifact's file has changed", sha256=sha256)
        return opened


def open_artifact(seals: Seals, user: str, run: str, data: bytes, sha256: str) -> bytes | None:
    """The bytes of an artifact, which may be plain or sealed; None when they are not those of the hash.

    Raises:
        StoreUnavailableError: Their key is not here.
        CorruptStoreError: They do not open.
    """
    # Plain bytes of an artifact may be anything, also what looks sealed: the hash says what they are.
    if hashlib.sha256(data).hexdigest() == sha256:
        return data
    opened = seals.open(FIELD, user, run, data)
    return opened if hashlib.sha256(opened).hexdigest() == sha256 else None


def _hashed(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:40]


async def _in_thread(work: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise StoreUnavailableError(
            f"the artifact folder cannot be used: {os.strerror(error.errno or 0)}",
            advice="make the folder writable and see that its disk has room",
            retry_after_s=1.0,
        ) from error
