"""Nothing that looks like a secret gets into an event or a log, and nothing innocent is changed on its way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
import orjson
import pytest

from carrel.ids import new_id
from carrel.v1 import bridge_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from services.emitter.domain.guard import Guard
from services.emitter.domain.sanitize import WITHHELD, Sanitizer
from tests.security.cross_user import channel_to
from tests.security.gateway_calls import bearer
from tests.security.telltales import INNOCENT, SECRETS
from tests.support.stack import RunningStack


def test_there_are_fifty_of_both() -> None:
    assert len(SECRETS) >= 50
    assert len(INNOCENT) >= 50


def _nested(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": "x", "rows": [[1, {"inner": [dict(data)]}], "last"]}


@pytest.fixture
def guard() -> Guard:
    return Guard(Sanitizer())


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_does_not_pass_the_emitter(name: str, guard: Guard) -> None:
    data, secret = SECRETS[name]
    for value in (data, _nested(data)):
        cleaned = guard.admit_data("tool_executing", orjson.dumps(_executing(value)))
        assert _written(secret) not in cleaned, cleaned.decode()
        assert b"[redacted]" in cleaned
    assert guard.cleaned == 2


@pytest.mark.parametrize("number", range(len(INNOCENT)))
def test_a_look_alike_passes_the_emitter_unchanged(number: int, guard: Guard) -> None:
    data = orjson.dumps(_executing(_nested(INNOCENT[number])))
    assert guard.admit_data("tool_executing", data) is data


def test_numbers_of_cards_are_policy_s_to_withhold() -> None:
    # By default they pass: an order's number looks like one. Whoever handles cards names the fields.
    card = {"card_number": "4111 1111 1111 1111", "cardCvv": "123"}
    data = orjson.dumps(_executing(card))
    assert Guard(Sanitizer()).admit_data("tool_executing", data) is data
    withheld = Guard(Sanitizer(("card_number", "card_cvv"))).admit_data("tool_executing", data)
    assert orjson.loads(withheld)["arguments"] == dict.fromkeys(card, WITHHELD)


def _executing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool_name": "tell", "tool_call_id": "call-1", "arguments": dict(arguments)}


def _written(secret: str) -> bytes:
    return orjson.dumps(secret)[1:-1]


async def _told(stack: RunningStack, http: aiohttp.ClientSession, user: str, items: Iterable[Mapping[str, Any]]) -> Any:
    """The events of a run of an agent that tells all these in every way it has."""
    body = {"message": "Tell all", "agent_name": "teller", "params": {"items": [dict(item) for item in items]}}
    async with http.post("/api/agents/execute", json=body, headers=bearer(stack.token(user))) as response:
        answer = await response.json()
    assert answer["status"] == "SUCCEEDED", answer
    async with channel_to(stack, "bridge") as channel:
        request = bridge_pb2.ReadEventsRequest(context=stack.session_context(user))
        answers = BridgeServiceStub(channel).ReadEvents(request, timeout=20)
        return [entry async for answer in answers for entry in answer.entries.entries]


async def test_no_secret_is_in_an_event_or_a_log_of_a_whole_stack(
    stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    entries = await _told(stack, http, new_id("user"), (data for data, _ in SECRETS.values()))
    assert {entry.event_type for entry in entries} >= {
        "agent_thinking",
        "agent_message",
        "tool_executing",
        "tool_completed",
        "agent_completed",
        "run_completed",
    }
    written = b"\n".join(entry.data for entry in entries)
    found = [name for name, (_, secret) in SECRETS.items() if _written(secret) in written]
    assert not found
    await _misplaced(stack, http)
    log = stack.log()
    logged = [name for name, (_, secret) in SECRETS.items() if secret in log or _written(secret).decode() in log]
    assert not logged
    assert "hunter2" not in log


async def _misplaced(stack: RunningStack, http: aiohttp.ClientSession) -> None:
    """Secrets where none belongs: in addresses, queries, headers, ids, wrong frames, what an agent raises."""
    user = new_id("user")
    mine = bearer(stack.token(user))
    secrets = [secret for _, secret in SECRETS.values() if secret.isascii() and secret.isprintable()]
    for secret in secrets[::6]:
        async with http.get("/api/runs", params={"token": secret, "thread_id": secret}, headers=mine) as response:
            assert response.status == 400
        async with http.get("/api/runs/x", headers={"Authorization": f"Bearer {secret}"}) as response:
            assert response.status == 401
    async with http.ws_connect("/ws", headers=mine) as socket:
        for secret in secrets[:9]:
            await socket.send_json({"type": "agent_cancel", "run_id": secret, secret: secret})
    async with http.post(
        "/api/agents/execute",
        json={"message": "break", "agent_name": "caller", "params": {"tool": "broken"}},
        headers=mine,
    ) as response:
        assert "hunter2" not in await response.text()


async def test_look_alikes_come_through_a_whole_stack_unchanged(
    stack: RunningStack, http: aiohttp.ClientSession
) -> None:
    entries = await _told(stack, http, new_id("user"), INNOCENT)
    called = [orjson.loads(entry.data) for entry in entries if entry.event_type == "tool_executing"]
    assert [data["arguments"]["data"] for data in called] == list(INNOCENT)
    thoughts = [orjson.loads(entry.data)["text"] for entry in entries if entry.event_type == "agent_thinking"]
    assert [text for text in thoughts if text in {item.get("text") for item in INNOCENT}] == [
        item["text"] for item in INNOCENT if "text" in item
    ]
