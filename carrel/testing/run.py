"""``ChainRun``: one run in an in-memory chain: its events, its questions, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, Self

import orjson

from carrel.client.convert import audit_of, run_of
from carrel.client.models import Artifact, AuditRecord, Event, Question, Run, RunState, Stage
from carrel.errors import CarrelError, UnknownArtifactError
from carrel.testing.events import Events, assert_no_secret
from carrel.testing.services import Services
from services.execution.convert import audit_to_proto, run_to_proto
from services.execution.domain.watch import watch_run
from services.execution.models import RunRecord, UserKey

__all__ = ["ChainRun"]

_WAIT_S: Final = 30.0
_AUDITED: Final = 200


class ChainRun:
    """A run. What it knows of its state is as of the last wait (``ended``, ``question``); ``events`` grow on their own.

    Waits take at most ``timeout_s`` seconds, and then fail with the events so far.
    """

    def __init__(
        self, services: Services, user: str, record: RunRecord, events: Events, failure: asyncio.Future[BaseException]
    ) -> None:
        self._services = services
        self._user = UserKey(user)
        self._failure = failure
        self._artifacts: dict[str, bytes] | None = None
        self._run = run_of(run_to_proto(record))
        self.events = events

    def __repr__(self) -> str:
        return f"ChainRun({self.user}, {self.run_id}, {self.state.value})"

    @property
    def user(self) -> str:
        """Whose it is."""
        return self._user

    @property
    def run_id(self) -> str:
        """Its id."""
        return self._run.run_id

    @property
    def thread_id(self) -> str:
        """Its thread's id."""
        return self._run.thread_id

    @property
    def state(self) -> RunState:
        """Its state as of the last wait."""
        return self._run.state

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its agents' parts."""
        return self._run.stages

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """References to what it has stored; ``artifact`` gives the bytes."""
        return self._run.artifacts

    @property
    def error(self) -> CarrelError | None:
        """Why it did not succeed; None when it did, or has not ended."""
        return self._run.error

    @property
    def result(self) -> Mapping[str, Any]:
        """Its result.

        Raises:
            AssertionError: It has not succeeded; the message says how it ended, and what it told.
        """
        if self._run.result is None:
            raise AssertionError(f"the run has no result: {self._how()}")
        return self._run.result

    async def ended(self, *, timeout_s: float = _WAIT_S) -> Self:
        """Wait for its end, and give it back.

        Raises:
            AssertionError: It waits for a person's answer, or does not end in time.
        """
        run = await self._until(lambda run: run.state.terminal or run.waiting_for is not None, timeout_s, "end")
        if run.waiting_for is not None:
            raise AssertionError(f"the run waits for an answer to {run.waiting_for.prompt!r}: {self._how()}")
        return self

    async def question(self, *, timeout_s: float = _WAIT_S) -> Question:
        """Wait for its next question.

        Raises:
            AssertionError: It ends without one, or takes too long.
        """
        run = await self._until(lambda run: run.state.terminal or run.waiting_for is not None, timeout_s, "ask")
        if run.waiting_for is None:
            raise AssertionError(f"the run ended and asked nothing: {self._how()}")
        return run.waiting_for

    async def told(self, kind: str, *, agent: str | None = None, timeout_s: float = _WAIT_S, **data: Any) -> Event:
        """Wait until it has told an event of this type, of this agent, with these values; the first such.

        Raises:
            AssertionError: It ends without one, or takes too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := self.events.of(kind, agent=agent, **data)):
                    if self.events and self.events[-1].terminal:
                        await self._look()
                        raise AssertionError(f"the run ended and told no such {kind}: {self._how()}")
                    await self.events.grown()
        except TimeoutError:
            await self._look()
            raise AssertionError(f"the run told no such {kind} within {timeout_s:g} s: {self._how()}") from None
        return found[0]

    async def answer(self, value: Any, question: Question | None = None) -> None:
        """Answer its question (the one it waits for now), for an approval with True or False.

        Raises:
            NotWaitingError: It does not wait for it.
            InvalidInputError: The answer does not fit the question's schema.
        """
        asked = question or await self.question()
        factory = self._services.factory
        await factory.provide_input(self._user, self.run_id, asked.input_id, orjson.dumps(value))
        await self._look()

    async def cancel(self, reason: str = "") -> Self:
        """Ask for its end, and wait for it."""
        await self._services.factory.cancel(self._user, self.run_id, reason)
        return await self.ended()

    async def artifact(self, name: str) -> bytes:
        """The bytes of an artifact.

        Raises:
            UnknownArtifactError: It has none of that name.
        """
        if self._artifacts is not None:
            if name not in self._artifacts:
                raise _unknown(name, self._artifacts)
            return self._artifacts[name]
        record = await self._services.runs.store.get_artifact(self._user, self.run_id, name)
        if record is None:
            await self._look()
            raise _unknown(name, [artifact.name for artifact in self.artifacts])
        return await self._services.runs.folder.read(self._user, self.run_id, record.sha256)

    async def audit(self) -> list[AuditRecord]:
        """Its audit records, the oldest first; at most 200."""
        page = await self._services.runs.store.list_audit(self._user, self.run_id, _AUDITED, None)
        return [audit_of(audit_to_proto(entry)) for entry in reversed(page.items)]

    def assert_no_secret(self, *secrets: str) -> None:
        """None of the secrets is in an event, the result or the error, in the plain or encoded.

        Raises:
            AssertionError: One is.
        """
        self.events.assert_no_secret(*secrets)
        assert_no_secret(self._run.result, *secrets, where="the result")
        if self.error is not None:
            assert_no_secret(self.error.to_dict(), *secrets, where="the error")

    async def keep(self) -> None:
        """Read the artifacts, so that they outlive the chain."""
        self._artifacts = {artifact.name: await self.artifact(artifact.name) for artifact in self.artifacts}

    async def _until(self, enough: Callable[[Run], bool], timeout_s: float, what: str) -> Run:
        watching = asyncio.ensure_future(self._watch(enough))
        futures: set[asyncio.Future[Any]] = {watching, self._failure}
        try:
            await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                raise AssertionError("the chain itself has failed") from self._failure.result()
            if not watching.done():
                await self._look()
                raise AssertionError(f"the run did not {what} within {timeout_s:g} s: {self._how()}")
            return watching.result()
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch(self, enough: Callable[[Run], bool]) -> Run:
        runs = self._services.runs
        async with aclosing(watch_run(runs.store, runs.changes, self._user, self.run_id)) as states:
            async for record in states:
                self._run = run_of(run_to_proto(record))
                if enough(self._run):
                    break
        return self._run

    async def _look(self) -> None:
        record = await self._services.runs.store.get_run(self._user, self.run_id)
        if record is not None:
            self._run = run_of(run_to_proto(record))

    def _how(self) -> str:
        error = self.error
        reason = "" if error is None else f", {error.code}: {error.message}"
        if error is not None and error.details:
            reason += f" {dict(error.details)}"
        return f"it is {self.state.value}{reason}. It told:\n{self.events.listing()}"


def _unknown(name: str, there: Any) -> UnknownArtifactError:
    return UnknownArtifactError(f"the run has no artifact {name!r}", advice=f"it has {', '.join(there) or 'none'}")
