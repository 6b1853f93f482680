"""What the tests of the run store's contract share: a clock, an admission, ways to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.execution.models import RunIdentity, RunRecord, RunState, ThreadStrategy, UserKey
from services.execution.models_steps import Admission, Admitted, Checkpoint, Finish, Kept, Question
from services.execution.store import RunStore

ALICE, BOB = UserKey("alice"), UserKey("bob")
SECOND = 1_000_000


class Clock:
    """A wall clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


def admission(run: str = "run-1", user: UserKey = ALICE, thread: str = "", **changes: Any) -> Admission:
    identity = RunIdentity(
        user=user,
        thread_id=thread or f"thread-{run}",
        run_id=run,
        request_id=f"req-{run}",
        permissions=frozenset({"trace:read"}),
        limits={"max_engines_per_user": 2},
        created_at=1_700_000_000 * SECOND,
        agent_context={"a": [1, {"b": None}]},
    )
    base = Admission(
        identity=identity,
        message="hello",
        params=b'{"n":1}',
        stages=("data", "report"),
        agent_name="data",
        content_hash="h1",
        client_ref="",
        strategy=ThreadStrategy.REJECT,
        engine_id="",
        new_engine_id=f"eng-{run}",
        max_engines=2,
        max_unended=5,
        agent_instance="127.0.0.1:1",
    )
    return replace(base, **changes)


def success(result: bytes = b'{"ok":true}', reply: str = "done") -> Finish:
    return Finish(RunState.SUCCEEDED, result=result, reply=reply, answered_by="report")


def keeps(data: bytes, agent: str = "data", quota: int = 1000) -> Kept:
    return Kept(agent, data, quota)


def completed(kept: Kept | None = None, index: int = 0) -> Checkpoint:
    """A stage of ``data`` that is done, and what it keeps."""
    return Checkpoint(index, b"{}", "data", memory=kept)


CANCEL = Finish(
    RunState.CANCELLED, error={"code": "CANCELLED_RUN", "message": "cancelled", "status": "CANCELLED"}, interrupts=True
)


async def finish_and_close(store: RunStore, admitted: Admitted) -> None:
    assert await store.finish(admitted.run.ref, CANCEL)
    assert await store.close_run(admitted.run.ref)


QUESTION = Question("inp-1", "go on?", b'{"type":"boolean"}')


async def need(store: RunStore, run_id: str, user: UserKey = ALICE) -> RunRecord:
    """The run, which is there."""
    run = await store.get_run(user, run_id)
    assert run is not None
    return run


async def said(store: RunStore, thread: str, user: UserKey = ALICE) -> list[tuple[str, str]]:
    """A thread's messages: who said what."""
    return [(message.role, message.text) for message in (await store.messages(user, thread, 1000, None)).items]


def ids(items: Sequence[Any]) -> list[str]:
    """The runs of records or steps."""
    return [getattr(item, "run", item).identity.run_id for item in items]
