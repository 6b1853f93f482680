"""A stack is copied while a run is under way, destroyed, and restored, by the scripts of docs/operations/backup.md.

Once on embedded stores, once on PostgreSQL and Redis, once with an empty log. Not here: what becomes of a log that is
newer than the run store, which the page tells not to make.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from carrel.client import Event, GatewayHttp, Position, Reset, RunStatus
from carrel.errors import TokenError
from servicekit.sealing_keys import add_key
from tests.conftest import Eventually
from tests.support.needs import unavailable
from tests.support.postgres import PostgresServer, run_apart
from tests.support.redis_servers import RedisServer, any_binary
from tests.support.stack import ROOT, RunningStack, clean_environment, running_stack

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(240)]
PAGE: Final = ROOT / "docs" / "operations" / "backup.md"
AGENTS: Final = [str(Path(__file__).with_name("backup_agents.py"))]
STEPS: Final = 60
LATER: Final = STEPS - 20


@dataclass
class Before:
    """What there was: everything here is looked for afterwards."""

    kept_run: str = ""
    thread: str = ""
    going_run: str = ""
    read_by_then: Position | None = None
    read_later: Position | None = None
    token: str = ""
    signed_out: str = ""


def script(name: str, **variables: object) -> None:
    """Run one of the page's scripts."""
    found = re.search(rf"<!-- script: {name} -->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{PAGE.name} has no script {name}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", found[1]],
        env=clean_environment({key: str(value) for key, value in variables.items()}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


async def work(stack: RunningStack, copy: Callable[[], None], before: Before, eventually: Eventually) -> None:
    """A run that has ended, a login that is out, and a copy in the middle of a run that goes on to its end.

    The run waits for the copy. One that ended between the copies of the log and of the run store would be without its
    last event for good, and whoever reads on from before would wait for it.
    """
    copied = stack.folder.parent / "copied"
    before.token, before.signed_out = stack.token("ann"), stack.token("ann", lifetime_s=1800)
    async with stack.client("ann") as client, stack.http("ann") as http:
        run = await client.execute("kept in the thread", pipeline=["keeper"])
        before.kept_run, before.thread = run.run_id, run.thread_id
        async for event in client.events():
            if event.terminal:
                break
        # The state turns terminal a moment after the log has the last event.
        await eventually(partial(_succeeded, http, before.kept_run), within=10)
        await asyncio.wait_for(_signed_out(stack, before.signed_out), 10)
        going = await client.execute("goes on", pipeline=["keeper"], params={"steps": STEPS, "until": str(copied)})
        before.going_run = going.run_id
        async for event in client.run_events(going.run_id):
            number = event.data.get("number")
            if number == 10:
                before.read_by_then = client.position
                await asyncio.to_thread(copy)
                copied.touch()
            if number == LATER:
                before.read_later = client.position
        await eventually(partial(_succeeded, http, going.run_id), within=10)


async def _succeeded(http: GatewayHttp, run_id: str) -> bool:
    return bool((await http.run(run_id))["status"] == "SUCCEEDED")


async def _signed_out(stack: RunningStack, token: str) -> None:
    async with GatewayHttp(stack.url, token) as http:
        await http.logout()


async def see(stack: RunningStack, before: Before, eventually: Eventually, *, log: bool) -> None:
    """Everything is there, and whoever was connected goes on or is told."""
    async with GatewayHttp(stack.url, before.token) as http:
        kept = await http.run(before.kept_run)
        assert (kept["status"], kept["result"]) == ("SUCCEEDED", {"answer": "kept in the thread"}), kept
        (artifact,) = await http.artifacts(before.kept_run)
        assert await http.artifact_data(artifact) == b"kept in the thread"
        messages = (await http.get(f"/api/threads/{before.thread}/messages"))["messages"]
        assert "kept in the thread" in [message["text"] for message in messages]
    async with GatewayHttp(stack.url, before.signed_out) as http:
        await eventually(partial(_refused, http), within=10, what="a login that was signed out is out")
    # Both at once: the run that was under way goes on for both.
    resumed, told = await asyncio.gather(
        _read(stack, before, before.read_by_then), _read(stack, before, before.read_later)
    )
    for items in (resumed, told):
        ended = [item for item in items if isinstance(item, Event) and item.terminal]
        assert [e.data["status"] for e in ended if e.run_id == before.going_run] == ["SUCCEEDED"]
    resets = [[item.reason for item in items if isinstance(item, Reset)] for items in (resumed, told)]
    if log:
        assert resets[0] == []
        assert resets[1][:1] in (["beyond_top"], ["event_mismatch"])
    else:
        assert resets[0][:1] == resets[1][:1] == ["epoch_changed"]
    states = {item.run_id: item.status for item in told if isinstance(item, RunStatus)}
    assert states[before.kept_run] == "SUCCEEDED"
    assert before.going_run in states


async def _refused(http: GatewayHttp) -> bool:
    try:
        await http.get("/api/runs")
    except TokenError:
        return True
    return False


async def _read(stack: RunningStack, before: Before, position: Position | None) -> list[object]:
    """What comes after a position, up to the end of the run that was under way."""
    items: list[object] = []
    async with stack.client("ann", resume=position) as client, asyncio.timeout(60):
        async for item in client.items():
            items.append(item)
            if isinstance(item, Event) and item.terminal and item.run_id == before.going_run:
                break
    return items


def sealed(folder: Path) -> Mapping[str, str]:
    """Settings with an encryption key that lies apart from the state folder."""
    keys = folder / "encryption.json"
    if not keys.exists():
        add_key(keys, "k1")
    return {f"CARREL_{service}_ENCRYPTION__KEY_FILE": str(keys) for service in ("EXECUTION", "BRIDGE")}


async def test_embedded_stores_are_copied_while_they_run_and_restored(tmp_path: Path, eventually: Eventually) -> None:
    before = Before()
    old, with_log, without_log, copy, secrets = (tmp_path / name for name in ("old", "one", "two", "copy", "secrets"))
    for folder in (old, with_log, without_log, copy, secrets):
        folder.mkdir()
    with running_stack(old, agents=AGENTS, environment=sealed(secrets)) as stack:

        def copied() -> None:
            script("copy-embedded", STATE=stack.state.root, COPY=copy)
            script("copy-keys", STATE=stack.state.root, SECRETS=secrets)

        await work(stack, copied, before, eventually)
    shutil.rmtree(old)
    for new in (with_log, without_log):
        script("restore-embedded", STATE=new / "state", COPY=copy)
        script("restore-keys", STATE=new / "state", SECRETS=secrets)
        if new is without_log:
            (new / "state" / "bridge" / "events.db").unlink()
        with running_stack(new, agents=AGENTS, environment=sealed(secrets)) as stack:
            await see(stack, before, eventually, log=new is with_log)


@pytest.fixture
def redis_servers(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """One that runs, and one that is to take its place; not started."""
    with ExitStack() as ends:
        # By default Redis waits five seconds for more replicas before it makes a snapshot for one.
        at_once = ("--repl-diskless-sync-delay", "0")
        servers = tuple(RedisServer(any_binary(), tmp_path / f"redis-{n}", at_once, aof=n == 0) for n in range(2))
        for server in servers:
            ends.callback(server.kill)
        servers[0].start()
        yield servers[0], servers[1]


@pytest.mark.container
async def test_postgresql_and_redis_are_copied_while_they_run_and_restored(
    tmp_path: Path, postgres: PostgresServer, redis_servers: tuple[RedisServer, RedisServer], eventually: Eventually
) -> None:
    if shutil.which("redis-cli") is None:
        raise unavailable("redis", "redis-cli is not installed")
    if shutil.which("pg_dump") is None or shutil.which("pg_restore") is None:
        raise unavailable("postgres", "pg_dump and pg_restore are not installed")
    before, (first, second) = Before(), redis_servers
    old, new, copy, secrets = (tmp_path / name for name in ("old", "new", "copy", "secrets"))
    for folder in (old, new, copy, secrets):
        folder.mkdir()
    database, restored = run_apart(postgres.create()), run_apart(postgres.create())
    with running_stack(
        old, agents=AGENTS, environment=sealed(secrets), redis=first.url, postgres=postgres.url(database)
    ) as stack:

        def copied() -> None:
            script("copy-servers", REDIS=first.url, POSTGRES=postgres.url(database), COPY=copy)
            script("copy-keys", STATE=stack.state.root, SECRETS=secrets)

        await work(stack, copied, before, eventually)
    shutil.rmtree(old)
    first.kill()
    await postgres.drop(database)
    script("restore-postgresql", POSTGRES=postgres.url(restored), COPY=copy)
    second.folder.mkdir()
    shutil.copy(copy / "events.rdb", second.folder / "dump.rdb")
    second.start()
    second.call("CONFIG", "SET", "appendonly", "yes")
    script("restore-keys", STATE=new / "state", SECRETS=secrets)
    with running_stack(
        new, agents=AGENTS, environment=sealed(secrets), redis=second.url, postgres=postgres.url(restored)
    ) as stack:
        await see(stack, before, eventually, log=True)
    await postgres.drop(restored)
