"""The run store's part of what replicas share: names that are given once, revoked users, where an attempt is."""

from __future__ import annotations

import asyncio

from services.execution.models import UserKey
from services.execution.store import RunStore
from tests.contract.run_support import admission, need

ALICE, BOB = UserKey("alice"), UserKey("bob")


async def test_of_many_who_ask_for_a_name_one_is_first(store: RunStore) -> None:
    asked = await asyncio.gather(*(store.claim_once("gateway:token-1", 30) for _ in range(20)))
    assert sorted(asked) == [False] * 19 + [True]
    assert await store.claim_once("gateway:token-2", 30)
    assert not await store.claim_once("gateway:token-1", 30)


async def test_a_name_is_forgotten_once_its_time_is_over(store: RunStore) -> None:
    assert await store.claim_once("short", 0.0)
    assert await store.claim_once("long", 60.0)
    await store.sweep()
    assert await store.claim_once("short", 30)
    assert not await store.claim_once("long", 30)


async def test_revocations_are_told_to_who_asks_after_them(store: RunStore) -> None:
    nothing = await store.revocations(0)
    assert nothing.items == ()
    first = await store.revoke_user(ALICE, "left the company")
    found = await store.revocations(nothing.as_of)
    assert [(item.user, item.not_before) for item in found.items] == [(ALICE, first)]
    assert found.as_of >= first
    again = await store.revoke_user(ALICE, "")
    assert again >= first
    await store.revoke_user(BOB, "")
    found = await store.revocations(found.as_of)
    # One for each user, the latest; what was told shortly before may be told again.
    assert {item.user: item.not_before for item in found.items}[ALICE] == again
    assert [item.user for item in found.items].count(ALICE) == 1
    assert BOB in {item.user for item in found.items}


async def test_revocations_survive_the_sweep(store: RunStore) -> None:
    await store.revoke_user(ALICE, "")
    await store.sweep()
    assert len((await store.revocations(0)).items) == 1


async def test_where_an_attempt_is_is_kept_under_its_fence_only(store: RunStore) -> None:
    run = (await store.admit(admission())).run
    assert run.agent_instance == "127.0.0.1:1"
    assert await store.place_attempt(run.ref, "10.0.0.7:50052")
    assert (await need(store, run.identity.run_id)).agent_instance == "10.0.0.7:50052"
    stale = type(run.ref)(run.ref.user, run.ref.run_id, run.ref.fence + 1)
    assert not await store.place_attempt(stale, "10.0.0.8:50052")
