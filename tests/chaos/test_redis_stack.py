"""A whole stack over Redis, emptied or restarted in the middle of a pipeline: the run ends, and its user is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from carrel.client import Event
from tests.chaos.recovery import AGENTS, STAGES
from tests.support.redis_servers import RedisServer, single_server
from tests.support.stack import running_stack

pytestmark = [pytest.mark.chaos, pytest.mark.container, pytest.mark.timeout(150)]


def _flush(server: RedisServer) -> None:
    server.call("FLUSHALL")


def _restart(server: RedisServer) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize(
    ("fault", "kept"), [(_flush, False), (_restart, True)], ids=["everything flushed", "restarted with its data"]
)
async def test_run_ends_and_its_user_is_told(tmp_path: Path, fault: Callable[[RedisServer], None], kept: bool) -> None:
    settings = {"CARREL_BRIDGE_RECOVERY_BASE_DELAY_S": "0.2", "CARREL_BRIDGE_FAILED_PROBE_INTERVAL_S": "1"}
    with single_server(tmp_path, aof=True) as server:
        settings["CARREL_BRIDGE_LOG__URL"] = server.url
        with running_stack(tmp_path, agents=[str(AGENTS)], environment=settings) as stack:
            async with stack.client("alice") as client:
                params = {"folder": str(tmp_path), "pause_s": 0.2}
                run = await client.execute("go", pipeline=list(STAGES), params=params)
                kinds: list[str] = []
                offsets: list[int] = []
                broken = False
                async with asyncio.timeout(90):
                    async for item in client.items():
                        if not isinstance(item, Event):
                            kinds.append(f"notice {item}")
                            offsets.clear()
                            continue
                        kinds.append(item.event_type)
                        offsets.append(item.offset)
                        if not broken and len(kinds) > 8:
                            broken = True
                            await asyncio.to_thread(fault, server)
                        if item.event_type == "run_completed" and item.run_id == run.run_id:
                            assert item.data["status"] == "SUCCEEDED", item
                            break
            notices = [kind for kind in kinds if kind.startswith("notice")]
            if kept:
                assert notices == []
                assert "log_gap" not in kinds
            else:
                assert notices
                assert "log_gap" in kinds
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
            calls = (tmp_path / "calls.txt").read_text().splitlines()
            assert len(calls) == 4 * len(STAGES), "a stage ran twice"
