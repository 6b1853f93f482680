"""A key that was taken out of the list of ticket keys: nothing that it has signed is taken by any RPC any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc import aio

from servicekit.identity.keys import generate_key, write_jwks
from tests.conftest import Eventually
from tests.security.forge import UNAUTHENTICATED, Forge, Who
from tests.security.rpc_table import ROWS, SERVERS, call, request_for, unary_rows
from tests.support.stack import RunningStack

_WITHIN_S = 15.0


@pytest.fixture
async def channels(stack: RunningStack) -> AsyncIterator[dict[str, aio.Channel]]:
    """Plain channels to the four services."""
    opened = {name: aio.insecure_channel(stack.address(name)) for name in SERVERS.values()}
    yield opened
    await asyncio.gather(*(channel.close() for channel in opened.values()))


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(path.stat().st_mode & 0o777)
    new.replace(path)


async def test_no_rpc_takes_a_ticket_of_a_retired_key(
    stack: RunningStack, forge: Forge, channels: dict[str, aio.Channel], tmp_path: Path, eventually: Eventually
) -> None:
    retired, listed = generate_key("retired-1", issuer="gateway"), stack.state.root / "keys" / "tickets.jwks.json"
    before = listed.read_text()
    write_jwks(tmp_path / "one.json", [retired])
    keys = json.loads(before)["keys"] + json.loads((tmp_path / "one.json").read_text())["keys"]
    names = [name for name in unary_rows() if ROWS[name].scopes & {"session", "service"}]

    async def refused(name: str) -> bool:
        who = Who("session" if "session" in ROWS[name].scopes else "service")
        context = who.context(forge.ticket(who.claims(), forge.header(kid=retired.kid), retired.key.sign))
        status, _, _ = await call(channels[SERVERS[name.rpartition(".")[0]]], name, request_for(name, context))
        return status is UNAUTHENTICATED

    async def all_refused(expected: bool) -> bool:
        return {await refused(name) for name in names} == {expected}

    assert await all_refused(expected=True)
    try:
        _replace(listed, json.dumps({"keys": keys}))
        # Otherwise a ticket that nobody ever took would pass the test below.
        await eventually(lambda: all_refused(expected=False), within=_WITHIN_S)
    finally:
        _replace(listed, before)
    await eventually(lambda: all_refused(expected=True), within=_WITHIN_S)
