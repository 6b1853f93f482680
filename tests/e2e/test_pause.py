"""A process that stands still for a while (SIGSTOP) and goes on: what it missed is read before anything is judged."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from carrel.client import SocketClient
from tests.conftest import Eventually
from tests.e2e.checks import check_run, until_end
from tests.support.stack import running_stack

AGENTS = str(Path(__file__).with_name("slow_agents.py"))
QUICK = {"CARREL_EXECUTION_SILENCE_SECONDS": "1", "CARREL_AGENT_INSTANCE_TIMES__HEARTBEAT": "0.2"}


async def _status(client: SocketClient, steps: int, begun: list[str]) -> str:
    run = await client.execute("go", pipeline=["slow"], params={"steps": steps})
    begun.append(run.run_id)
    return str(check_run(await until_end(client, run.run_id), run.run_id)[-1].data["status"])


async def test_runs_survive_a_pause_of_execution_longer_than_the_silence_it_allows(
    tmp_path: Path, eventually: Eventually
) -> None:
    # Some runs end while it stands still, others go on after it.
    with running_stack(tmp_path, agents=[AGENTS], environment=QUICK) as stack:
        async with AsyncExitStack() as clients, asyncio.timeout(50):
            begun: list[str] = []
            runs = []
            for n in range(8):
                client = await clients.enter_async_context(stack.client(f"pause-{n}", patient=True))
                runs.append(asyncio.create_task(_status(client, 60 + 20 * n, begun)))
            await eventually(lambda: len(begun) == len(runs))
            stack.kill("execution", signal.SIGSTOP)
            try:
                await asyncio.sleep(2.5)  # the pause itself
            finally:
                stack.kill("execution", signal.SIGCONT)
            assert await asyncio.gather(*runs) == ["SUCCEEDED"] * len(runs)
