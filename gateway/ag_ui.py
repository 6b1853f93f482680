"""AG-UI over HTTP: ``POST /ag-ui/{agent}`` starts a run, or goes on with one, and tells it as AG-UI's events.

Repeating a request is safe: the reader's run names ours, which is started once. With ``Last-Event-ID`` nothing is
started or answered at all, and the stream goes on. Cancelling is REST's; a reader that leaves ends its stream only.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Final

from aiohttp import web

from carrel.errors import CarrelError, IdempotencyConflictError, InvalidRequestError, NotWaitingError
from carrel.v1 import execution_pb2
from gateway.ag_ui_mapping import Translation
from gateway.ag_ui_outflow import AgUiOutflow, Passed, parse_id
from gateway.ag_ui_request import Asked, Given, parse_input, pipeline_of
from gateway.headers import single_header
from gateway.login import Login
from gateway.parts import Parts
from gateway.replay_pace import PacedLog
from gateway.rest.events import EventHandlers, StreamOf
from gateway.rest.http import json_body
from gateway.runs import TERMINAL
from servicekit.telemetry.names import of_run
from servicekit.telemetry.tracing import current_span

__all__ = ["AgUiHandlers"]

_HEADER: Final = "Last-Event-ID"
# A question is in the log a moment before its run can take the answer.
_WAITING_S: Final = 5.0


class AgUiHandlers:
    """Args:
    parts: What they work with.
    events: Opens streams.
    """

    def __init__(self, parts: Parts, events: EventHandlers) -> None:
        self._parts = parts
        self._events = events
        self._log = PacedLog(parts.log, parts.run_log, parts.replays)

    async def run(self, request: web.Request) -> web.StreamResponse:
        """``POST /ag-ui`` and ``POST /ag-ui/{agent}``"""
        with ExitStack() as held:
            login, _ = await self._events.admit(request, held, ())
            self._parts.replays.check(login.user_id)
            pipeline = pipeline_of(request.match_info.get("agent", ""))
            asked = await parse_input(login.user_id, await json_body(request))
            text = single_header(request, _HEADER)
            passed = parse_id(text, _HEADER) if text else None
            if passed is not None:
                run = await self._resumed(login, asked, passed)
            elif asked.given is not None:
                run = await self._answered(login, asked, asked.given)
            else:
                run = await self._started(login, asked, pipeline)
            if (span := current_span()).recording:
                span.set(of_run(login.user_id, run.run_id))
            translation = Translation(asked.names(run.run_id))
            beyond = passed is not None and await self._beyond(login, passed)
            replayed = partial(self._parts.replays.translated, login.user_id)
            outflow = partial(AgUiOutflow, translation=translation, passed=passed, beyond=beyond, replayed=replayed)
            return await self._events.stream(request, login, StreamOf(run=run, outflow=outflow, log=self._log))

    async def _started(self, login: Login, asked: Asked, pipeline: tuple[str, ...]) -> execution_pb2.Run:
        try:
            run, _ = await self._parts.runs.execute(login, asked.execute(pipeline), audit={"source": "ag-ui"})
        except IdempotencyConflictError:
            raise IdempotencyConflictError(
                "this runId was used in this thread for a request with other content",
                advice="send a new runId with each new request; the same one repeats the request as it was",
            ) from None
        return run

    async def _resumed(self, login: Login, asked: Asked, passed: Passed) -> execution_pb2.Run:
        """The run that the reader has a part of, which must be the one that it asks for."""
        run = await self._parts.runs.get(login, passed.run_id)
        same = asked.given.run_id == run.run_id if asked.given is not None else asked.client_ref == run.client_ref
        if not same:
            problem = "is of another run than the body names"
            raise InvalidRequestError(
                f"{_HEADER} {problem}",
                advice="send the same body as before with it, or leave it out",
                fields={_HEADER: problem},
            )
        return run

    async def _beyond(self, login: Login, passed: Passed) -> bool:
        """Whether the log has lost what the reader has."""
        try:
            extent = await self._parts.run_log.extent(login, passed.run_id)
        except CarrelError:
            return False  # which shows when it can be read
        return extent is None or extent.last_offset < passed.place.offset

    async def _answered(self, login: Login, asked: Asked, given: Given) -> execution_pb2.Run:
        """The run that goes on with an answer. One that it has already is not asked for again: the reader reads on."""
        run = await self._parts.runs.get(login, given.run_id)
        if run.thread_id != asked.own_thread_id:
            problem = "is of another thread than threadId"
            raise InvalidRequestError(f"interruptId {problem}", fields={"resume.0.interruptId": problem})
        run = await self._parts.runs.ended(login, given.run_id, _WAITING_S) or run
        if run.state in TERMINAL or run.waiting_for.input_id != given.input_id:
            return run
        try:
            if not given.abandoned:
                return await self._parts.runs.provide_input(login, given.answer(given.payload))
            if run.waiting_for.tool_name:
                refusal = {"approved": False, "reason": "the user did not answer"}
                return await self._parts.runs.provide_input(login, given.answer(refusal))
            return await self._parts.runs.cancel(login, run.run_id, "its question was abandoned")
        except NotWaitingError:
            # Somebody else was quicker, or this request came twice at once.
            return await self._parts.runs.get(login, run.run_id)
