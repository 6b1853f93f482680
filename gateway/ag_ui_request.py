"""What a client of AG-UI asks for (``RunAgentInput``) as a request of ours: ids, message, parameters, answers.

Not here: what is made of it (``ag_ui``). The protocol's models take 0.3 s to import and are loaded with the first
request, beside the loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from carrel.errors import InvalidIdError, InvalidRequestError, TooLargeError
from carrel.frozen import MAX_NESTING, nests_too_deep
from carrel.ids import check_id, check_minted_id
from gateway.ag_ui_mapping import Names
from gateway.requests import MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES, MAX_STAGES, Answer, ExecuteRequest

if TYPE_CHECKING:
    from types import ModuleType

    from ag_ui.core import ResumeEntry, RunAgentInput

__all__ = ["Asked", "Given", "parse_input", "pipeline_of"]

_MAX_NAME: Final = 1024
# Of a list with wrong items the models make a message for each, at once: half a million of them hold everybody up.
_MAX_ITEMS: Final = 1000
_HISTORY: Final = "earlier messages are the thread's on the server"


@dataclass(frozen=True, slots=True)
class Given:
    """The answer to a question, by which a run goes on. ``abandoned``: the reader does not want to give one."""

    run_id: str
    input_id: str
    abandoned: bool
    payload: Any = None

    def answer(self, value: object) -> Answer:
        """This answer as a request of ours."""
        return Answer(self.run_id, self.input_id, orjson.dumps(value))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: under which names, what for, or with which answer."""

    thread_id: str
    run_id: str
    own_thread_id: str
    client_ref: str
    message: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    parent_run_id: str = ""
    given: Given | None = None
    messages: tuple[int, int] = (1, 0)

    def execute(self, pipeline: tuple[str, ...]) -> ExecuteRequest:
        """The run that is asked for."""
        return ExecuteRequest(
            message=self.message,
            params=self.params,
            pipeline=pipeline,
            thread_id=self.own_thread_id,
            client_ref=self.client_ref,
        )

    def names(self, own_run_id: str) -> Names:
        """How the run's events are told."""
        return Names(
            thread_id=self.thread_id,
            run_id=self.run_id,
            own_thread_id=self.own_thread_id,
            own_run_id=own_run_id,
            parent_run_id=self.parent_run_id,
            state=self.state,
            after_input=self.given.input_id if self.given is not None else "",
            messages=self.messages,
        )


def pipeline_of(path: str) -> tuple[str, ...]:
    """The agents that an address names: one, or several with commas between them.

    Raises:
        InvalidRequestError: There are too many, or an empty one.
    """
    names = tuple(path.split(",")) if path else ()
    if len(names) > MAX_STAGES or any(not name or len(name) > 128 for name in names):
        raise InvalidRequestError(
            "the address names no pipeline",
            advice=f"/ag-ui/AGENT, or up to {MAX_STAGES} with commas between them; GET /api/agents lists them",
            fields={"agent": "is malformed"},
        )
    return names


async def parse_input(user_id: str, body: object) -> Asked:
    """The request in a client's object.

    Raises:
        InvalidRequestError: It is no ``RunAgentInput``, or asks for what agents here cannot do; says what.
        TooLargeError: The message is too long.
    """
    models = await _models()
    given = _checked(models, body)
    thread_id, run_id = _name(given.thread_id, "threadId"), _name(given.run_id, "runId")
    own_thread_id = _own_thread(user_id, thread_id)
    shared: dict[str, Any] = {
        "thread_id": thread_id,
        "run_id": run_id,
        "own_thread_id": own_thread_id,
        "client_ref": f"ag-ui-{_digest(own_thread_id, run_id)}",
        "parent_run_id": given.parent_run_id or "",
        "state": _own_state(given.state),
    }
    everything = body["messages"] if isinstance(body, dict) else []
    if given.resume:
        return Asked(**shared, given=_answer(given.resume), messages=(0, len(everything)))
    params = _params(given, shared["state"])
    return Asked(**shared, message=_text(given), params=params, messages=(1, len(everything) - 1))


async def _models() -> ModuleType:
    def load() -> ModuleType:
        import ag_ui.core

        return ag_ui.core

    return await asyncio.to_thread(load)


def _checked(models: ModuleType, body: object) -> RunAgentInput:
    """The object as the protocol's model. Of the messages only the user's last one is looked at: no other is taken."""
    if not isinstance(body, dict):
        raise InvalidRequestError("the request must be a JSON object", advice="send a RunAgentInput of AG-UI")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidRequestError("messages must be an array", fields={"messages": "must be an array"})
    users = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    _check_size(body, users)
    try:
        return models.RunAgentInput.model_validate({**body, "messages": users[-1:]})  # type: ignore[no-any-return]  # a module's attribute
    except ValueError as error:
        problems = {_where(problem["loc"]): str(problem["msg"]) for problem in _problems(error)}
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise InvalidRequestError(
            f"the request is no RunAgentInput of AG-UI: {listed}",
            advice="docs/ag-ui.md says what is taken",
            fields=problems,
        ) from None


def _check_size(body: dict[str, Any], users: list[dict[str, Any]]) -> None:
    """Whether the models may look at it: what has too much in it, or must have nothing."""
    if isinstance(body.get("tools"), list) and body["tools"]:
        raise InvalidRequestError(
            "agents cannot call tools of the front end",
            advice="leave `tools` empty: give the tool to the agent, or let it ask its user (docs/ag-ui.md)",
            fields={"tools": "must be empty"},
        )
    content = users[-1].get("content") if users else None
    for name, items in (("context", body.get("context")), ("resume", body.get("resume")), ("messages", content)):
        if isinstance(items, list) and len(items) > _MAX_ITEMS:
            problem = f"may have {_MAX_ITEMS} items" if name != "messages" else f"may have {_MAX_ITEMS} parts in one"
            raise InvalidRequestError(f"{name} {problem}", advice="send less", fields={name: problem})
    # Messages are not looked into, but for the text of one.
    for name, value in body.items():
        if name != "messages" and nests_too_deep(value):
            field_name, problem = name[:40], f"nests more than {MAX_NESTING} levels deep"
            raise InvalidRequestError(
                f"{field_name} {problem}", advice="send flatter values", fields={field_name: problem}
            )


def _problems(error: ValueError) -> list[dict[str, Any]]:
    errors: Any = getattr(error, "errors", None)
    return list(errors(include_url=False, include_input=False, include_context=False))[:8] if errors else []


def _where(location: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in location)[:80] or "the request"


def _name(value: str, field_name: str) -> str:
    if 1 <= len(value) <= _MAX_NAME:
        return value
    problem = f"must have 1 to {_MAX_NAME} characters"
    raise InvalidRequestError(f"{field_name} {problem}", fields={field_name: problem})


def _digest(*parts: str) -> str:
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:40]


def _own_thread(user_id: str, thread_id: str) -> str:
    """Our thread of a name of theirs: itself where it can be one, and else one that always comes out the same."""
    try:
        return check_minted_id(thread_id, "threadId")
    except InvalidIdError:
        return f"thread-{_digest(user_id, thread_id)}"


def _own_state(state: object) -> Mapping[str, Any]:
    """The reader's state without our part of it."""
    if state is None:
        return {}
    if not isinstance(state, dict):
        problem = "must be an object"
        raise InvalidRequestError(f"state {problem}", advice="put other values under a name", fields={"state": problem})
    return {name: value for name, value in state.items() if name != "carrel"}


def _params(given: RunAgentInput, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What agents find in their request's ``params``."""
    forwarded = given.forwarded_props
    if forwarded is not None and not isinstance(forwarded, dict):
        problem = "must be an object: agents get it as their parameters"
        raise InvalidRequestError(f"forwardedProps {problem}", fields={"forwardedProps": problem})
    params = dict(forwarded or {})
    context = [{"description": item.description, "value": item.value} for item in given.context or ()]
    extra = {name: value for name, value in (("context", context), ("state", dict(state))) if value}
    if extra and "ag_ui" in params:
        problem = "must not have ag_ui, under which agents find context and state"
        raise InvalidRequestError(f"forwardedProps {problem}", fields={"forwardedProps": problem})
    return {**params, "ag_ui": extra} if extra else params


def _text(given: RunAgentInput) -> str:
    """The message: the text of the user's last one."""
    if not given.messages:
        raise InvalidRequestError(
            "messages has no message of the user's",
            advice=f"the user's last message is what agents are asked; {_HISTORY}",
            fields={"messages": "needs one with the role user"},
        )
    content = given.messages[-1].content
    if isinstance(content, str):
        text = content
    else:
        parts: Any = content or ()
        if any(part.type != "text" for part in parts):
            problem = "may have parts of text only"
            raise InvalidRequestError(
                f"the user's message {problem}",
                advice="put files where the agent's tools can read them, and send their names",
                fields={"messages": problem},
            )
        text = "\n".join(part.text for part in parts)
    if not text:
        raise InvalidRequestError("the user's message is empty", fields={"messages": "the last one has no text"})
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"a message may have {MAX_MESSAGE_BYTES} bytes",
            advice="put large inputs where tools can read them",
            limit="max_message_bytes",
            limit_value=MAX_MESSAGE_BYTES,
            use=size,
        )
    return text


def _answer(entries: list[ResumeEntry]) -> Given:
    if len(entries) > 1:
        problem = "may have one entry: a run asks one question at a time"
        raise InvalidRequestError(f"resume {problem}", fields={"resume": problem})
    entry = entries[0]
    run_id, colon, input_id = entry.interrupt_id.partition(":")
    if not colon:
        problem = "is no id of an interrupt of ours"
        raise InvalidRequestError(
            f"interruptId {problem}",
            advice="send the id of the interrupt in RUN_FINISHED as it came",
            fields={"resume.0.interruptId": problem},
        )
    if entry.status == "resolved" and "payload" not in entry.model_fields_set:
        problem = "is required: the answer, as the interrupt's responseSchema has it"
        raise InvalidRequestError(f"payload {problem}", fields={"resume.0.payload": problem})
    size = len(orjson.dumps(entry.payload))
    if size > MAX_ANSWER_BYTES:
        raise TooLargeError(
            f"an answer may have {MAX_ANSWER_BYTES} bytes",
            advice="send a shorter one",
            limit="max_answer_bytes",
            limit_value=MAX_ANSWER_BYTES,
            use=size,
        )
    abandoned = entry.status == "cancelled"
    return Given(check_id(run_id, "interruptId"), check_id(input_id, "interruptId"), abandoned, entry.payload)
