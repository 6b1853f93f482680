"""The state machine, page tokens, metrics, watching, coalescing, the catalogue: each on its own."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from carrel.errors import DownstreamUnavailableError, InternalError, InvalidRequestError
from servicekit.tasks import TaskOwner
from services.execution.domain.catalogue import AgentCatalogue
from services.execution.domain.coalesce import Coalescer
from services.execution.domain.metrics import FactoryMetrics, Reservoir
from services.execution.domain.paging import decode_token, encode_token
from services.execution.domain.planning import AgentFacts, Catalogue
from services.execution.domain.states import ENDABLE, HOLDS_ENGINE, TRANSITIONS, check_outcome, may_become
from services.execution.domain.watch import Changes
from services.execution.models import TERMINAL_STATES, RunState, UserKey


def ignore(name: str, error: BaseException) -> None:
    """These tasks may fail."""


def test_every_state_has_its_transitions_and_terminal_ones_none() -> None:
    assert set(TRANSITIONS) == set(RunState)
    assert all(not TRANSITIONS[state] for state in TERMINAL_STATES)
    assert {state for state in RunState if may_become(state, RunState.FINISHING)} == ENDABLE
    assert TRANSITIONS[RunState.FINISHING] == TERMINAL_STATES
    assert {RunState.RUNNING} == HOLDS_ENGINE


@pytest.mark.parametrize("state", sorted(set(RunState) - TERMINAL_STATES))
def test_only_terminal_states_are_outcomes(state: RunState) -> None:
    with pytest.raises(InternalError):
        check_outcome(state)


def test_page_tokens_lead_back_to_their_key_and_to_no_other_listing() -> None:
    token = encode_token("runs", (12, "run-1"))
    assert decode_token("runs", "is", token) == (12, "run-1")
    assert encode_token("runs", None) == ""
    assert decode_token("runs", "is", "") is None
    foreign = [encode_token("runs", key) for key in (("12", "run-1"), (2**64 - 1, "run-1"), (True, "run-1"), (1,))]
    for wrong in (*foreign, encode_token("threads", (12, "run-1")), "%%%", "e30", "ü"):
        with pytest.raises(InvalidRequestError):
            decode_token("runs", "is", wrong)


def test_reservoir_is_bounded_and_recent() -> None:
    reservoir = Reservoir(size=100)
    assert (reservoir.average, reservoir.percentile(0.95)) == (0.0, 0.0)
    for value in range(1000):
        reservoir.add(value)
    assert reservoir.average == pytest.approx(499.5)
    assert reservoir.percentile(0.95) == 995


def test_metrics_count_under_the_documents_names() -> None:
    metrics = FactoryMetrics()
    metrics.engine_made(active=1)
    metrics.engine_made(active=2)
    for outcome, seconds in ((RunState.SUCCEEDED, 1.0), (RunState.TIMED_OUT, 3.0)):
        metrics.run_admitted()
        metrics.run_decided(outcome, seconds)
    metrics.layer("agent_instance", 4.0)
    snapshot = metrics.snapshot(active=0, users=0)
    assert (snapshot.engines_created, snapshot.concurrent_peak) == (2, 2)
    assert (snapshot.runs_total, snapshot.runs_successful, snapshot.runs_failed, snapshot.timeouts) == (2, 1, 1, 1)
    assert metrics.cancellations == 0
    assert snapshot.execution_time_average == 2.0
    assert snapshot.factory_chain_metrics["agent_instance"] == 4.0


def test_a_cancelled_run_counts_as_failed_and_can_be_told_apart() -> None:
    metrics = FactoryMetrics()
    for outcome in (RunState.CANCELLED, RunState.FAILED, RunState.CANCELLED, RunState.SUCCEEDED):
        metrics.run_decided(outcome, 1.0)
    assert (metrics.runs_failed, metrics.cancellations, metrics.timeouts) == (3, 2, 0)


async def test_watchers_of_one_run_are_woken_and_forgotten() -> None:
    changes = Changes()
    alice = UserKey("alice")
    with changes.watching(alice, "run-1") as mine, changes.watching(UserKey("bob"), "run-1") as others:
        changes.notify(alice, "run-1")
        assert mine.is_set()
        assert not others.is_set()
    changes.notify(alice, "run-1")


async def test_items_that_arrive_during_a_write_go_out_together_in_order() -> None:
    written: list[list[int]] = []
    go = asyncio.Event()

    async def save(items: Sequence[int]) -> None:
        await go.wait()
        written.append(list(items))

    async with TaskOwner() as tasks:
        coalescer = Coalescer[int](save, tasks.start, "test")
        await coalescer.add(0)
        await asyncio.sleep(0)
        for n in (1, 2, 3):
            await coalescer.add(n)
        go.set()
        await coalescer.drained()
        await coalescer.drained()
    assert written == [[0], [1, 2, 3]]


async def test_a_write_that_fails_is_heard_of() -> None:
    async def save(items: Sequence[int]) -> None:
        raise DownstreamUnavailableError("away")

    async with TaskOwner(on_failure=ignore) as tasks:
        coalescer = Coalescer[int](save, tasks.start, "test")
        await coalescer.add(0)
        with pytest.raises(DownstreamUnavailableError):
            await coalescer.drained()
        with pytest.raises(DownstreamUnavailableError):
            await coalescer.add(1)


class Host:
    """Gives the registry as often as it is asked, unless it is away."""

    address = "nowhere"

    def __init__(self) -> None:
        self.names = ["data"]
        self.asked = 0
        self.away = False

    async def catalogue(self) -> Catalogue:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise DownstreamUnavailableError("away")
        return Catalogue({name: AgentFacts(name) for name in self.names})


class Hand:
    """A clock's hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_catalogue_is_asked_once_and_again_for_a_name_it_lacks() -> None:
    host, clock = Host(), Hand()
    async with TaskOwner() as tasks:
        catalogue = AgentCatalogue(cast(Any, host), tasks, clock)
        await asyncio.gather(*(catalogue.covering(["data"]) for _ in range(5)))
        assert host.asked == 1
        assert "late" not in await catalogue.covering(["late"])
        assert host.asked == 1  # asked just now
        host.names.append("late")
        clock.now += 1
        assert "late" in await catalogue.covering(["late"])
        assert host.asked == 2


async def test_catalogue_outlives_a_lost_host_and_refreshes_in_the_background() -> None:
    host, clock = Host(), Hand()
    async with TaskOwner() as tasks:
        catalogue = AgentCatalogue(cast(Any, host), tasks, clock)
        host.away = True
        with pytest.raises(DownstreamUnavailableError):
            await catalogue.covering()
        host.away = False
        await catalogue.covering()
        host.away = True
        clock.now += 60
        assert "data" in await catalogue.covering(["data"])  # answers at once, asks behind the scenes
        clock.now += 1
        assert "late" not in await catalogue.covering(["late"])
        host.away, host.names = False, ["data", "late"]
        catalogue.invalidate()
        assert "late" in await catalogue.covering(["late"])
