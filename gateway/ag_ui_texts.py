"""What agents say, as text messages of AG-UI: opened, appended to, closed; and told once, though an attempt repeats it.

A stage that begins again says again, under the same ids, what it had said before. A reader has that already: only what
is new is told; where an attempt says something else, that is a message of its own. Pure state: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Say", "Texts"]

Say = Callable[..., None]

# Of all messages of a run together. What is beyond it is told, and cannot be compared with a repetition.
_KEPT_CHARS: Final = 262_144


@dataclass(slots=True)
class _Message:
    """One message: what was told of it, and how far the present attempt has got with it.

    ``told`` is None when it was too long to keep. ``version`` counts from 0 the messages that attempts made of it.
    """

    request_id: str
    attempt: int
    told: str | None = ""
    at: int = 0
    version: int = 0
    opened: bool = False


class Texts:
    """The messages of one run.

    Args:
        say: Tells an event: its type, and its fields.
        run_id: The run, which is a part of its messages' ids: a reader's messages are those of a whole thread.
    """

    def __init__(self, say: Say, run_id: str) -> None:
        self._say = say
        self._run_id = run_id
        self._messages: dict[str, _Message] = {}
        # Open ones: what AG-UI calls them, by our id.
        self._open: dict[str, str] = {}
        self._kept = 0

    def message(self, entry: dict[str, Any], owner: dict[str, str]) -> None:
        """An ``agent_message``. ``owner`` are the fields that attribute it, for the event that opens it."""
        data = entry["data"]
        own_id, whole = str(data["message_id"]), "text" in data
        piece = str(data["text"] if whole else data.get("delta", ""))
        message = self._messages.get(own_id)
        if message is None:
            message = self._messages[own_id] = _Message(entry["request_id"], entry["attempt"])
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
            known = told[message.at : message.at + len(piece)]
            if piece.startswith(known):
                new = piece[len(known) :]
            else:
                self._again(own_id, message)
                self._kept -= len(told)
                new, message.told = told[: message.at] + piece, ""
        message.at += len(piece)
        if new:
            self._tell(own_id, message, new, opening)

    def _again(self, own_id: str, message: _Message) -> None:
        self._close(own_id)
        message.version += 1
        message.opened = False

    def _tell(self, own_id: str, message: _Message, text: str, opening: dict[str, str]) -> None:
        shown = self._open.get(own_id)
        if shown is None:
            shown = f"{self._run_id}:{own_id}" + (f"~{message.version}" if message.version else "")
            self._open[own_id] = shown
            # One that is opened again is its first opener's still.
            named = opening if not message.opened else {}
            message.opened = True
            self._say("TEXT_MESSAGE_START", messageId=shown, role="assistant", **{k: v for k, v in named.items() if v})
        self._say("TEXT_MESSAGE_CONTENT", messageId=shown, delta=text)
        if message.told is not None:
            if self._kept + len(text) > _KEPT_CHARS:
                self._kept -= len(message.told)
                message.told = None
            else:
                self._kept += len(text)
                message.told += text

    def _close(self, own_id: str) -> None:
        if (shown := self._open.pop(own_id, None)) is not None:
            self._say("TEXT_MESSAGE_END", messageId=shown)

    def close(self, request_id: str = "") -> None:
        """Close what is open: all, or the messages of one request."""
        for own_id in list(self._open):
            if request_id in {"", self._messages[own_id].request_id}:
                self._close(own_id)
