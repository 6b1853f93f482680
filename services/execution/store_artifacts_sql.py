"""The bytes of artifacts in the run store's own database, so that processes on several machines need no shared folder.

A row holds at most what an artifact may (8 MiB by default) and is read and written whole, out of line (TOAST).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from carrel.errors import CorruptStoreError
from services.execution.models import UserKey
from services.execution.store_artifacts import FIELD, open_artifact
from services.execution.store_sealing import PLAIN, Seals
from services.execution.store_sql_database import Database
from services.execution.tables import artifact_bytes

__all__ = ["SqlArtifactFolder"]

_P: Final = sa.bindparam
_RUN: Final = sa.and_(artifact_bytes.c.user_id == _P("u"), artifact_bytes.c.run_id == _P("run"))
_ONE: Final = sa.and_(_RUN, artifact_bytes.c.sha256 == _P("digest"))
_PUT: Final = insert(artifact_bytes).on_conflict_do_nothing()
_READ: Final = sa.select(artifact_bytes.c.data).where(_ONE)
_REMOVE: Final = artifact_bytes.delete().where(_ONE)
_REMOVE_RUN: Final = artifact_bytes.delete().where(_RUN)


class SqlArtifactFolder:
    """``ArtifactFolder`` in PostgreSQL. The database is the run store's to close."""

    def __init__(self, database: Database, seals: Seals = PLAIN) -> None:
        self._database = database
        self._seals = seals

    async def put(self, user: UserKey, run_id: str, data: bytes) -> str:
        """See ``ArtifactFolder``."""
        digest = hashlib.sha256(data).hexdigest()
        stored = self._seals.seal(FIELD, user, run_id, data)
        row = {"user_id": user, "run_id": run_id, "sha256": digest, "data": stored}
        await self._write(user, _PUT, row)
        return digest

    async def read(self, user: UserKey, run_id: str, sha256: str) -> bytes:
        """See ``ArtifactFolder``."""
        key = {"u": user, "run": run_id, "digest": sha256}
        data: bytes | None = await self._database.read(lambda connection: connection.execute(_READ, key).scalar())
        if data is None:
            raise CorruptStoreError("the artifact's bytes are gone", sha256=sha256)
        opened = open_artifact(self._seals, user, run_id, bytes(data), sha256)
        if opened is None:
            raise CorruptStoreError("the artifact's bytes have changed", sha256=sha256)
        return opened

    async def remove(self, user: UserKey, run_id: str, sha256: str) -> None:
        """See ``ArtifactFolder``."""
        await self._write(user, _REMOVE, {"u": user, "run": run_id, "digest": sha256})

    async def remove_run(self, user: UserKey, run_id: str) -> None:
        """See ``ArtifactFolder``."""
        await self._write(user, _REMOVE_RUN, {"u": user, "run": run_id})

    async def probe(self) -> None:
        """See ``ArtifactFolder``: it is the run store's database, which has a probe of its own."""

    async def _write(self, user: UserKey, statement: sa.Insert | sa.Delete, row: dict[str, Any]) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(statement, row)

        await self._database.write(work, user)
