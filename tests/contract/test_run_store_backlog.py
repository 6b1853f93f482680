"""The run store's contract: how many runs have not ended, and for how long, as operators are told."""

from services.execution.models import UNENDED_STATES, RunState, ThreadStrategy
from services.execution.models_steps import Unended
from services.execution.store import RunStore
from tests.contract.run_support import BOB, CANCEL, QUESTION, Clock, admission


async def test_unended_runs_are_counted_by_state_with_the_age_of_the_oldest(store: RunStore, clock: Clock) -> None:
    nothing = await store.backlog()
    assert nothing == {state: Unended(0, 0.0) for state in UNENDED_STATES}
    first = (await store.admit(admission("run-1", thread="t"))).run
    clock.forward(10)
    _ = await store.admit(admission("run-2", thread="t", strategy=ThreadStrategy.ENQUEUE))
    waits = (await store.admit(admission("run-3", user=BOB, thread="u"))).run
    clock.forward(5)
    assert await store.suspend(waits.ref, QUESTION, 60.0) is not None
    found = await store.backlog()
    assert found[RunState.RUNNING] == Unended(1, 15.0)
    assert found[RunState.QUEUED] == Unended(1, 5.0)
    assert found[RunState.WAITING] == Unended(1, 5.0)
    assert await store.finish(first.ref, CANCEL)
    clock.forward(2)
    found = await store.backlog()
    assert found[RunState.FINISHING] == Unended(1, 2.0), "since its outcome"
    assert await store.close_run(first.ref)
    assert (await store.backlog())[RunState.FINISHING].runs == 0
