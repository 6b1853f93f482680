"""What an author finds in the log when an agent or a tool of theirs fails, and what is in no log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.agent_messages import RunToolBody, ToolBodyResult
from servicekit import logs
from tests.unit.carrel.conftest import RUN

Hire = Callable[..., Any]


@tool
async def explode(ctx: AgentContext) -> None:
    """Fails."""
    raise LookupError("alice's private words")


class Failing(Agent):
    """Fails, or waits while its tool does."""

    name = "failing"
    tools = (explode,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Fails."""
        if request.message == "wait":
            await asyncio.Event().wait()
        raise ValueError("alice's private words")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def failures(stream: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in lines if line["event"] in {"agent failed", "tool failed"}]


async def test_failed_agent_is_told_with_its_place_its_run_and_no_text(hire: Hire, stream: io.StringIO) -> None:
    logs.configure("agent_instance", "info", "json", stream)
    host = hire(Failing)
    host.start()
    await host.failure()
    (line,) = failures(stream)
    assert (line["event"], line["agent_name"], line["cause"]) == ("agent failed", "failing", "ValueError")
    assert line["where"].startswith("test_agent_failures.py:")
    assert (line["run_id"], line["user"]) == (RUN.run_id, logs.hash_user(RUN.user_id))
    assert "private" not in stream.getvalue()
    assert "traceback" not in line


async def test_failed_tool_is_told_likewise(hire: Hire, stream: io.StringIO) -> None:
    logs.configure("agent_instance", "info", "json", stream)
    host = hire(Failing)
    host.start(message="wait")
    host.say(RunToolBody("call-1", "explode", {}, 0, RUN.to_dict()))
    await host.hear(ToolBodyResult)
    (line,) = failures(stream)
    assert (line["event"], line["tool_name"], line["cause"]) == ("tool failed", "explode", "LookupError")
    assert line["where"].startswith("test_agent_failures.py:")
    assert (line["run_id"], line["user"]) == (RUN.run_id, logs.hash_user(RUN.user_id))
    assert "private" not in stream.getvalue()


async def test_at_debug_the_author_sees_files_and_lines(hire: Hire, stream: io.StringIO) -> None:
    logs.configure("agent_instance", "debug", "json", stream)
    host = hire(Failing)
    host.start()
    await host.failure()
    (line,) = failures(stream)
    assert line["error_type"] == "ValueError"
    assert "test_agent_failures.py" in line["traceback"]
    assert "in run" in line["traceback"]
