"""The socket end to end in one process: the simple form, two users, runs, filters, batches, frames that are wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from carrel.errors import EnginesLimitError
from carrel.events import EVENTS
from tests.conftest import Eventually
from tests.support.identity import identity
from tests.unit.gateway.harness import Socket, gateway, token

FIELDS = {
    "event_type",
    "event_id",
    "offset",
    "user_id",
    "thread_id",
    "run_id",
    "request_id",
    "agent_name",
    "attempt",
    "timestamp",
    "data",
}


async def test_a_client_that_only_reads_gets_one_flat_object_per_event(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, connected = await g.ready("alice")
        await g.publish("alice", "run-a", 2)
        first, second = await socket.events(2)
    assert set(connected) == {"type", "connection_id", "epoch", "offset", "event_id", "recovered", "heartbeat"}
    assert (connected["offset"], connected["recovered"]) == (0, False)
    assert set(first) == FIELDS
    assert first["event_type"] in EVENTS
    assert first["timestamp"].endswith("Z")
    assert (first["user_id"], first["run_id"], first["attempt"]) == ("alice", "run-a", 1)
    assert first["data"] == {"text": "run-a 1"}
    assert [first["offset"], second["offset"]] == [1, 2]


async def test_the_subprotocol_is_echoed_and_the_path_may_name_the_user(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket = await g.connect("alice", "/ws/alice", protocols=["other", "carrel.v1"])
        assert socket.ws.protocol == "carrel.v1"
        assert (await socket.frame())["type"] == "connected"


async def test_two_users_with_the_same_ids_see_nothing_of_each_other(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        alice, _ = await g.ready("alice")
        bob, _ = await g.ready("bob")
        await asyncio.gather(g.publish("alice", "run-1", 50), g.publish("bob", "run-1", 70))
        seen = {"alice": await alice.events(50), "bob": await bob.events(70)}
        await alice.send(type="ping")
        assert (await alice.frame())["type"] == "pong"
    for user, events in seen.items():
        assert {event["user_id"] for event in events} == {user}
        assert [event["offset"] for event in events] == list(range(1, len(events) + 1))


async def test_every_connection_of_a_user_gets_every_event(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        sockets = [(await g.ready("alice"))[0] for _ in range(5)]
        await g.publish("alice", "run-1", 300)
        all_events = await asyncio.gather(*(socket.events(300) for socket in sockets))
    assert all(events == all_events[0] for events in all_events)


async def test_execute_is_accepted_under_a_run_ticket_with_minted_ids(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        bearer = token("alice", scope="trace:read", permissions=["report:write"], limits={"max_engines_per_user": 3})
        socket, connected = await g.ready("alice", token=bearer)
        await socket.send(type="agent_execute", message="hello", params={"k": [1]}, agent_name="data", client_ref="r1")
        accepted = await socket.control("run_accepted")
        (request,) = g.execution.requests
    context = request.context
    assert accepted["client_ref"] == "r1"
    assert (accepted["run_id"], accepted["thread_id"]) == (context.run_id, context.thread_id)
    assert context.websocket_client_id == connected["connection_id"]
    assert "_" not in context.request_id
    principal: Any = identity().verifier().verify(context)
    assert principal.permissions == {"trace:read", "report:write"}
    assert dict(principal.limits) == {"max_engines_per_user": 3}
    assert principal.expires_at - context.created_at.seconds >= 1190
    assert request.params_json == b'{"k":[1]}'
    assert list(request.pipeline) == ["data"]


async def test_a_refused_run_is_an_error_with_its_client_ref_and_details(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        g.execution.error = EnginesLimitError(
            "two engines are active", retry_after_s=3, limit="max_engines_per_user", limit_value=2, use=2
        )
        await socket.send(type="agent_execute", message="hello", client_ref="r1")
        error = await socket.control("error")
    assert (error["code"], error["client_ref"], error["retryable"]) == ("ENGINES_LIMIT", "r1", True)
    assert error["retry_after_s"] == 3
    assert error["details"]["limit_value"] == 2


async def test_a_slow_admission_holds_up_neither_pings_nor_events(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        g.execution.delay_s = 0.5
        await socket.send(type="agent_execute", message="hello")
        await socket.send(type="ping", client_ref="p")
        await g.publish("alice", "run-1", 1)
        kinds = [frame.get("type") or frame["event_type"] for frame in [await socket.frame() for _ in range(3)]]
    assert kinds == ["pong", "agent_thinking", "run_accepted"]


async def test_cancel_and_input(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        await socket.send(type="agent_execute", message="hello")
        run_id = (await socket.control("run_accepted"))["run_id"]
        await socket.send(type="input_provide", run_id=run_id, input_id="q1", value={"yes": True}, client_ref="i")
        assert (await socket.control("error"))["code"] == "NOT_WAITING"
        await socket.send(type="agent_cancel", run_id=run_id, client_ref="c")
        answer = await socket.control("cancel_accepted")
        assert (answer["status"], answer["client_ref"]) == ("CANCELLED", "c")
        await socket.send(type="agent_cancel", run_id="run-of-another")
        assert (await socket.control("error"))["code"] == "UNKNOWN_RUN"


async def test_the_thread_header_is_the_default_thread_and_a_placeholder_is_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready(headers={"thread-id": "thread-7"})
        await socket.send(type="agent_execute", message="hello")
        assert (await socket.control("run_accepted"))["thread_id"] == "thread-7"
        await socket.send(type="agent_execute", message="hello", thread_id="placeholder_1", client_ref="x")
        error = await socket.control("error")
        assert (error["code"], error["client_ref"]) == ("INVALID_ID", "x")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await g.connect(headers={"thread-id": "default"})
        assert refused.value.status == 400


async def test_a_thread_filter_explains_every_offset_that_it_passes_over(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready(headers={"thread-id": "thread-b"})
        for thread, count in (("thread-a", 3), ("thread-b", 2), ("thread-a", 1), ("thread-b", 1)):
            await g.publish("alice", f"run-{thread}", count, thread=thread)
        last, threads = 0, []
        while last < 7:
            frame = await socket.frame()
            if frame.get("type") == "through":
                assert frame["offset"] > last
            else:
                assert frame["offset"] == last + 1
                threads.append(frame["thread_id"])
            last = frame["offset"]
    assert threads == ["thread-b"] * 3


async def test_batches_come_to_clients_that_ask_for_them(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 300)
        socket = await g.open()
        await socket.send(type="connect", token=token("alice"), batch=True, resume={"offset": 0})
        assert (await socket.frame())["type"] == "connected"
        batch = await socket.frame()
        assert batch["event_type"] == "event_batch"
        assert batch["batch_size"] == len(batch["events"]) > 1
        assert batch["compressed"] is False
        rest = await socket.events(300 - batch["batch_size"])
    assert [event["offset"] for event in batch["events"] + rest] == list(range(1, 301))


async def test_heartbeats_say_where_the_stream_is(tmp_path: Path) -> None:
    async with gateway(tmp_path, heartbeat_interval=0.2) as g:
        socket, connected = await g.ready()
        await g.publish("alice", "run-1", 3)
        await socket.events(3)
        ping = await socket.control("ping")
        assert (ping["offset"], ping["epoch"]) == (3, connected["epoch"])
        await socket.send(type="pong", offset=3)
        await socket.send(type="ack", offset=3)
        await socket.send(type="ping", client_ref="after")
        assert (await socket.control("pong"))["client_ref"] == "after"


WRONG_FRAMES: list[tuple[str, str]] = [
    ("{", "FRAME"),
    ("[]", "FRAME"),
    ('"text"', "FRAME"),
    ("{}", "FRAME"),
    ('{"type": 7}', "FRAME"),
    ('{"type": "ping", "type": "ping"}', "FRAME"),
    ('{"type": "subscribe"}', "UNKNOWN_FRAME"),
    ('{"type": "agent_execute"}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": ""}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": "m", "mesage": "m"}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": "m", "agent_name": "a", "pipeline": ["b"]}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": "m", "pipeline": []}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": "m", "strategy": "maybe"}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": "m", "params": []}', "INVALID_REQUEST"),
    ('{"type": "agent_execute", "message": "m", "thread_id": "a/b"}', "INVALID_ID"),
    ('{"type": "agent_cancel"}', "FRAME"),
    ('{"type": "agent_cancel", "run_id": 5}', "FRAME"),
    ('{"type": "ack", "offset": true}', "FRAME"),
    ('{"type": "connect", "batch": true, "token": "x"}', "FRAME"),
    ('{"type": "refresh", "token": "x"}', "TOKEN"),
]


async def test_each_wrong_frame_gets_an_error_and_the_connection_lives(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        for text, code in WRONG_FRAMES:
            await socket.ws.send_str(text)
            error = await socket.frame()
            assert (error["type"], error["code"]) == ("error", code), text
            assert error["message"], text
            await _still_there(socket)
        await socket.ws.send_bytes(b'{"type": "ping"}')
        assert (await socket.frame())["code"] == "FRAME"
        await _still_there(socket)
        assert not g.execution.requests


async def test_the_error_for_a_frame_of_unknown_type_repeats_its_client_ref(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        await socket.send(type="agent_exceute", message="m", client_ref="r7")
        error = await socket.frame()
        assert (error["code"], error["client_ref"]) == ("UNKNOWN_FRAME", "r7")


@pytest.mark.parametrize("depth", [33, 250, 400])
async def test_values_that_nest_too_deep_are_refused_with_advice(tmp_path: Path, depth: int) -> None:
    deep: Any = {}
    for _ in range(depth - 1):
        deep = {"a": deep}
    async with gateway(tmp_path) as g:
        ws, _ = await g.ready()
        # Not orjson, which writes 254 levels only.
        await ws.ws.send_json({"type": "agent_execute", "message": "m", "params": deep, "client_ref": "r"})
        refused = [await ws.control("error")]
        await ws.ws.send_json(
            {"type": "input_provide", "run_id": "run-1", "input_id": "i", "value": deep, "client_ref": "r"}
        )
        refused.append(await ws.control("error"))
        headers = {"Authorization": f"Bearer {token()}"}
        for path, body in (
            ("/api/agents/execute", {"message": "m", "params": deep}),
            ("/api/runs/run-1/input", {"input_id": "i", "value": deep}),
        ):
            async with g.http.post(g.url + path, json=body, headers=headers) as response:
                assert response.status == 400
                refused.append((await response.json())["error"])
        for error in refused:
            assert (error["code"], "nests more than 32" in error["message"]) == ("INVALID_REQUEST", True)
            assert "flatter" in error["advice"]
        assert [error.get("client_ref") for error in refused[:2]] == ["r", "r"]
        assert not g.execution.runs


async def test_ten_wrong_frames_in_a_row_end_the_connection(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        for _ in range(10):
            await socket.ws.send_str("{")
        frames, code = await socket.closed()
    assert code == 4501
    assert [frame["type"] for frame in frames] == ["error"] * 10 + ["bye"]
    assert frames[-1] == {"type": "bye", "code": 4501, "reason": "bad_frame", "reconnect": False}


async def test_a_frame_over_64_kib_is_told_where_it_belongs_then_closed(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        fits, _ = await g.ready()
        await fits.send(type="agent_execute", message="m" * 65_400)
        assert (await fits.frame())["type"] == "run_accepted"
        socket, _ = await g.ready()
        await socket.send(type="agent_execute", message="ü" * 33_000)
        frames, code = await socket.closed()
    assert code == 4501
    assert frames[0]["code"] == "TOO_LARGE"
    assert "POST /api/agents/execute" in frames[0]["advice"]


async def test_a_message_over_a_mebibyte_is_cut_by_the_server(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        await socket.send(type="agent_execute", message="m" * (1 << 20))
        _, code = await socket.closed()
        assert code == 1009
        other, _ = await g.ready()
        await _still_there(other)


async def test_a_flood_of_frames_without_reading_is_bounded_and_harms_nobody(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        for number in range(5000):
            await socket.send(type="ping", client_ref=str(number))
        other, _ = await g.ready("bob")
        await _still_there(other)
        answers = [await socket.frame() for _ in range(5000)]
    assert [answer["client_ref"] for answer in answers] == [str(number) for number in range(5000)]


async def _still_there(socket: Socket) -> None:
    await socket.send(type="ping")
    assert (await socket.frame())["type"] == "pong"


async def test_leaving_ends_the_subscription(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        assert (await g.bridge.state()).subscriptions == 1
        await socket.ws.close()

        async def nobody() -> bool:
            return (await g.bridge.state()).subscriptions == 0

        await eventually(nobody)
        again, connected = await g.ready()
        assert connected["offset"] == 0
        await g.publish("alice", "run-1", 1)
        assert (await again.events(1))[0]["offset"] == 1
