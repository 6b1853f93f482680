"""The example application moves over: nobody, half, everybody, and back at once; with the chain away in between."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from carrel.migration import Served
from carrel.migration_rollout import place_of
from examples.migration import after, before
from tests.conftest import Eventually
from tests.support.stack import ROOT, RunningStack, clean_environment, running_stack

ITEMS = {"items": [{"sku": "bolt", "count": 250}, {"sku": "washer", "count": 5}]}
QUOTE = {
    "lines": [{"sku": "bolt", "count": 250, "cents": 2760}, {"sku": "washer", "count": 5, "cents": 15}],
    "cents": 2775,
}
USERS = [f"user{number}" for number in range(10)]
MOVED = {user for user in USERS if place_of(user) < 5000}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    agents = str(ROOT / "examples" / "migration" / "agents.py")
    with running_stack(tmp_path_factory.mktemp("migration"), agents=[agents]) as running:
        yield running


@dataclass
class Application:
    """The application after, as a client sees it; ``served`` is what its adapters told since it was last cleared."""

    stack: RunningStack
    rollout: Path
    http: aiohttp.ClientSession
    url: str = ""
    served: list[Served] = field(default_factory=list)

    def roll(self, rollout: object) -> None:
        """From the next call on."""
        self.rollout.write_text(json.dumps(rollout), encoding="utf-8")

    async def ask(self, user: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status, and the answer or its text."""
        headers = {"Authorization": f"Bearer {self.stack.token(user)}"}
        async with self.http.post(self.url + path, json=body, headers=headers) as response:
            return response.status, await (response.json() if response.status == 200 else response.text())

    async def quotes(self) -> Counter[str]:
        """One quote for each user, all of them right; which way they went."""
        self.served.clear()
        answers = await asyncio.gather(*(self.ask(user, "/quote", ITEMS) for user in USERS))
        assert answers == [(200, QUOTE)] * len(USERS)
        return Counter(served.path for served in self.served if not served.error)


@pytest.fixture
async def application(stack: RunningStack, tmp_path: Path) -> AsyncIterator[Application]:
    rollout = tmp_path / "rollout.json"
    rollout.write_text("{}", encoding="utf-8")
    async with aiohttp.ClientSession() as http:
        found = Application(stack, rollout, http)
        secret = stack.state.login_secret.read_bytes().strip()
        app = after.application(secret, stack.url, rollout, served=found.served.append)
        async with TestServer(app) as server:
            found.url = f"http://{server.host}:{server.port}"
            yield found


async def test_the_application_before_answers_the_same(stack: RunningStack) -> None:
    secret = stack.state.login_secret.read_bytes().strip()
    async with TestServer(before.application(secret)) as server, aiohttp.ClientSession() as http:
        old = Application(stack, Path(), http, f"http://{server.host}:{server.port}")
        assert await old.ask("alice", "/quote", ITEMS) == (200, QUOTE)
        assert (await old.ask("alice", "/quote", {"items": [{"sku": "x"}]}))[0] == 400
        assert (await old.ask("alice", "/delivery", {"pieces": 501}))[1]["vans"] == 2


async def test_nobody_then_half_then_everybody_and_back_at_once(application: Application) -> None:
    assert 0 < len(MOVED) < len(USERS)
    assert await application.quotes() == Counter(old=10)
    application.roll({"POST /quote": 50})
    assert await application.quotes() == Counter(old=10 - len(MOVED), new=len(MOVED))
    assert await application.quotes() == Counter(old=10 - len(MOVED), new=len(MOVED)), "the same users again"
    application.roll({"default": 100})
    assert await application.quotes() == Counter(new=10)
    assert (await application.ask("alice", "/delivery", {"pieces": 501}))[1]["slot"].startswith("run-")
    status, text = await application.ask("alice", "/quote", {"items": [{"sku": "x"}]})
    assert (status, "no article" in text) == (400, True), "what is wrong is told as before"
    application.roll({})
    assert await application.quotes() == Counter(old=10)
    assert (await application.ask("alice", "/delivery", {"pieces": 1}))[1]["slot"] == 1


async def test_shadows_run_beside_and_compare(application: Application, eventually: Eventually) -> None:
    application.roll({"POST /quote": {"percent": 0, "shadow_percent": 100}})
    assert (await application.quotes())["old"] == 10
    shadows = await eventually(
        lambda: [one for one in application.served if one.path == "shadow"] if len(application.served) == 20 else [],
        within=20,
    )
    assert [one.same for one in shadows if not one.error] == [True] * 10


@pytest.mark.chaos
async def test_while_the_chain_is_away_what_may_be_done_twice_is_answered_the_old_way(
    application: Application, eventually: Eventually
) -> None:
    stack = application.stack
    application.roll({"default": 100})
    os.kill(stack.process.pid, signal.SIGSTOP)  # the supervisor, lest it starts the gateway again
    try:
        stack.kill("gateway")
        assert await application.quotes() == Counter(fallback=10)
        status, _ = await application.ask("alice", "/delivery", {"pieces": 1})
        assert status == 503, "what may not be done twice is not done by anybody"
        application.roll({})
        assert (await application.ask("alice", "/delivery", {"pieces": 1}))[0] == 200
    finally:
        os.kill(stack.process.pid, signal.SIGCONT)
    application.roll({"default": 100})

    async def moved() -> bool:
        return await application.quotes() == Counter(new=10)

    assert await eventually(moved, within=30), "and it goes the new way again by itself"


@pytest.mark.timeout(120)
def test_one_command_runs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "examples.migration", "--state", str(tmp_path / "s"), "--port", "0"]
    environment = clean_environment()
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = next(text for text in process.stdout if text.startswith("the application is at"))
            assert re.search(r"http://\S+:[1-9]\d+(?=;)", line)
            assert next(process.stdout).startswith("TOKEN=ey")
        finally:
            process.terminate()
        assert process.wait(40) == 0
