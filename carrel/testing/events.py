"""``Events``: what a run has told its user, and assertions over it that say what was there instead."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, overload
from urllib.parse import quote

from carrel.client.models import Event

__all__ = ["Events", "assert_no_secret"]

_MIN_SECRET: Final = 4
_SHOWN: Final = 100


class Events(Sequence[Event]):
    """Events in the order of the user's log. A run's own grow while it goes on; a slice and ``of`` are copies."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self._events = list(events)
        self._waiting: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Events: ...
    def __getitem__(self, index: int | slice) -> Event | Events:
        return Events(self._events[index]) if isinstance(index, slice) else self._events[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __repr__(self) -> str:
        return "Events(\n" + self.listing() + "\n)"

    def append(self, event: Event) -> None:
        """One more has been told."""
        self._events.append(event)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    def grown(self) -> asyncio.Future[None]:
        """Done as soon as one more has been told."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return waiting

    @property
    def kinds(self) -> list[str]:
        """The events' types, in order."""
        return [event.event_type for event in self._events]

    @property
    def text(self) -> str:
        """What ``agent_message`` events have said, pieces joined, one line for each message."""
        messages: dict[str, str] = {}
        for event in self.of("agent_message"):
            key, data = str(event.data.get("message_id", "")), event.data
            messages[key] = str(data["text"]) if "text" in data else messages.get(key, "") + str(data.get("delta", ""))
        return "\n".join(messages.values())

    def of(self, kind: str, *, agent: str | None = None, **data: Any) -> Events:
        """Those of this type, of this agent, whose data has these values."""
        return Events(
            [
                event
                for event in self._events
                if event.event_type == kind
                and agent in (None, event.agent_name)
                and all(name in event.data and event.data[name] == value for name, value in data.items())
            ]
        )

    def one(self, kind: str, *, agent: str | None = None, **data: Any) -> Event:
        """The only one of these.

        Raises:
            AssertionError: There is none, or more than one.
        """
        found = self.of(kind, agent=agent, **data)
        if len(found) != 1:
            wanted = ", ".join([kind, *(f"{name}={value!r}" for name, value in data.items())])
            raise AssertionError(f"{len(found)} events are {wanted}, not one. There were:\n{self.listing()}")
        return found[0]

    def assert_order(self, *kinds: str) -> None:
        """These types come in this order; others may come between.

        Raises:
            AssertionError: One is missing after those before it.
        """
        place, marks = 0, dict[int, str]()
        for number, kind in enumerate(kinds):
            rest = self.kinds[place:]
            if kind not in rest:
                after = f" after {kinds[number - 1]}" if number else ""
                met = f"met so far: {', '.join(kinds[:number]) or 'none'}"
                raise AssertionError(f"no {kind}{after} ({met}). There were:\n{self.listing(marks)}")
            place += rest.index(kind) + 1
            marks[place - 1] = "→"

    def assert_kinds(self, *kinds: str) -> None:
        """Exactly these types, in this order.

        Raises:
            AssertionError: They differ; the message shows where.
        """
        if self.kinds != list(kinds):
            first = next((n for n, (a, b) in enumerate(zip(self.kinds, kinds, strict=False)) if a != b), None)
            place = min(len(self), len(kinds)) if first is None else first
            wanted = kinds[place] if place < len(kinds) else "the end"
            found = self.kinds[place] if place < len(self) else "the end"
            listing = self.listing({place: "→"})
            raise AssertionError(f"event {place + 1} is {found}, not {wanted}. There were:\n{listing}")

    def assert_none(self, kind: str, **data: Any) -> None:
        """No event of this type (with these values) was told.

        Raises:
            AssertionError: One was.
        """
        if found := self.of(kind, **data):
            raise AssertionError(f"there should be no {kind}:\n{found.listing()}")

    def assert_no_secret(self, *secrets: str) -> None:
        """None of the secrets is in any event, in the plain or encoded (JSON, URL, base64, hex).

        Raises:
            AssertionError: One is; the message names the event and the field, and does not repeat the secret.
            ValueError: No secret is given, or one of fewer than four characters.
        """
        for number, event in enumerate(self._events, 1):
            assert_no_secret({"data": event.data, "agent_name": event.agent_name}, *secrets, where=f"event {number}")

    def listing(self, marks: Mapping[int, str] | None = None) -> str:
        """One line for each event."""
        if not self._events:
            return "  (no events)"
        return "\n".join(
            f"{(marks or {}).get(number, ''):>2} {number + 1:3} {event.event_type:18} {event.agent_name:12} "
            + _short(event.data)
            for number, event in enumerate(self._events)
        )


def assert_no_secret(value: object, *secrets: str, where: str = "the value") -> None:
    """None of the secrets is in a JSON value, neither in the plain nor encoded.

    Raises:
        AssertionError: One is; the message says where, and does not repeat it.
        ValueError: No secret is given, or one of fewer than four characters.
    """
    if not secrets or any(len(secret) < _MIN_SECRET for secret in secrets):
        raise ValueError("give the secrets that must not be there, of four characters or more each")
    for path, text in _texts(value, where):
        for number, secret in enumerate(secrets, 1):
            for form, encoded in _forms(secret):
                if encoded in text:
                    raise AssertionError(f"secret {number} of {len(secrets)} is in {path}, {form}")


def _texts(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield f"a name in {path}", str(name)
            yield from _texts(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _texts(item, f"{path}[{number}]")
    elif value is not None and not isinstance(value, bool):
        yield path, str(value)


def _forms(secret: str) -> Iterator[tuple[str, str]]:
    raw = secret.encode()
    yield "in the plain", secret
    yield "within JSON", json.dumps(secret)[1:-1]
    yield "within a URL", quote(secret, safe="")
    yield "as hex", raw.hex()
    # Within a longer text the groups of three bytes may begin anywhere; what stands at the ends depends on neighbours.
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
        middle = encoded[-(-shift * 8 // 6) : len(encoded) - 1]
        if len(middle) >= _MIN_SECRET:
            yield "as base64", middle


def _short(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
