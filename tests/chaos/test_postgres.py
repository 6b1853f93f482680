"""PostgreSQL is restarted and killed under the runs of two executions: every run ends, and none is forgotten."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from carrel.errors import CarrelError, DeadlineError, UnavailableError
from carrel.ids import new_id
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from tests.support.execution import TERMINAL, Attempt, Up, World, result, running_replicas
from tests.support.postgres import OwnServer, PostgresServer

pytestmark = [pytest.mark.chaos, pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(120)]
USERS, ROUNDS = 6, 3
UNENDED = "SELECT user_id, run_id, state FROM runs WHERE state IN ('QUEUED', 'RUNNING', 'WAITING', 'FINISHING')"


async def busy(attempt: Attempt) -> AsyncIterator[Up]:
    """An agent that makes calls, which are journaled, and answers a little later."""
    yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
    for number in range(1, 4):
        entry = ai.JournalEntry(number=number, call_id=f"c{number}", kind="tool", name="t", result_json=b"1")
        yield Up(journal_entry=entry)
        await asyncio.sleep(0.03)
    yield result({"rows": 3})


class User:
    """Asks for one run after the other, through either replica, and insists on an answer under the same name."""

    def __init__(self, name: str, worlds: list[World], chance: random.Random) -> None:
        self.name, self.worlds, self.chance = name, worlds, chance
        self.runs: list[str] = []
        self.ended = asyncio.Event()

    async def live(self) -> None:
        """Until told to end; the run under way is seen to its end."""
        while not self.ended.is_set():
            run_id = await self.ask()
            self.runs.append(run_id)
            state = await self.seen_through(run_id)
            assert state == pb.RUN_STATE_SUCCEEDED, (self.name, run_id, pb.RunState.Name(state))

    async def ask(self) -> str:
        ref = new_id("ref")
        pipeline = self.chance.choice([["data"], ["data", "optimization"]])
        while True:
            world = self.chance.choice(self.worlds)
            # A commit in doubt is waited for until the server can be asked, which may be longer than the call has time.
            with suppress(UnavailableError, DeadlineError):
                response = await world.execute(user=self.name, pipeline=pipeline, client_ref=ref)
                run: str = response.run.run_id
                return run
            await asyncio.sleep(0.05)

    async def seen_through(self, run_id: str) -> pb.RunState.ValueType:
        while True:
            with suppress(CarrelError):
                run = await self.chance.choice(self.worlds).run(run_id, self.name)
                if run.state in TERMINAL:
                    return run.state
            await asyncio.sleep(0.1)


async def test_every_run_ends_while_postgresql_comes_and_goes(postgres: PostgresServer, tmp_path: Path) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server is not ours to stop")
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    name = await postgres.create()
    scripts = {"data": busy, "optimization": busy}
    async with running_replicas(tmp_path, postgres.url(name), scripts=scripts, lease_seconds=2) as worlds:
        users = [User(f"user-{n}", worlds, random.Random(seed + n)) for n in range(USERS)]
        living = [asyncio.create_task(user.live()) for user in users]
        for _ in range(ROUNDS):
            await asyncio.sleep(chance.uniform(0.5, 2.0))
            await asyncio.to_thread(chance.choice([postgres.stop, postgres.kill]))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.5, 3.0]))
            await asyncio.to_thread(postgres.start)
        await asyncio.sleep(1)
        for user in users:
            user.ended.set()
        _, waiting = await asyncio.wait(living, timeout=40)
        if waiting:
            stuck = {user.name: user.runs[-1:] for user, task in zip(users, living, strict=True) if task in waiting}
            for task in waiting:
                task.cancel()
            pytest.fail(f"not ended within 40 s: {stuck}; the store has {await postgres.aexecute(UNENDED, name)}")
        await asyncio.gather(*living)
        emitter = worlds[0].emitter
        for user in users:
            for run_id in user.runs:
                kinds = emitter.kinds(run_id, user.name)
                assert (kinds[0], kinds[-1], kinds.count("run_completed")) == ("run_accepted", "run_completed", 1)
        left = await postgres.aexecute("SELECT count(*) AS n FROM engines", name)
        assert left[0]["n"] == 0
        # On a busy machine a run may take as long as all the rounds.
        assert all(user.runs for user in users)
    assert await postgres.aexecute(UNENDED, name) == []
    await postgres.drop(name)
