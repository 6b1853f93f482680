"""Calls of tools as AG-UI has them: each told once and with one result, however many attempts make it.

Of a run's calls the latest are known. When there are more, the oldest that has a result is forgotten; if none has, the
oldest gets one that says so. What is told after that has a number at the end of its id: a call that was forgotten and
comes again is told again, and must not be taken for the first one. Pure state: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.ag_ui_ids import LATEST, short_id
from gateway.ag_ui_texts import Say

__all__ = ["Calls"]

_NO_RESULT: Final = orjson.dumps({"status": "cut_off", "error": {"message": "no result was recorded"}}).decode()


class Calls:
    """The calls of one run.

    Args:
        say: Tells an event: its type, and its fields.
        run_id: The run, which is a part of its calls' ids: a reader's messages are those of a whole thread.
        most: How many are known.
    """

    def __init__(self, say: Say, run_id: str, most: int = LATEST) -> None:
        self._say = say
        self._run_id = run_id
        self._most = most
        # By our id, the number at the end of theirs: without a result yet, and with one, oldest first.
        self._waiting: dict[str, int] = {}
        self._answered: dict[str, int] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._answered)

    def executing(self, data: Mapping[str, Any], tag: Mapping[str, str]) -> None:
        """A ``tool_executing``. ``tag`` are the fields that attribute it."""
        own_id = short_id(data["tool_call_id"])
        if own_id in self._waiting or own_id in self._answered:
            return  # from an earlier attempt: taken from the journal, or done again under the same id
        if len(self) >= self._most:
            self._forget_one()
        self._waiting[own_id] = self._number
        call_id = self._shown(own_id, self._number)
        self._say("TOOL_CALL_START", toolCallId=call_id, toolCallName=str(data["tool_name"]), **tag)
        if (arguments := data.get("arguments")) is not None:
            self._say("TOOL_CALL_ARGS", toolCallId=call_id, delta=orjson.dumps(arguments).decode())
        self._say("TOOL_CALL_END", toolCallId=call_id)

    def result(self, data: Mapping[str, Any], tag: Mapping[str, str]) -> None:
        """A ``tool_completed``."""
        own_id = short_id(data["tool_call_id"])
        # If it is not known it was refused before it was executed, or begun before what is kept of the log or of it.
        self.executing(data, tag)
        if own_id not in self._waiting:
            return  # told by an earlier attempt
        number = self._waiting.pop(own_id)
        self._answered[own_id] = number
        failed = data.get("error") is not None or data.get("status") != "ok"
        content = {"status": data.get("status"), "error": data.get("error")} if failed else data.get("result")
        about = {
            name: data[name] for name in ("status", "duration_ms", "denied", "replayed", "reported") if name in data
        }
        self._told(self._shown(own_id, number), orjson.dumps(content).decode(), about, tag)

    def close(self) -> None:
        """Give all that have no result one: readers take a call without for one that they are to answer."""
        for own_id, number in self._waiting.items():
            self._cut_off(own_id, number)
        self._waiting.clear()

    def _forget_one(self) -> None:
        if self._answered:
            number = self._answered.pop(next(iter(self._answered)))
        else:
            own_id = next(iter(self._waiting))
            number = self._waiting.pop(own_id)
            self._cut_off(own_id, number)
        self._number = max(self._number, number + 1)

    def _cut_off(self, own_id: str, number: int) -> None:
        self._told(self._shown(own_id, number), _NO_RESULT, {"cut_off": True}, {})

    def _shown(self, own_id: str, number: int) -> str:
        return f"{self._run_id}:{own_id}" + (f"~{number}" if number else "")

    def _told(self, call_id: str, content: str, about: Mapping[str, Any], tag: Mapping[str, str]) -> None:
        ids = {"messageId": f"{call_id}/result", "toolCallId": call_id}
        self._say("TOOL_CALL_RESULT", **ids, content=content, role="tool", metadata={"carrel": about}, **tag)
