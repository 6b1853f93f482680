"""How execution's stores come by what seals their values: with the connection. The sealing itself is servicekit's."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from servicekit.sealing import PLAIN, KeySeals, PlainSeals, Seals, is_sealed, key_of

__all__ = ["OPTION", "PLAIN", "KeySeals", "PlainSeals", "Seals", "is_sealed", "key_of", "seals_of"]

OPTION: Final = "carrel_seals"
"""The execution option that an engine's connections carry their ``Seals`` in."""


def seals_of(connection: sa.Connection) -> Seals:
    """What seals the values of a connection's database."""
    found: Seals = connection.get_execution_options().get(OPTION, PLAIN)
    return found
