"""Server-sent events: the socket's sequence with the socket's rules; one run's to its end, a user's as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from services.bridge.models import Retention
from tests.conftest import Eventually
from tests.support.sse import SseReader, sse
from tests.unit.gateway.harness import Gateway, gateway, token


def _open(
    g: Gateway, path: str = "/api/events", *, user: str = "alice", after: str = "", **options: Any
) -> AbstractAsyncContextManager[SseReader]:
    headers = {"Authorization": f"Bearer {options.pop('bearer', token(user))}"} | options.pop("headers", {})
    if after:
        headers["Last-Event-ID"] = after
    return sse(g.http, g.url + path, headers=headers, **options)


async def _run(g: Gateway, user: str = "alice", thread: str = "thread-1") -> tuple[str, str]:
    """A run that execution knows; the address of its events."""
    socket, _ = await g.ready(user)
    await socket.send(type="agent_execute", message="m", thread_id=thread)
    run_id = (await socket.control("run_accepted"))["run_id"]
    await socket.ws.close()
    return run_id, f"/api/runs/{run_id}/events"


async def _status(g: Gateway, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with g.http.get(g.url + path, headers=headers) as response:
        return response.status, (await response.json()) if response.content_type == "application/json" else {}


def _bearer(user: str = "alice") -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


async def test_a_stream_gives_what_the_socket_gives_in_the_same_words(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket, hello = await g.ready()
        async with _open(g) as stream:
            connected = await stream.next("connected")
            assert connected.id == f"{hello['epoch']}:0:"
            assert connected.data["heartbeat"] == 30.0
            headers = stream.response.headers
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Accel-Buffering"] == "no"
            assert "Content-Encoding" not in headers
            assert 1000 <= (stream.seen[0].retry_ms or 0) <= 3000
            await g.publish("alice", "run-1", 120)
            await g.publish("bob", "run-b", 3)
            events = await socket.events(120)
            assert await stream.events(120) == events
            last = stream.seen[-1]
            assert last.event == "agent_thinking"
            assert last.id == f"{hello['epoch']}:120:{events[-1]['event_id']}" == stream.last_event_id


@pytest.mark.parametrize("ring", [1000, 16])
async def test_last_event_id_goes_on_after_that_event(tmp_path: Path, ring: int) -> None:
    async with gateway(tmp_path, max_events_per_user=ring) as g:
        async with _open(g) as stream:
            await stream.next("connected")
            await g.publish("alice", "run-1", 150)
            await stream.events(70)
            position = stream.last_event_id
        for way in ({"after": position}, {"params": {"last_event_id": position}}):
            async with _open(g, **way) as stream:
                assert (await stream.next("connected")).data["recovered"] is True
                assert [event["offset"] for event in await stream.events(80)] == list(range(71, 151))


async def test_the_header_is_newer_than_the_address_and_the_beginning(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await g.publish("alice", "run-1", 9)
        async with _open(g, params={"from": "oldest"}) as stream:
            assert [event["offset"] for event in await stream.events(9)] == list(range(1, 10))
            (third,) = [block.id for block in stream.seen if block.from_log and block.data["offset"] == 3]
            first = stream.seen[2].id
        query = {"from": "oldest", "last_event_id": str(first)}
        async with _open(g, after=str(third), params=query) as stream:
            assert [event["offset"] for event in await stream.events(6)] == list(range(4, 10))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("{epoch}:5:evt-other", "event_mismatch"),
        ("0123456789abcdef:5:{event_id}", "epoch_changed"),
        ("{epoch}:99:{event_id}", "beyond_top"),
    ],
)
async def test_an_unusable_position_gets_a_reset_run_states_and_everything_again(
    tmp_path: Path, wrong: str, reason: str
) -> None:
    async with gateway(tmp_path) as g:
        socket, hello = await g.ready()
        await g.publish("alice", "run-1", 10)
        events = await socket.events(10)
        run_id, _ = await _run(g)
        position = wrong.format(epoch=hello["epoch"], event_id=events[4]["event_id"])
        async with _open(g, after=position) as stream:
            assert (await stream.next("connected")).data["recovered"] is False
            reset = await stream.next()
            assert (reset.event, reset.data) == ("reset", {"reason": reason, "epoch": hello["epoch"], "offset": 0})
            assert await stream.events(10) == events
            state = await stream.next("run_state")
            assert (state.data["run_id"], state.data["status"]) == (run_id, "RUNNING")


async def test_a_malformed_position_is_refused_with_the_form(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        _, path = await _run(g)
        for headers, query in (({"Last-Event-ID": "41"}, ""), ({}, "?last_event_id=41"), ({}, "?from=yesterday")):
            for at in ("/api/events", path):
                status, body = await _status(g, at + query, **_bearer(), **headers)
                assert status == 400
                assert body["error"]["details"]["fields"]
                if "from" not in query:
                    assert "epoch:offset:event_id" in body["error"]["message"]


async def test_a_run_s_stream_begins_with_its_first_event_and_ends_with_its_last(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_events_per_user=16) as g:
        run_id, path = await _run(g)
        async with _open(g, path) as early:
            await g.publish("alice", "run-other", 30, thread="thread-2")
            await g.publish("alice", run_id, 20)
            await g.publish("alice", "run-other", 30, thread="thread-2")
            seen = await early.events(20)
            await g.publish("alice", run_id, 5, last=True)
            g.execution.finish("alice", run_id)
            await g.publish("alice", "run-other", 1, thread="thread-2")
            whole = seen + [block.data for block in await early.rest() if block.from_log]
        assert [event["data"].get("text") for event in whole] == [f"{run_id} {n}" for n in range(1, 25)] + [None]
        assert whole[-1]["event_type"] == "run_completed"
        assert early.seen[-1].event == "run_completed"
        async with _open(g, path) as late:
            blocks = await late.rest()
        assert [block.data for block in blocks if block.from_log] == whole
        # A browser comes back after every end, with the last id: 204 is what tells it not to.
        assert (await _status(g, path, **_bearer(), **{"Last-Event-ID": late.last_event_id}))[0] == 204


async def test_what_a_filter_leaves_out_moves_the_position_too(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, heartbeat_interval=0.1, max_events_per_user=16) as g:
        async with _open(g, params={"thread_id": "thread-1"}) as stream:
            await stream.next("connected")
            await g.publish("alice", "run-2", 40, thread="thread-2")
            while stream.last_event_id.split(":")[1] != "40":
                await stream.block()
            assert not any(block.from_log for block in stream.seen)
            await g.publish("alice", "run-1", 1)
            through = await stream.next("through")
            assert (through.data["offset"], through.id) == (40, stream.last_event_id)
            assert (await stream.events(1))[0]["offset"] == 41
            position = stream.last_event_id
            await g.publish("alice", "run-2", 5, thread="thread-2")
            await g.publish("alice", "run-1", 2)
        async with _open(g, after=position, params={"thread_id": "thread-1"}) as stream:
            assert [event["offset"] for event in await stream.events(2)] == [47, 48]


async def test_every_cut_of_a_run_s_stream_goes_on_without_gap_or_repeat(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_events_per_user=16) as g:
        run_id, path = await _run(g)
        for _ in range(6):
            await g.publish("alice", run_id, 4)
            await g.publish("alice", "run-other", 7, thread="thread-2")
        await g.publish("alice", run_id, 1, last=True)
        g.execution.finish("alice", run_id)
        async with _open(g, path) as stream:
            whole = [block for block in await stream.rest() if block.from_log]
        assert len(whole) == 25
        for cut, block in enumerate(whole[:-1], 1):
            async with _open(g, path, after=str(block.id)) as stream:
                rest = [one.data["event_id"] for one in await stream.rest() if one.from_log]
            assert rest == [one.data["event_id"] for one in whole[cut:]]


async def test_a_run_whose_first_events_are_gone_says_so_and_one_that_is_gone_ends(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        run_id, path = await _run(g)
        await g.publish("alice", run_id, 10)
        await _trimmed(g, 6)
        async with _open(g, path) as stream:
            reset = await stream.next("reset")
            assert reset.data["reason"] == "trimmed"
            assert [event["offset"] for event in await stream.events(6)] == list(range(5, 11))
        gone, path = await _run(g, thread="thread-9")
        g.execution.finish("alice", gone)
        async with _open(g, path) as stream:
            blocks = await stream.rest()
        assert [block.event for block in blocks] == ["connected"]


async def test_another_user_s_run_is_as_one_that_does_not_exist(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        _, path = await _run(g)
        foreign = await _status(g, path, **_bearer("bob"))
        unknown = await _status(g, "/api/runs/run-none/events", **_bearer("bob"))
        assert foreign[0] == unknown[0] == 404
        assert foreign[1]["error"]["code"] == unknown[1]["error"]["code"] == "UNKNOWN_RUN"


async def test_a_socket_token_opens_one_stream_and_nothing_opens_without_a_login(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        async with g.http.post(g.url + "/api/socket-tokens", headers=_bearer()) as response:
            query = {"socket_token": (await response.json())["socket_token"]}
        page = {"Origin": "http://localhost:3000"}
        async with sse(g.http, g.url + "/api/events", params=query, headers=page) as stream:
            assert stream.response.headers["Access-Control-Allow-Origin"] == page["Origin"]
            await stream.next("connected")
            await g.publish("alice", "run-1", 1)
            assert (await stream.events(1))[0]["user_id"] == "alice"
        assert (await _status(g, f"/api/events?socket_token={query['socket_token']}"))[0] == 401
        assert (await _status(g, "/api/events"))[0] == 401
        assert (await _status(g, "/api/events", **_bearer(), Origin="https://evil.example"))[0] == 403


async def test_streams_count_as_the_user_s_connections(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, limits={"per_user": 2}) as g:
        _ = await g.ready()
        async with _open(g) as stream:
            await stream.next("connected")
            status, body = await _status(g, "/api/events", **_bearer())
            assert (status, body["error"]["details"]["limit"]) == (429, "max_connections_per_user")
            assert g.server.connections == 2
        await eventually(lambda: g.server.connections == 1, what="a stream that its reader left is gone")
        async with _open(g) as stream:
            await stream.next("connected")


async def test_a_drain_says_bye_and_when_to_come_back(tmp_path: Path) -> None:
    async with gateway(tmp_path, drain_seconds=5) as g, _open(g) as stream:
        await stream.next("connected")
        await g.server.drain()
        blocks = await stream.rest()
        bye = blocks[-1]
        assert (bye.event, bye.data["code"], bye.data["reconnect"]) == ("bye", 4000, True)
        assert bye.retry_ms == bye.data["retry_ms"] > 0


async def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g, _open(g, bearer=token("alice", ttl_s=2)) as stream:
        bye = (await stream.rest())[-1]
        assert (bye.event, bye.data["code"], bye.data["reason"]) == ("bye", 4002, "expired")


async def test_a_stream_catches_up_after_the_bridge_s_restart(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g, _open(g) as stream:
        await stream.next("connected")
        await g.publish("alice", "run-1", 3)
        await stream.events(3)
        await g.bridge.kill()
        await g.bridge.start()
        await g.publish("alice", "run-1", 30)
        assert [event["offset"] for event in await stream.events(30)] == list(range(4, 34))


async def test_a_log_that_cannot_be_reached_ends_the_stream_so_that_a_browser_comes_back(tmp_path: Path) -> None:
    async with gateway(tmp_path, position_seconds=0.3) as g:
        await g.bridge.kill()
        async with _open(g) as stream:
            (bye,) = await stream.rest()
        assert (bye.data["code"], bye.data["reconnect"], bye.data["error"]["code"]) == (4003, True, "UNAVAILABLE")


async def test_a_reader_that_stalls_is_cut_off_while_others_go_on(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, delivery_timeout=1.0) as g:
        good, _ = await g.ready()
        with contextlib.closing(await _raw_stream(g)):
            await eventually(lambda: g.server.connections == 2)
            reading = asyncio.create_task(good.events(150))
            for _ in range(150):
                await g.publish("alice", "run-1", 1, data={"pad": "x" * 100_000})
            assert len(await reading) == 150
            await eventually(lambda: g.server.connections == 1, what="the stalled stream is gone", within=10)


async def _trimmed(g: Gateway, kept: int) -> None:
    """Each log keeps its newest entries only."""
    g.log.retain(Retention(max_entries=kept))
    _ = await g.log.sweep()


async def test_operators_see_streams_beside_sockets(tmp_path: Path, eventually: Eventually) -> None:
    async def seen() -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token('ops', permissions=['operator:read'])}"}
        async with g.http.get(f"{g.url}/api/operator/gateway", headers=headers) as response:
            body: dict[str, Any] = await response.json()
            return body

    async with gateway(tmp_path) as g:
        run_id, path = await _run(g)
        before = await seen()
        async with _open(g, path) as stream, _open(g) as other:
            await other.next("connected")
            during = await seen()
            assert (during["connections"], during["users"], during["lag_events"]) == (2, 1, 0)
            await g.publish("alice", run_id, 5, last=True)
            g.execution.finish("alice", run_id)
            _ = await stream.rest()
        await eventually(lambda: g.server.connections == 0)
        after = await seen()
    assert after["totals"]["accepted"] - before["totals"]["accepted"] == 2
    assert after["totals"]["events_sent"] - before["totals"]["events_sent"] >= 5
    assert after["totals"]["bytes_sent"] > before["totals"]["bytes_sent"] + 1000
    assert (after["ended"]["complete"], after["ended"]["lost"]) == (1, before["ended"].get("lost", 0) + 1)


async def _raw_stream(g: Gateway) -> sockets.socket:
    """A stream that is opened and never read."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    host, port = g.server.address.rsplit(":", 1)
    await loop.sock_connect(raw, (host, int(port)))
    request = f"GET /api/events HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token()}\r\n\r\n"
    await loop.sock_sendall(raw, request.encode())
    assert (await loop.sock_recv(raw, 12)) == b"HTTP/1.1 200"
    return raw
