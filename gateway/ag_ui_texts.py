"""What agents say, as text messages of AG-UI: opened, appended to, closed; and told once, though an attempt repeats it.

A stage that begins again says again, under the same ids, what it had said before. A reader has that already: only what
is new is told; where an attempt says something else, that is a message of its own. Pure state: no I/O, no clock.

Of a run's messages the latest are known. When there are more, the one that was closed first is forgotten; if none is
closed, the one that was opened first is closed. What is told after that has a number at the end of its id: a message
that was forgotten and comes again must not be appended to the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Final

from gateway.ag_ui_ids import LATEST, short_id

__all__ = ["Say", "Texts"]

Say = Callable[..., None]

# Of all messages of a run together. What is beyond it is told, and cannot be compared with a repetition.
_KEPT_CHARS: Final = 262_144
_MOST_OPEN: Final = 256


@dataclass(slots=True)
class _Message:
    """One message: what was told of it, and how far the present attempt has got with it.

    ``told`` is None when it was too long to keep; ``length`` are its characters. ``version`` counts the messages that
    attempts made of it, from 0, or from one that no message that is forgotten has had.
    """

    request_id: str
    attempt: int
    # Not a str: each piece would cost a copy of all that was told before it.
    told: StringIO | None = field(default_factory=StringIO)
    length: int = 0
    at: int = 0
    version: int = 0
    opened: bool = False


class Texts:
    """The messages of one run.

    Args:
        say: Tells an event: its type, and its fields.
        run_id: The run, which is a part of its messages' ids: a reader's messages are those of a whole thread.
        most: How many are known.
        most_open: How many may be open.
    """

    def __init__(self, say: Say, run_id: str, most: int = LATEST, most_open: int = _MOST_OPEN) -> None:
        self._say = say
        self._run_id = run_id
        self._most = most
        self._most_open = min(most, most_open)
        self._messages: dict[str, _Message] = {}
        # Open ones: what AG-UI calls them, by our id; and the others. Both oldest first.
        self._open: dict[str, str] = {}
        self._closed: dict[str, None] = {}
        self._version = 0
        self._kept = 0

    def __len__(self) -> int:
        return len(self._messages)

    def message(self, entry: dict[str, Any], owner: dict[str, str]) -> None:
        """An ``agent_message``. ``owner`` are the fields that attribute it, for the event that opens it."""
        data = entry["data"]
        own_id, whole = short_id(data["message_id"]), "text" in data
        piece = str(data["text"] if whole else data.get("delta", ""))
        message = self._messages.get(own_id)
        if message is None:
            if len(self._messages) >= self._most:
                self._forget_one()
            message = self._messages[own_id] = _Message(entry["request_id"], entry["attempt"], version=self._version)
            self._closed[own_id] = None
        elif whole or message.attempt != entry["attempt"]:
            message.attempt, message.at = entry["attempt"], 0
        self._add(own_id, message, piece, {**owner, "name": entry["agent_name"]})
        if whole:
            self._close(own_id)

    def _add(self, own_id: str, message: _Message, piece: str, opening: dict[str, str]) -> None:
        told = message.told
        if told is None:
            # Too long to be compared: a repetition of it is a message of its own, told as it comes.
            if message.at == 0:
                self._again(own_id, message)
            new = piece
        else:
            told.seek(message.at)
            known = told.read(len(piece))
            if piece.startswith(known):
                new = piece[len(known) :]
            else:
                self._again(own_id, message)
                told.seek(0)
                new = told.read(message.at) + piece
                self._forget_text(message)
                message.told = StringIO()
        message.at += len(piece)
        if new:
            self._tell(own_id, message, new, opening)

    def _forget_one(self) -> None:
        if not self._closed:
            self._close(next(iter(self._open)))
        own_id = next(iter(self._closed))
        del self._closed[own_id]
        message = self._messages.pop(own_id)
        self._forget_text(message)
        self._version = max(self._version, message.version + 1)

    def _forget_text(self, message: _Message) -> None:
        self._kept -= message.length
        message.told, message.length = None, 0

    def _again(self, own_id: str, message: _Message) -> None:
        self._close(own_id)
        message.version += 1
        message.opened = False

    def _tell(self, own_id: str, message: _Message, text: str, opening: dict[str, str]) -> None:
        shown = self._open.get(own_id)
        if shown is None:
            if len(self._open) >= self._most_open:
                self._close(next(iter(self._open)))
            del self._closed[own_id]
            shown = f"{self._run_id}:{own_id}" + (f"~{message.version}" if message.version else "")
            self._open[own_id] = shown
            # One that is opened again is its first opener's still.
            named = opening if not message.opened else {}
            message.opened = True
            self._say("TEXT_MESSAGE_START", messageId=shown, role="assistant", **{k: v for k, v in named.items() if v})
        self._say("TEXT_MESSAGE_CONTENT", messageId=shown, delta=text)
        if message.told is not None:
            if self._kept + len(text) > _KEPT_CHARS:
                self._forget_text(message)
            else:
                self._kept += len(text)
                message.told.seek(message.length)
                message.length += message.told.write(text)

    def _close(self, own_id: str) -> None:
        if (shown := self._open.pop(own_id, None)) is not None:
            self._closed[own_id] = None
            self._say("TEXT_MESSAGE_END", messageId=shown)

    def close(self, request_id: str = "") -> None:
        """Close what is open: all, or the messages of one request."""
        for own_id in list(self._open):
            if request_id in {"", self._messages[own_id].request_id}:
                self._close(own_id)
