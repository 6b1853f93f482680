"""Which keys an event log's entries may be sealed with: marked in the log itself, so that a missing one is found at the
start, and not by the first user whose entries cannot be opened.

A mark is an entry in the log of a user that nobody can be, sealed with the key that it stands for. It is written when a
process begins to seal with the key, and again and again while it does; so it is trimmed when what it stands for is.
Entries of before there were marks have none.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final

from carrel.errors import CarrelError, CorruptStoreError, InvalidConfigurationError, StoreUnavailableError
from servicekit.logs import get_logger
from servicekit.sealing import KeySeals, Seals, key_of
from services.bridge.models import Append, Entry, StoredEvent
from services.bridge.store import EventLog

__all__ = ["SealingMarks"]

_log: Final = get_logger("services.bridge.sealing")
# No user's id holds a space.
_NOBODY: Final = "(encryption keys)"
_FIELD: Final = "log.key_mark"
_PROVED: Final = b"carrel"
_PAGE: Final = 1000
_EVERY_S: Final = 3600.0
_LOOK_S: Final = 10.0


class SealingMarks:
    """The marks in one log.

    Args:
        log: The log itself, not what seals it.
        seals: What its entries are sealed with.
        max_age_s: How long entries are kept: older marks say nothing any more.
        clock: Wall clock in seconds.
    """

    def __init__(
        self, log: EventLog, seals: Seals, max_age_s: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = log
        self._seals = seals
        self._max_age_s = max_age_s
        self._clock = clock
        self._marked = ("", 0.0)

    async def check(self) -> None:
        """See whether every key is here that entries may be sealed with.

        Raises:
            InvalidConfigurationError: One is missing, or is another key under the same name.
            StoreUnavailableError: The log cannot be read.
        """
        newest: dict[str, tuple[float, Entry]] = {}
        after = 0
        while entries := (await self._store.read(_NOBODY, after, _PAGE)).entries:
            newest.update((key_of(entry.blob), (_time_of(entry.event_id), entry)) for entry in entries)
            after = entries[-1].offset
        for kid, (at, entry) in newest.items():
            if at + self._max_age_s > self._clock():
                self._open(kid, entry, at + self._max_age_s)

    def _open(self, kid: str, entry: Entry, until: float) -> None:
        ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(until))
        try:
            _ = self._seals.open(_FIELD, _NOBODY, entry.event_id, entry.blob)
        except StoreUnavailableError:
            raise InvalidConfigurationError(
                f"the event log holds entries that are sealed with the key {kid!r}, which is not here",
                advice=f"put the key {kid!r} into the file that CARREL_BRIDGE_ENCRYPTION__KEY_FILE names; it is needed"
                f" until {ends}, when the last of these entries is trimmed. If it is lost, so are they: begin another"
                " log (CARREL_BRIDGE_LOG__PATH, CARREL_BRIDGE_LOG__PREFIX), or start after that time",
                key_id=kid,
            ) from None
        except CorruptStoreError:
            raise InvalidConfigurationError(
                f"the key {kid!r} in the key file is not the one that entries of the event log are sealed with",
                advice="restore the key file of before, and give a new key a name of its own",
                key_id=kid,
            ) from None

    async def mark(self) -> None:
        """Mark the newest key, if that was not done lately.

        Raises:
            StoreUnavailableError: The log cannot be written.
        """
        if not isinstance(self._seals, KeySeals):
            return
        kid, now = self._seals.keys.newest()[0], self._clock()
        known, at = self._marked
        if kid == known and at <= now < at + min(_EVERY_S, self._max_age_s / 4):
            return
        name = f"key-{int(now * 1000)}-{secrets.token_hex(8)}"
        event = StoredEvent(name, self._seals.seal(_FIELD, _NOBODY, name, _PROVED))
        # A run of its own that has ended: nothing of it is kept but the entry.
        _ = await self._store.append([Append(_NOBODY, name, name, name, 1, 1, (event,), terminal=True)])
        self._marked = kid, now

    async def keep(self) -> None:
        """Go on marking, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.mark()
            except CarrelError as error:
                _log.warning("the encryption key in use cannot be marked in the log", code=error.code)


def _time_of(event_id: str) -> float:
    return int(event_id.split("-")[1]) / 1000
