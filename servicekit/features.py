"""Feature switches: parts of the system that may be turned off while it runs, for everybody or for a share of users.

The list below is all there are. A switch has a risky path and a way without it; it is asked at each use, so that
turning it is felt at once and needs no restart. What asks them is ``Features.on``, which never fails. Where neither the
file nor the setting says anything, the defaults hold and OpenFeature is not loaded. Settings that a deployment chooses
once are no switches: they are in each service's settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from carrel.errors import CarrelError, StartupError
from carrel.pseudonyms import hash_user
from servicekit.logs import get_logger

if TYPE_CHECKING:
    from servicekit.features_file import FileProvider

__all__ = [
    "COMPRESSED_BATCHES",
    "PERMESSAGE_DEFLATE",
    "PLACE_BY_LOAD",
    "SWITCHES",
    "Features",
    "Switch",
    "open_features",
]

_log: Final = get_logger("servicekit.features")
_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch.

    Args:
        name: As in the file and in settings.
        default: What holds where nothing is said.
        about: What it turns on.
        off: What happens instead, and what that costs.
        by_user: Whether it can be on for a share of users; others are on or off for all.
        since: The version that it came with.
        removal: The version that it goes with, and its other way with it; a test fails when that version is there.
    """

    name: str
    default: bool
    about: str
    off: str
    by_user: bool
    since: str
    removal: str


COMPRESSED_BATCHES: Final = Switch(
    "gateway.compressed_batches",
    True,
    "batches of events go out compressed to clients that ask for it",
    "they go out plain: more bytes, and less of the gateway's CPU",
    by_user=True,
    since="0.2.0",
    removal="0.5.0",
)
PERMESSAGE_DEFLATE: Final = Switch(
    "gateway.permessage_deflate",
    True,
    "the WebSocket extension permessage-deflate is agreed to when a client offers it",
    "it is declined for new connections; open ones keep it",
    by_user=False,
    since="0.2.0",
    removal="0.5.0",
)
PLACE_BY_LOAD: Final = Switch(
    "execution.place_by_load",
    True,
    "a stage goes to the agent_instance that says it has free workers",
    "stages go to the agent_instances in turn, whatever these say; busy ones let them wait",
    by_user=False,
    since="0.2.0",
    removal="0.5.0",
)
SWITCHES: Final[Mapping[str, Switch]] = {
    switch.name: switch for switch in (COMPRESSED_BATCHES, PERMESSAGE_DEFLATE, PLACE_BY_LOAD)
}


class Features:
    """What the switches are at this moment. Without arguments: their defaults.

    Args:
        file: A JSON file that is followed for changes; ``servicekit.features_file`` says what is in it.
        given: Switches by name, as the settings have them. The file goes before them.
    """

    def __init__(self, file: Path | None = None, given: Mapping[str, bool] | None = None) -> None:
        self._provider: FileProvider | None = None
        if file is not None or given:
            # Takes a tenth of a second to import; most deployments turn nothing.
            from servicekit.features_file import FileProvider

            self._provider = FileProvider(file, given or {})

    def on(self, switch: Switch, user_id: str = "") -> bool:
        """Whether it is on now.

        Args:
            switch: One of the list.
            user_id: Whom it is for; of no meaning to a switch that is on or off for all.
        """
        if self._provider is None:
            return switch.default
        return self._provider.ask(switch, hash_user(user_id) if user_id and switch.by_user else "")

    def told(self) -> dict[str, tuple[str, str]]:
        """Each switch by name: what it is in words, and where that comes from (file, environment, default)."""
        found = {name: ("on" if switch.default else "off", "default") for name, switch in SWITCHES.items()}
        return found if self._provider is None else {**found, **self._provider.told()}

    async def follow(self) -> None:
        """Look at the file every second, until cancelled. What is wrong is logged, and the last good state stays."""
        if self._provider is None or self._provider.file is None:
            return
        wrong = ""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                changed = await asyncio.to_thread(self._provider.look)
            except CarrelError as error:
                if error.message != wrong:
                    _log.error("the feature switches stay as they were", reason=error.message, advice=error.advice)
                wrong = error.message
                continue
            wrong = ""
            for name, (before, after) in changed.items():
                _log.info("a feature switch was turned", switch=name, before=before, after=after)


def open_features(file: Path | None, given: Mapping[str, bool]) -> Features:
    """The switches as the settings name them, for a service's start.

    Raises:
        StartupError: The file can't be read, or it or the setting names a switch that is none.
    """
    try:
        return Features(file, given)
    except CarrelError as error:
        raise StartupError(error.message, advice=error.advice, what="feature switches that exist") from error
