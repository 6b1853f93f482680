"""Server-Sent Events: blocks split anywhere, streams that break and come back, the same rules as on the socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from carrel.client import Backoff, Event, GatewayHttp, Notice, Position, Reset
from carrel.client.sse import Block, SseParser
from carrel.errors import CarrelError, ProtocolError, UnavailableError, UnknownRunError
from tests.support.fake_gateway import TOKEN, event

FAST = Backoff(attempts=5, first_s=0.001, longest_s=0.01)
Part = dict[str, Any] | str

TEXT = (
    "\ufeffretry: 1000\n\n: ping\nid: e1:3:x\n\nid: e1:4:y\r\nevent: agent_message\r\ndata: {\r\ndata:}\r\n\r\n"
    "data: é\rid: a\0b\r\r"
)


@given(cuts=st.lists(st.integers(0, len(TEXT.encode())), max_size=8))
def test_blocks_are_the_same_wherever_the_bytes_are_split(cuts: list[int]) -> None:
    data = TEXT.encode() + b"\n"
    parser, blocks, at = SseParser(), list[Block](), 0
    for cut in [*sorted(cuts), len(data)]:
        blocks += parser.feed(data[at:cut])
        at = cut
    assert blocks == [
        Block(),
        Block(id="e1:3:x"),
        Block("agent_message", "{\n}", "e1:4:y"),
        Block(data="é"),
    ]


def test_block_that_does_not_end_and_one_that_is_no_text_are_refused() -> None:
    with pytest.raises(ProtocolError, match="does not end"):
        list(SseParser().feed(b"data: " + b"x" * 9_000_000))
    with pytest.raises(ProtocolError, match="UTF-8"):
        list(SseParser().feed(b"data: \xff\n\n"))


def block(frame: dict[str, Any], epoch: str = "e1") -> str:
    if "event_type" in frame:
        place, name = f"{epoch}:{frame['offset']}:{frame['event_id']}", frame["event_type"]
        return f"id: {place}\nevent: {name}\ndata: {json.dumps(frame)}\n\n"
    body = {key: value for key, value in frame.items() if key != "type"}
    return f"event: {frame['type']}\ndata: {json.dumps(body)}\n\n"


def connected(offset: int = 0, epoch: str = "e1", **more: Any) -> dict[str, Any]:
    return {"type": "connected", "epoch": epoch, "offset": offset, "event_id": "", "recovered": True, **more}


class Served:
    """Plays one list of frames for each request; an int is a status to answer with."""

    def __init__(self, *plays: Sequence[Part] | int, status: str = "RUNNING") -> None:
        self.plays = list(plays)
        self.asked: list[str | None] = []
        self.queries: list[dict[str, str]] = []
        self.status = status

    async def events(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.headers.get("Last-Event-ID"))
        self.queries.append(dict(request.query))
        play = self.plays.pop(0) if self.plays else 503
        if isinstance(play, int):
            if play == 204:
                return web.Response(status=204)
            kind = UnknownRunError("there is no such run") if play == 404 else UnavailableError("not now")
            return web.json_response({"error": kind.to_dict()}, status=play)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n")
        for part in play:
            if part == "CUT":
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write((part if isinstance(part, str) else block(part)).encode())
        return response

    async def run(self, request: web.Request) -> web.Response:
        return web.json_response({"run_id": "r", "status": self.status})


@asynccontextmanager
async def serving(served: Served) -> AsyncIterator[GatewayHttp]:
    app = web.Application()
    app.router.add_get("/api/runs/{run_id}/events", served.events)
    app.router.add_get("/api/events", served.events)
    app.router.add_get("/api/runs/{run_id}", served.run)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with GatewayHttp(f"http://127.0.0.1:{runner.addresses[0][1]}", TOKEN) as http:
            yield http
    finally:
        await runner.cleanup()


async def read(served: Served, **options: Any) -> list[Event | Notice]:
    async with serving(served) as http:
        return [item async for item in http.run_events("r", backoff=FAST, **options)]


END = event(9, "run_completed")


def offsets(items: list[Event | Notice]) -> list[int]:
    return [item.offset for item in items if isinstance(item, Event)]


@pytest.mark.parametrize("cut", range(4))
async def test_run_is_read_to_its_end_wherever_the_stream_is_cut(cut: int) -> None:
    log = [event(2), event(5), event(7), END]
    rest = [connected([0, 2, 5, 7][cut]), *log[cut:]]
    served = Served([connected(), *log[:cut], "CUT"], rest)
    assert offsets(await read(served)) == [2, 5, 7, 9]
    # Other runs' events lie between: the id is the whole position, whatever was left out.
    assert served.asked == [None, [":0:", "e1:2:ev-2", "e1:5:ev-5", "e1:7:ev-7"][cut].replace(":0:", "e1:0:")]


async def test_position_of_another_transport_is_gone_on_from_and_repeats_are_dropped() -> None:
    served = Served([connected(5), event(5), event(7), END])
    assert offsets(await read(served, resume=Position("e1", 5, "ev-5"))) == [7, 9]
    assert served.asked == ["e1:5:ev-5"]


async def test_heartbeat_moves_the_position_past_other_runs_events() -> None:
    served = Served([connected(), event(2), ": ping\nid: e1:6:ev-6\n\n", "CUT"], [connected(6), END])
    assert offsets(await read(served)) == [2, 9]
    assert served.asked == [None, "e1:6:ev-6"]


async def test_reset_is_told_and_what_is_kept_follows() -> None:
    reset = {"type": "reset", "reason": "trimmed", "epoch": "e2", "offset": 6}
    lost = connected(6, "e2", recovered=False)
    served = Served([connected(), event(2), "CUT"], [lost, reset, END])
    items = await read(served)
    assert offsets(items) == [2, 9]
    assert [item.reason for item in items if isinstance(item, Reset)] == ["trimmed"]


async def test_run_that_ended_without_its_last_event_in_the_log_ends_the_stream() -> None:
    assert offsets(await read(Served([connected(), event(2)], status="FAILED"))) == [2]
    assert offsets(await read(Served([connected(), event(2)], 204))) == [2]


async def test_bye_says_when_to_come_back_or_that_it_is_no_use() -> None:
    bye = {"type": "bye", "code": 4000, "reason": "drain", "reconnect": True, "retry_ms": 1}
    assert offsets(await read(Served([connected(), event(2), bye], [connected(2), END]))) == [2, 9]
    with pytest.raises(CarrelError, match="4500"):
        await read(Served([connected(), bye | {"code": 4500, "reconnect": False}]))


async def test_what_is_refused_is_raised_and_what_is_away_is_waited_for() -> None:
    with pytest.raises(UnknownRunError):
        await read(Served(404))
    served = Served(503, [connected(), END])
    assert offsets(await read(served)) == [9]
    with pytest.raises(CarrelError, match="not now"):
        await read(Served(503, 503, 503, 503, 503, 503))


@pytest.mark.parametrize("wrong", ["data: {\n\n", "id: nonsense\n\n", "event: reset\ndata: {}\n\n"])
async def test_what_is_broken_once_is_mended_and_every_time_is_raised(wrong: str) -> None:
    assert offsets(await read(Served([connected(), event(2), wrong], [connected(2), END]))) == [2, 9]
    plays: list[list[Part]] = [[connected(), wrong]] * 4
    with pytest.raises(ProtocolError):
        await read(Served(*plays))


async def test_all_of_a_users_events_are_contiguous_or_explained() -> None:
    through = {"type": "through", "epoch": "e1", "offset": 4, "event_id": "ev-4"}
    served = Served(
        [connected(), event(1), through, event(5), "CUT"], [connected(5), event(6), event(8)], [connected(6), event(7)]
    )
    found: list[int] = []
    async with serving(served) as http:
        async for item in http.events(thread_id="t", resume=Position(), backoff=FAST):
            if isinstance(item, Event):
                found.append(item.offset)
                if item.offset == 7:
                    break
    assert found == [1, 5, 6, 7]
    assert served.queries[0] == {"thread_id": "t"}
    assert served.asked == [":0:", "e1:5:ev-5", "e1:6:ev-6"]
