"""Which keys a database's values may be sealed with: kept there with a proof, so that a missing or wrong key is found
at the start, before anything is read or written. As operations of one transaction each.
"""

from __future__ import annotations

import os
from typing import Final

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from carrel.errors import InvalidConfigurationError
from carrel.ids import new_id
from services.execution.migrations import demand_readers, release_readers
from services.execution.models import OPERATOR, AuditEntry
from services.execution.store_sealing import KeySeals, seals_of
from services.execution.tables import DbNow, sealing_keys

__all__ = ["check_keys", "forget_keys", "register_keys"]

_KNOWN: Final = sa.select(sealing_keys.c.key_id, sealing_keys.c.proof)
_IDS: Final = sa.select(sealing_keys.c.key_id)
_NONCE: Final = 12
_SEALED_SINCE: Final = "0005"
_PROVED: Final = b"carrel"


def check_keys(connection: sa.Connection) -> tuple[AuditEntry, ...]:
    """Compare the keys that are here with those that values may be sealed with, and keep the new ones.

    Raises:
        InvalidConfigurationError: One is missing, or is another key under the same name.
    """
    seals = seals_of(connection)
    keys = dict(seals.keys.items()) if isinstance(seals, KeySeals) else {}
    for row in connection.execute(_KNOWN).all():
        key = keys.get(row.key_id)
        if key is None:
            raise InvalidConfigurationError(
                f"the run store may hold values that are sealed with the key {row.key_id!r}, which is not here",
                advice=f"put the key {row.key_id!r} into the file that CARREL_EXECUTION_ENCRYPTION__KEY_FILE names; to "
                "do without it, run `carrel reencrypt` while it is still there",
                key_id=row.key_id,
            )
        if not _is_proof(row.proof, row.key_id, key):
            raise InvalidConfigurationError(
                f"the key {row.key_id!r} in the key file is not the one that values in the run store are sealed with",
                advice="restore the key file of before, and give a new key a name of its own",
                key_id=row.key_id,
            )
    return register_keys(connection)


def register_keys(connection: sa.Connection) -> tuple[AuditEntry, ...]:
    """Keep proofs of keys that are new; a record of each for the audit trail."""
    seals = seals_of(connection)
    if not isinstance(seals, KeySeals):
        return ()
    known = set(connection.execute(_IDS).scalars())
    fresh = [(kid, key) for kid, key in seals.keys.items() if kid not in known]
    if not fresh:
        return ()
    now = int(connection.execute(sa.select(DbNow())).scalar_one())
    for kid, key in fresh:
        row = {"key_id": kid, "proof": _proof(kid, key), "created_at": now}
        if connection.dialect.name == "sqlite":
            connection.execute(sealing_keys.insert().prefix_with("OR IGNORE"), row)
        else:
            from sqlalchemy.dialects.postgresql import insert

            connection.execute(insert(sealing_keys).on_conflict_do_nothing(), row)
    # A process of before would hand sealed values out as they are.
    demand_readers(connection, _SEALED_SINCE)
    return tuple(_record("encryption.key_added", kid, now) for kid, _ in fresh)


def forget_keys(connection: sa.Connection, *, but: str) -> tuple[AuditEntry, ...]:
    """Forget every key but one (or all, for the empty name): no value is sealed with them any more."""
    gone = [kid for kid in connection.execute(_IDS).scalars() if kid != but]
    now = int(connection.execute(sa.select(DbNow())).scalar_one())
    connection.execute(sealing_keys.delete().where(sealing_keys.c.key_id != but))
    if not but:
        release_readers(connection)
    return tuple(_record("encryption.key_retired", kid, now) for kid in gone)


def _proof(kid: str, key: AESGCM) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + key.encrypt(nonce, _PROVED, b"carrel-key-proof\0" + kid.encode())


def _is_proof(proof: bytes, kid: str, key: AESGCM) -> bool:
    proof = bytes(proof)
    try:
        return key.decrypt(proof[:_NONCE], proof[_NONCE:], b"carrel-key-proof\0" + kid.encode()) == _PROVED
    except (InvalidTag, ValueError):
        return False


def _record(action: str, kid: str, now: int) -> AuditEntry:
    return AuditEntry.outside_runs(new_id("aud"), OPERATOR, action, kid, now)
