"""A ``ScriptedModel`` as agent_instance's endpoint of language models, without HTTP: what ``ctx.llm`` asks in a chain.

Refusals become the errors that ``services.agent_instance.client_model`` makes of the same status; nothing is retried.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from carrel.errors import CarrelError, ModelRefusedError, ModelUnavailableError
from carrel.testing import model_wire
from carrel.testing.model import ScriptedModel, Seen
from carrel.testing.model_wire import BrokenOffError, Fail, Hang, Raw, Step

__all__ = ["ScriptedEndpoint"]

_OVERLOADED: Final = frozenset({408, 409, 425, 429})


@dataclass(frozen=True)
class _Answer:
    """``services.agent_instance.domain.model_endpoint.EndpointAnswer``."""

    content_type: str
    body: AsyncIterator[bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.body:
                yield chunk
        except BrokenOffError:
            raise ModelUnavailableError("the model's answer broke off") from None


class ScriptedEndpoint:
    """``services.agent_instance.domain.model_endpoint.ModelEndpoint`` over a script."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model

    @asynccontextmanager
    async def open(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[_Answer]:
        """See ``ModelEndpoint``."""
        # What comes from ctx.llm may share lists with what the agent keeps; a test wants what was sent.
        sent = json.loads(json.dumps(dict(body)))
        async with self._model.counted(Seen(f"/v1/{path}", sent, {})):
            yield await _answer(path, sent, self._model.next_step(sent))


async def _answer(path: str, body: Mapping[str, Any], step: Step) -> _Answer:
    if isinstance(step, Hang):
        await asyncio.Event().wait()
    if isinstance(step, Fail):
        raise _refusal(step)
    if isinstance(step, Raw):
        return _Answer(step.content_type.partition(";")[0].strip().lower(), _whole(step.body))
    assert not isinstance(step, Hang)
    if body.get("stream") and not path.endswith("/embeddings"):
        return _Answer("text/event-stream", model_wire.events(path, body, step))
    return _Answer("application/json", _whole(json.dumps(model_wire.answer(path, body, step)).encode()))


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _refusal(step: Fail) -> CarrelError:
    status = step.status
    if status in _OVERLOADED or status >= 500:
        return ModelUnavailableError(f"the model's endpoint answers {status}", endpoint_status=status)
    return ModelRefusedError(
        f"the model's endpoint refuses the request ({status})", endpoint_status=status, endpoint_says=step.message
    )
