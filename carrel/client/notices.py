"""What a stream of events says about itself, as values: resets, gaps, how runs stand, the end of a connection.

Not events: those are the log's. Made from the gateway's control frames; docs/protocol.md says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from carrel.client.models import Position, RunState

__all__ = ["Bye", "Gap", "Notice", "Reset", "RunStatus", "notice_of"]


@dataclass(frozen=True, slots=True)
class Notice:
    """A control frame that answers no command; ``kind`` is its ``type`` and ``body`` all of it."""

    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reset(Notice):
    """The position is not one of the log any more: what follows begins after ``position``, and may leave events out.

    Whatever was read beyond ``position`` under another epoch may not be in the log. Entries that were given before are
    not given again, unless the client was made with ``repeat``.
    """

    @property
    def reason(self) -> str:
        """``epoch_changed``, ``trimmed``, ``beyond_top`` or ``event_mismatch``."""
        return str(self.body.get("reason") or "")

    @property
    def position(self) -> Position:
        """Where the stream goes on; its ``event_id`` is empty where the gateway does not say it."""
        return Position(
            str(self.body.get("epoch") or ""), _int(self.body.get("offset")), str(self.body.get("event_id") or "")
        )


@dataclass(frozen=True, slots=True)
class Gap(Notice):
    """Entries ``first`` to ``last`` do not come.

    ``announced`` is False when the gateway did not say so itself: offsets jumped, and did so again after the client had
    come back to ask for what was missing.
    """

    @property
    def first(self) -> int:
        """The first offset that is missing."""
        return _int(self.body.get("from"))

    @property
    def last(self) -> int:
        """The last one."""
        return _int(self.body.get("to"))

    @property
    def announced(self) -> bool:
        """Whether the gateway said so itself."""
        return self.body.get("announced") is not False


@dataclass(frozen=True, slots=True)
class RunStatus(Notice):
    """How a run stands; comes after a reset for each run that is unended, or ended within a day."""

    @property
    def run_id(self) -> str:
        """The run."""
        return str(self.body.get("run_id") or "")

    @property
    def status(self) -> str:
        """As in ``GET /api/runs/{run_id}``."""
        return str(self.body.get("status") or "")

    @property
    def terminal(self) -> bool:
        """Whether it has ended; its last event may still be on its way."""
        return self.status in RunState.__members__ and RunState(self.status).terminal


@dataclass(frozen=True, slots=True)
class Bye(Notice):
    """The gateway ends the connection."""

    @property
    def code(self) -> int:
        """The close code that follows."""
        return _int(self.body.get("code"))

    @property
    def reason(self) -> str:
        """Its name."""
        return str(self.body.get("reason") or "")

    @property
    def reconnect(self) -> bool:
        """Whether coming back can help."""
        return self.body.get("reconnect") is not False

    @property
    def retry_s(self) -> float:
        """Seconds to wait before coming back."""
        value = self.body.get("retry_ms")
        wanted = float(value) / 1000 if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
        return min(max(wanted, 0.0), _LONGEST_RETRY_S)


# A number that is no promise of the protocol: whoever asks for more than this is wrong or hostile.
_LONGEST_RETRY_S: Final = 3600.0
_KINDS: Final[Mapping[str, Callable[[str, Mapping[str, Any]], Notice]]] = {
    "reset": Reset,
    "gap": Gap,
    "run_state": RunStatus,
    "bye": Bye,
}


def notice_of(frame: Mapping[str, Any]) -> Notice:
    """The control frame as a value of its kind."""
    kind = str(frame.get("type"))
    return _KINDS.get(kind, Notice)(kind, frame)


def _int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
