"""A run's events of the log as events of AG-UI (https://docs.ag-ui.com): the same log gives the same events, always.

That is what makes a cut stream resumable: who comes back is told what this makes of the log after the cut, and what it
makes of the log before it is made again and left out. Whatever is in the log, and wherever it begins, what comes out
keeps AG-UI's rules of order. Pure state: no I/O, no clock. The table of the mapping is in docs/ag-ui.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from gateway.ag_ui_calls import Calls
from gateway.ag_ui_ids import LATEST, keep_latest, short_id
from gateway.ag_ui_subagents import MOST_OPEN, Subagents
from gateway.ag_ui_texts import Texts
from gateway.requests import MAX_STAGES

__all__ = ["PROTOCOL_VERSION", "Event", "Names", "Translation"]

Event = dict[str, Any]

# What these events are of. A test compares it with the protocol's own package.
PROTOCOL_VERSION: Final = "1.0"
_NO_ADVICE: Final[Mapping[str, Any]] = {"code": "RUN_FAILED", "message": "the run failed"}


@dataclass(frozen=True, slots=True)
class Names:
    """Whose run it is, in the reader's words and in ours.

    Args:
        thread_id: The reader's name of the thread.
        run_id: The reader's name of the run.
        own_thread_id: Ours.
        own_run_id: Ours. One run of ours is several of the reader's, when it asks questions.
        parent_run_id: Given back as it came.
        state: The reader's own state, which stays beside ours.
        after_input: The question whose answer the reader's run begins with; empty for a run from its beginning.
        messages: How many of the reader's messages were taken, and how many were left out.
    """

    thread_id: str
    run_id: str
    own_thread_id: str
    own_run_id: str
    parent_run_id: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)
    after_input: str = ""
    messages: tuple[int, int] = (1, 0)


class Translation:
    """One reader's run. ``feed`` takes each entry of our run, from the first one on.

    ``most`` bounds what is kept of calls, of messages and of questions, each: whatever a run does, and however long.
    """

    def __init__(self, names: Names, most: int = LATEST) -> None:
        self._names = names
        self._most = most
        self._out: list[Event] = []
        self._now: int | None = None
        self._texts = Texts(self._say, names.own_run_id, most)
        self._calls = Calls(self._say, names.own_run_id, most)
        self._subagents = Subagents(self._say, self._texts.close, min(most, MOST_OPEN))
        # What is open: the span of thoughts with its owner, in it one in pieces, and stages by request.
        self._span: tuple[str, str] | None = None
        self._thought: tuple[str, Any] | None = None
        self._steps: dict[str, tuple[str, int | None]] = {}
        # Questions that were asked, and what stages gave before the reader's run began: the latest.
        self._asked: dict[str, Any] = {}
        self._stages: list[dict[str, Any]] = []
        self.begun = False
        self.ended = False
        self._kinds: dict[str, Callable[[dict[str, Any]], None]] = {
            "run_accepted": self._accepted,
            "run_attempt": self._attempt,
            "run_completed": self._completed_run,
            "agent_started": self._started,
            "agent_thinking": self._thinking,
            "agent_message": self._message,
            "agent_completed": self._completed,
            "agent_error": self._failed,
            "tool_executing": self._executing,
            "tool_completed": self._result,
            "input_required": self._asks,
        }

    def feed(self, entry: dict[str, Any]) -> list[Event]:
        """What the entry (an event as readers of the log get it) is in AG-UI; nothing before the run's own begin."""
        if self.ended:
            return []
        self._out, kind = [], str(entry["event_type"])
        self._now = _milliseconds(entry["timestamp"])
        if above := entry.get("parent_request_id"):
            self._subagents.seen(entry["request_id"], above)
        if not self.begun and (not self._names.after_input or kind == "run_completed"):
            self._begin_now()
        if kind != "agent_thinking":
            self._close_span()
        self._kinds.get(kind, self._other)(entry)
        return self._out if self.begun else []

    def conclude(self, status: str, result: Any, error: Mapping[str, Any] | None) -> list[Event]:
        """The end of a run whose last event the log will never have, from what is known of the run itself."""
        if self.ended:
            return []
        self._out, self._now = [], None
        if not self.begun:
            self._begin_now()
        self._end(status, result, error)
        return self._out

    @property
    def kept(self) -> int:
        """How much is kept by ids."""
        return len(self._calls) + len(self._texts) + len(self._subagents) + len(self._asked)

    def break_off(self, code: str, message: str, **details: Any) -> list[Event]:
        """The end of the stream, which is not the run's: legal at any place but after the run's."""
        self._out, self._now, self.ended = [], None, True
        self._say("RUN_ERROR", message=message, code=code, metadata={"carrel": {**self._own(), **details}})
        return self._out

    # What is told.

    def _say(self, kind: str, **fields: Any) -> None:
        event: Event = {"type": kind}
        if self._now is not None:
            event["timestamp"] = self._now
        event.update(fields)
        self._out.append(event)

    def _own(self) -> dict[str, Any]:
        return {"run_id": self._names.own_run_id, "thread_id": self._names.own_thread_id}

    def _begin_now(self) -> None:
        # What an earlier run of the reader's left open has been closed there.
        self._close()
        self._out.clear()
        self._begin()

    def _begin(self) -> None:
        names, self.begun = self._names, True
        taken, left = names.messages
        parent = {"parentRunId": names.parent_run_id} if names.parent_run_id else {}
        self._say(
            "RUN_STARTED",
            threadId=names.thread_id,
            runId=names.run_id,
            protocolVersion=PROTOCOL_VERSION,
            **parent,
            metadata={"carrel": {**self._own(), "messages_taken": taken, "messages_left_out": left}},
        )
        own = {**self._own(), "status": "RUNNING", "stages": self._stages}
        self._say("STATE_SNAPSHOT", snapshot={**names.state, "carrel": own})
        self._stages = []

    def _close_thought(self) -> None:
        if self._thought is not None:
            self._say("REASONING_MESSAGE_END", messageId=self._thought[0])
            self._thought = None

    def _close_span(self) -> None:
        self._close_thought()
        if self._span is not None:
            self._say("REASONING_END", messageId=self._span[0])
            self._span = None

    def _close(self, suspended_by: str = "") -> None:
        """Close everything that is open, the inner before the outer."""
        self._close_span()
        self._texts.close()
        self._subagents.close(suspended_by)
        for name, _ in reversed(list(self._steps.values())):
            self._say("STEP_FINISHED", stepName=name)
        self._steps.clear()

    def _end(self, status: str, result: Any, error: Mapping[str, Any] | None) -> None:
        self._close()
        self._calls.close()
        self.ended = True
        self._say("STATE_DELTA", delta=[{"op": "replace", "path": "/carrel/status", "value": status}])
        ids = {"threadId": self._names.thread_id, "runId": self._names.run_id}
        if status == "SUCCEEDED":
            self._say("RUN_FINISHED", **ids, result=result, outcome={"type": "success"})
        elif status == "CANCELLED":
            self._say("RUN_FINISHED", **ids, outcome={"type": "cancelled"})
        else:
            told = error or _NO_ADVICE
            code, message, advice = (str(told.get(name) or "") for name in ("code", "message", "advice"))
            whole = f"{message}; {advice}" if advice else message
            own = {**self._own(), "status": status, "error": dict(told)}
            self._say("RUN_ERROR", message=whole, code=code or status, metadata={"carrel": own})

    # Runs.

    def _accepted(self, entry: dict[str, Any]) -> None:
        if entry["data"].get("status") == "QUEUED":
            self._say("CUSTOM", name="carrel.queued", value=self._own())

    def _attempt(self, entry: dict[str, Any]) -> None:
        self._close()
        self._other(entry)

    def _completed_run(self, entry: dict[str, Any]) -> None:
        data = entry["data"]
        result = data.get("result")
        if result is None and data.get("artifact") is not None:
            result = {"artifact": data["artifact"]}
        self._end(str(data.get("status", "FAILED")), result, data.get("error"))

    def _asks(self, entry: dict[str, Any]) -> None:
        data = entry["data"]
        input_id = str(data["input_id"])
        if (known := short_id(input_id)) in self._asked:
            return
        keep_latest(self._asked, known, None, self._most)
        if not self.begun:
            # The question of an earlier run of the reader's; after the last of them its present one begins.
            if input_id == self._names.after_input:
                self._begin_now()
            else:
                self._close()
            return
        interrupt = _interrupt(f"{self._names.own_run_id}:{input_id}", data)
        self._say("CUSTOM", name="carrel.input_required", value={**self._own(), **data})
        self._close(suspended_by=interrupt["id"])
        self._say("STATE_DELTA", delta=[{"op": "replace", "path": "/carrel/status", "value": "WAITING"}])
        self.ended = True
        ids = {"threadId": self._names.thread_id, "runId": self._names.run_id}
        self._say("RUN_FINISHED", **ids, outcome={"type": "interrupt", "interrupts": [interrupt]})

    def _other(self, entry: dict[str, Any]) -> None:
        self._say("CUSTOM", name=f"carrel.{entry['event_type']}", value=entry["data"])

    # Agents.

    def _tag(self, entry: dict[str, Any]) -> dict[str, str]:
        owner = self._subagents.owner(entry["request_id"])
        return {"subagentRunId": owner} if owner else {}

    def _started(self, entry: dict[str, Any]) -> None:
        data, request_id = entry["data"], entry["request_id"]
        if entry.get("parent_request_id"):
            self._subagents.start(request_id, _agent(entry), data.get("description"))
            return
        # One stage at a time: what an attempt before this one left open is over.
        self._close()
        self._steps[request_id] = (_agent(entry), data.get("stage"))
        self._say("STEP_STARTED", stepName=_agent(entry))

    def _completed(self, entry: dict[str, Any]) -> None:
        data, request_id = entry["data"], entry["request_id"]
        outcome = {name: data[name] for name in ("result", "artifact") if data.get(name) is not None}
        if entry.get("parent_request_id"):
            self._subagents.end(request_id, "SUBAGENT_FINISHED", **({"result": outcome} if outcome else {}))
            return
        step = self._steps.get(request_id)
        stage = {"agent_name": _agent(entry), "stage": step[1] if step else None, **outcome}
        if self.begun:
            self._say("STATE_DELTA", delta=[{"op": "add", "path": "/carrel/stages/-", "value": stage}])
        else:
            self._stages = [*self._stages, stage][-MAX_STAGES:]
        self._close()

    def _failed(self, entry: dict[str, Any]) -> None:
        data = entry["data"]
        if entry.get("parent_request_id"):
            fields = {"message": str(data.get("message", "")), "code": str(data.get("code", ""))}
            if self._subagents.end(entry["request_id"], "SUBAGENT_ERROR", **fields):
                return
        else:
            self._close()
        self._other(entry)

    def _thinking(self, entry: dict[str, Any]) -> None:
        data = entry["data"]
        text = str(data.get("text", ""))
        if data.get("heartbeat") or not text:
            return
        tag, thought = self._tag(entry), str(entry["event_id"])
        whose = (entry["request_id"], entry["attempt"], data.get("message_id")) if data.get("delta") else None
        if self._thought is None or whose is None or self._thought[1] != whose:
            self._close_thought()
            if self._span is not None and self._span[1] != tag.get("subagentRunId", ""):
                self._close_span()
            if self._span is None:
                self._span = (f"{thought}/span", tag.get("subagentRunId", ""))
                self._say("REASONING_START", messageId=self._span[0], **tag)
            self._say("REASONING_MESSAGE_START", messageId=thought, role="reasoning", **tag)
            self._thought = (thought, whose)
        self._say("REASONING_MESSAGE_CONTENT", messageId=self._thought[0], delta=text)
        if whose is None:
            self._close_thought()

    def _message(self, entry: dict[str, Any]) -> None:
        self._texts.message(entry, self._tag(entry))

    # Tools.

    def _executing(self, entry: dict[str, Any]) -> None:
        self._calls.executing(entry["data"], self._tag(entry))

    def _result(self, entry: dict[str, Any]) -> None:
        self._calls.result(entry["data"], self._tag(entry))


def _agent(entry: dict[str, Any]) -> str:
    return str(entry["data"].get("agent_name") or entry["agent_name"])


def _interrupt(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """A question as AG-UI's interrupt."""
    tool = data.get("tool_name")
    told = {
        "id": name,
        "reason": "tool_approval" if tool else "input_required",
        "message": data.get("prompt"),
        "responseSchema": data.get("schema"),
        "expiresAt": data.get("expires_at"),
    }
    if tool:
        told["metadata"] = {"carrel": {"tool_name": tool, "arguments": data.get("arguments")}}
    return {key: value for key, value in told.items() if value is not None}


def _milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
