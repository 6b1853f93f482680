"""Where a run's time went: parts that add up to what its user waited."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from carrel.cli.timing import REST, fetch_timing
from services.execution.domain.timing import Part
from tests.e2e.checks import until_end
from tests.support.stack import ROOT, RunningStack


async def test_the_parts_of_a_run_add_up_to_what_was_waited(slow_stack: RunningStack) -> None:
    async with slow_stack.client("tim") as client, slow_stack.http("tim") as http:
        _ = await until_end(client, (await client.execute("warm up", pipeline=["slow"])).run_id)
        began = time.monotonic()
        run = await client.execute("hello", pipeline=["slow"])
        _ = await until_end(client, run.run_id)
        timing = await fetch_timing(http, run.run_id, time.monotonic() - began)
    assert timing is not None
    parts = dict(timing.parts_ms)
    assert abs(sum(parts.values()) - timing.wall_ms) < 0.1, timing
    assert set(parts) <= {part.value for part in Part} | {REST}
    for part in (Part.ADMISSION, Part.AGENT_INSTANCE, Part.AGENT, Part.DELIVERY, Part.CHECKPOINT):
        assert parts[part.value] > 0, timing
    for part in (Part.WEBSOCKET_EMITTER, Part.BRIDGE_INTEGRATION):
        assert parts[part.value] > 0, timing
    for part in (Part.EARLIER, Part.LOST, Part.WAITING):
        assert part.value not in parts, timing


def test_the_command_line_shows_a_table_that_adds_up(slow_stack: RunningStack) -> None:
    command = [sys.executable, "-P", "-m", "carrel.cli", "run", "hello", "--agent", "slow", "--timing", "--json"]
    told = subprocess.run(
        [*command, "--state", str(slow_stack.state.root), "--user", "tia"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    timing = next(body for line in told.stdout.splitlines() if (body := json.loads(line)).get("type") == "timing")
    assert abs(sum(timing["parts_ms"].values()) - timing["wall_ms"]) < 0.1, timing
    assert REST in timing["parts_ms"]
