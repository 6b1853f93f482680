"""What a client asks of execution over its connection, and the control frame that answers. Made at the first request.

Errors are the caller's to tell. Not REST's requests, which rest/runs answers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

from carrel.errors import CarrelError
from gateway.bound import BoundRuns
from gateway.login import Login
from gateway.requests import Answer, ExecuteRequest
from gateway.run_json import run_json, run_status
from gateway.runs import TERMINAL, Runs
from servicekit.logs import get_logger
from servicekit.telemetry.names import of_run
from servicekit.telemetry.tracing import Span

__all__ = ["Commands"]

_log = get_logger("gateway.session")


class Says(Protocol):
    """Where answers go."""

    def say(self, kind: str, **fields: Any) -> None: ...


class Commands:
    """One connection's requests, and the runs that are bound to it. Closing it lets go of these.

    Args:
        runs: Asks execution.
        login: The connection's login as it is at the moment.
        connection_id: The connection, which runs are told.
        out: Where answers go.
    """

    __slots__ = ("_bound", "_connection_id", "_login", "_out", "_runs", "_tracing")

    def __init__(self, runs: Runs, login: Callable[[], Login], connection_id: str, out: Says) -> None:
        self._tracing = runs.tracing
        self._runs = runs
        self._login = login
        self._connection_id = connection_id
        self._out = out
        self._bound = BoundRuns(runs, login)

    async def aclose(self) -> None:
        """Let go of the bound runs. Idempotent."""
        await self._bound.aclose()

    async def execute(self, asked: ExecuteRequest) -> None:
        """Ask for a run."""
        with self._tracing.begin("agent_execute", incoming=asked.traceparent) as span:
            await self._execute(asked, span)

    async def _execute(self, asked: ExecuteRequest, span: Span) -> None:
        with self._bound.place() if asked.bound else nullcontext() as keep:
            run, existing = await self._runs.execute(
                self._login(), asked, connection_id=self._connection_id, audit={"source": "websocket"}
            )
            if keep is not None and run.state not in TERMINAL:
                keep(run.run_id)
        if span.recording:
            span.set(of_run(self._login().user_id, run.run_id))
        self._out.say(
            "run_accepted",
            run_id=run.run_id,
            thread_id=run.thread_id,
            request_id=run.request_id,
            agent_name=run.agent_name,
            status=run_status(run),
            client_ref=asked.client_ref or None,
            existing=True if existing else None,
        )

    async def cancel(self, fields: dict[str, Any]) -> None:
        """Ask for a run's end."""
        with self._tracing.begin("agent_cancel"):
            run = await self._runs.cancel(self._login(), fields["run_id"], fields.get("reason", ""))
        self._out.say("cancel_accepted", run_id=run.run_id, status=run_status(run), client_ref=fields.get("client_ref"))

    async def provide(self, answer: Answer, client_ref: str | None) -> None:
        """Answer a run's question."""
        with self._tracing.begin("input_provide"):
            run = await self._runs.provide_input(self._login(), answer)
        self._out.say(
            "input_accepted", run_id=run.run_id, input_id=answer.input_id, status=run_status(run), client_ref=client_ref
        )

    async def tell_runs(self) -> None:
        """A client that lost its place learns how its runs stand: those unended, or ended within a day."""
        try:
            runs = await self._runs.recent(self._login())
        except CarrelError as error:
            _log.info("run states are not known", code=error.code, connection=self._connection_id)
            return
        for run in runs:
            self._out.say("run_state", **run_json(run))
