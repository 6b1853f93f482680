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
from typing import TypeVar

from carrel.errors import CorruptStoreError, StoreUnavailableError
from services.execution.models import UserKey

__all__ = ["LocalArtifactFolder"]

_T = TypeVar("_T")


class LocalArtifactFolder:
    """``ArtifactFolder`` on a local disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, user: UserKey, run_id: str, data: bytes) -> str:
        """See ``ArtifactFolder``."""
        return await _in_thread(lambda: self._put(self._folder(user, run_id), data))

    async def read(self, user: UserKey, run_id: str, sha256: str) -> bytes:
        """See ``ArtifactFolder``."""
        return await _in_thread(lambda: self._read(self._folder(user, run_id) / sha256, sha256))

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
    def _put(folder: Path, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
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
    def _read(path: Path, sha256: str) -> bytes:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptStoreError("the artifact's file is gone", sha256=sha256) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptStoreError("the artifact's file has changed", sha256=sha256)
        return data


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
