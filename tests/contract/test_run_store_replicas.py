"""Several processes on the same tables, at the same moment: limits hold, numbers are given once, leases and fences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from carrel.errors import ActiveRunsError, CarrelError, EnginesLimitError
from services.execution.models import JournalItem, RunState, ThreadStrategy, UserKey
from services.execution.models_steps import Admitted, Again, Checkpoint
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_threads import add_message
from tests.contract.run_backends import Backend
from tests.contract.run_support import ALICE, CANCEL, QUESTION, admission, ids, need, success


@asynccontextmanager
async def processes(backend: Backend, *owners: str, **options: Any) -> AsyncIterator[list[SqlRunStore]]:
    """Replicas over the same tables."""
    async with AsyncExitStack() as stack:
        found = []
        for owner in owners:
            store = await backend.process(owner, **options)
            stack.push_async_callback(store.close)
            await store.renew_leases()
            found.append(store)
        yield found


async def test_a_hundred_admissions_of_one_user_through_two_processes_admit_exactly_two(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        asked = [stores[n % 2].admit(admission(f"run-{n}")) for n in range(100)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(result, Admitted) for result in results) == 2
        assert sum(isinstance(result, EnginesLimitError) for result in results) == 98
        assert len((await stores[0].list_engines(ALICE, 100, None)).items) == 2


async def test_the_total_of_all_users_holds_in_two_processes(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        limit: dict[str, Any] = {"max_active_total": 7}
        asked = [stores[n % 2].admit(admission(user=UserKey(f"u{n}"), **limit)) for n in range(60)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(result, Admitted) for result in results) == 7
        assert sum(isinstance(result, ActiveRunsError) for result in results) == 53


async def test_promotions_in_two_processes_begin_no_more_than_the_limits(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        limits: dict[str, Any] = {"max_unended": 50, "strategy": ThreadStrategy.ENQUEUE, "max_active_total": 5}
        for n in range(12):
            for user in (ALICE, UserKey("carol"), UserKey("dave")):
                await stores[n % 2].admit(admission(f"run-{n}", user, **limits))
        running = list((await stores[0].list_engines(None, 100, None)).items)
        assert len(running) == 5
        for engine in running:
            assert await stores[0].finish((await need(stores[0], engine.run_id, engine.user)).ref, CANCEL)
        for _ in range(3):
            await asyncio.gather(*(store.promote(50) for store in stores))
        engines = (await stores[0].list_engines(None, 100, None)).items
        assert len(engines) == 5
        assert all(sum(engine.user == user for engine in engines) <= 2 for user in {engine.user for engine in engines})


async def test_messages_written_at_once_by_two_processes_get_numbers_of_their_own(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        await stores[0].admit(admission(thread="t"))
        row = {"user_id": ALICE, "thread_id": "t", "role": "assistant", "run_id": "run-1", "created_at": 1}
        texts = [f"message {n}" for n in range(40)]
        # Of different keys, so that they are under way at the same time in one process too.
        writes = [
            stores[n % 2]._database.write(partial(add_message, message={**row, "text": text}), text)
            for n, text in enumerate(texts)
        ]
        assert all(await asyncio.gather(*writes))
        page = await stores[0].messages(ALICE, "t", 100, None)
        assert sorted(message.text for message in page.items) == sorted(["hello", *texts])
        thread = await stores[1].get_thread(ALICE, "t")
        assert thread is not None
        assert thread.message_count == 41


@pytest.mark.parametrize("strategy", [ThreadStrategy.INTERRUPT, ThreadStrategy.ROLLBACK, ThreadStrategy.ENQUEUE])
async def test_an_end_and_the_next_message_of_the_thread_at_once(backend: Backend, strategy: ThreadStrategy) -> None:
    async with processes(backend, "one", "two") as (one, two):
        limits: dict[str, Any] = {"thread": "t", "strategy": strategy, "max_unended": 100, "max_engines": 100}
        run = (await one.admit(admission("run-00", **limits))).run
        for n in range(1, 11):
            store, other = (one, two) if n % 2 else (two, one)
            ended, admitted, _ = await asyncio.gather(
                store.finish(run.ref, replace(success(), reply=f"reply {n}")),
                other.admit(admission(f"run-{n:02}", **limits)),
                one.promote(10),
            )
            assert (ended is None) == bool(admitted.ended)
            await asyncio.gather(one.promote(10), two.promote(10))
            run = await need(one, f"run-{n:02}")
            assert run.state is RunState.RUNNING
        thread = await one.get_thread(ALICE, "t")
        messages = (await one.messages(ALICE, "t", 100, None)).items
        assert thread is not None
        assert thread.message_count == len(messages)
        assert sum(message.run_id == "run-10" for message in messages) == 1


async def test_takers_over_at_once_share_what_is_left_and_the_former_holder_is_fenced_off(backend: Backend) -> None:
    async with processes(backend, "one", "two", "three") as (one, two, three):
        users = [UserKey(f"user-{n}") for n in range(20)]
        runs = [(await one.admit(admission(user=user))).run for user in users]
        assert await two.take_over() == ()
        await one.release_leases()
        taken = await asyncio.gather(two.take_over(), three.take_over())
        both = [run.identity.user for some in taken for run in some]
        # Those that one had just locked, the other left to it.
        both += [run.identity.user for store in (two, three) for run in await store.take_over()]
        assert sorted(both) == sorted(users)
        ref = runs[0].ref
        assert await one.checkpoint(ref, Checkpoint(0, b"{}", "data")) is None
        assert await one.begin_attempt(ref, 0, Again.WORKER_LOST, lost=True) is None
        assert await one.suspend(ref, QUESTION, 60) is None
        assert await one.finish(ref, CANCEL) is None
        assert not await one.save_journal(ref, 0, [JournalItem(1, "c1", "tool", "t", "h", b"1")])
        held = [(user, "run-1") for user in users]
        assert await one.decided(held) == set(held)
        await one.renew_leases()
        assert await one.take_over() == ()


async def test_the_same_request_through_two_processes_is_one_run(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        asked = [stores[n % 2].admit(admission(f"run-{n}", client_ref="ref")) for n in range(20)]
        results = await asyncio.gather(*asked)
        assert len({result.run.identity.run_id for result in results}) == 1
        assert sum(not result.existing for result in results) == 1
        assert ids(results)


async def test_ends_that_race_in_two_processes_have_one_winner(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        run = (await stores[0].admit(admission())).run
        ends = await asyncio.gather(*(stores[n % 2].finish(run.ref, CANCEL) for n in range(10)))
        assert sum(end is not None for end in ends) == 1
        closed = await asyncio.gather(*(stores[n % 2].close_run(run.ref) for n in range(4)))
        assert sum(closed) == 1


async def test_cancels_and_admissions_of_many_users_at_once_meet_no_deadlock(backend: Backend) -> None:
    async with processes(backend, "one", "two") as stores:
        users = [UserKey(f"user-{n}") for n in range(6)]
        options: dict[str, Any] = {"thread": "t", "strategy": ThreadStrategy.INTERRUPT, "max_active_total": 10}

        async def user_of(user: UserKey, number: int) -> None:
            for n in range(6):
                store = stores[(n + number) % 2]
                run = (await store.admit(admission(f"run-{n}", user, max_unended=20, **options))).run
                await asyncio.gather(
                    store.save_journal(run.ref, 0, [JournalItem(1, "c1", "tool", "t", "h", b"1")]),
                    stores[n % 2].finish(run.ref, success()),
                    stores[0].promote(10),
                    stores[1].sweep(),
                )

        results = await asyncio.gather(*(user_of(u, n) for n, u in enumerate(users)), return_exceptions=True)
        assert [result for result in results if isinstance(result, CarrelError)] == []
        assert [result for result in results if isinstance(result, BaseException)] == []


async def test_a_cancel_of_one_process_while_another_asks_numbers_the_runs_last_events_once(backend: Backend) -> None:
    async with processes(backend, "one", "two") as (one, two):
        for turn in range(25):
            user = UserKey(f"u{turn}")
            admitted = await one.admit(admission(f"run-{turn}", user))
            ref = admitted.run.ref
            # The cancel's update waits for the lock of the question's, and must not number by what was before it.
            asked, cancelled = await asyncio.gather(one.suspend(ref, QUESTION, 60), two.finish(ref, CANCEL))
            assert cancelled is not None
            kinds = [event.event_type for event in await one.outbox(user, ref.run_id)]
            numbers = [event.number for event in await one.outbox(user, ref.run_id)]
            assert numbers == list(range(1, len(numbers) + 1))
            assert kinds[-1] == "run_completed"
            assert ("input_required" in kinds) == (asked is not None)
