"""What an attempt starts with: results so far, the conversation, and for a repeated one its journal and answers."""

from __future__ import annotations

from services.execution.domain.budgets import Budgets
from services.execution.domain.ports import StageStart
from services.execution.domain.services import RunOptions, RunServices
from services.execution.models import MessageRecord, RunIdentity, RunRecord, StageRecord, StageState

__all__ = ["history_of", "stage_start"]


async def stage_start(
    services: RunServices,
    budgets: Budgets,
    run: RunRecord,
    stage: StageRecord,
    history: tuple[MessageRecord, ...] | None,
) -> StageStart:
    """The start of the stage's present attempt.

    Args:
        history: The thread's conversation before; None in a new thread, where there is nothing to look for.

    Raises:
        StoreUnavailableError: A repeated attempt's journal, or what the agent has kept, can't be read.
    """
    identity = run.identity
    repeated = stage.attempt > 1
    journal = await services.store.journal(identity.user, identity.run_id, stage.index) if repeated else ()
    inputs = await services.store.answers(identity.user, identity.run_id, stage.index) if repeated else ()
    key = (identity.user, identity.thread_id, stage.agent_name)
    memory = b"" if history is None else await services.store.memory(*key)
    return StageStart(
        identity=identity,
        agent_name=stage.agent_name,
        index=stage.index,
        attempt=max(stage.attempt, 1),
        fence=run.fence,
        message=run.message,
        params=run.params,
        deadline_at=run.deadline_at,
        results={
            done.agent_name: done.result
            for done in run.stages
            if done.state is StageState.SUCCEEDED and done.result is not None
        },
        history=history or (),
        journal=journal,
        inputs=inputs,
        # What came before the last question is in the log, whatever became of the attempts since its answer.
        quiet_until_input=inputs[-1].input_id if inputs else "",
        last_attempt=stage.lost + 1 >= services.options.max_attempts,
        budget=await budgets.of(identity),
        memory=memory,
    )


async def history_of(services: RunServices, identity: RunIdentity) -> tuple[MessageRecord, ...]:
    """The thread's conversation before the run, its oldest messages left out beyond the bounds."""
    options = services.options
    found = await services.store.history(identity.user, identity.thread_id, identity.run_id, options.history_messages)
    return _bounded(found, options)


def _bounded(found: tuple[MessageRecord, ...], options: RunOptions) -> tuple[MessageRecord, ...]:
    kept: list[MessageRecord] = []
    room = options.history_bytes
    for message in reversed(found):
        room -= len(message.text.encode())
        if room < 0:
            break
        kept.append(message)
    return tuple(reversed(kept))
