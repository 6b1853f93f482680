"""Scenarios about what clients send: frames right and wrong, requests, two users, the same over REST."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import aiohttp

from conformance.report import Scenario, expect
from conformance.server.world import World
from conformance.wire import Frame, Socket

__all__ = ["SCENARIOS"]

_FRAMES = "Frames from the client"


async def _error(socket: Socket, what: str, client_ref: str | None = None) -> Frame:
    frame = await socket.next()
    expect(frame.get("type") == "error", f"{what} was answered by {str(frame)[:160]}")
    expect(frame.get("client_ref") == client_ref, f"the error of {what} has client_ref {frame.get('client_ref')!r}")
    return frame


async def _lives(socket: Socket) -> None:
    ref = uuid.uuid4().hex
    await socket.send(type="ping", client_ref=ref)
    expect((await socket.answer(ref))["type"] == "pong", "the connection does not live on")


async def wrong_frames(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        for text in ("{", "[]", '"x"', "7", '{"no": "type"}', '{"type": "ping", "client_ref": "a", "client_ref": "b"}'):
            await socket.send_text(text)
            await _error(socket, text)
            await _lives(socket)
        await socket.send_bytes(b'{"type": "ping"}')
        await _error(socket, "a binary message")
        await socket.send(type="no_such_type", client_ref="r1")
        await _error(socket, "an unknown type", "r1")
        wrong: tuple[dict[str, Any], ...] = (
            {"type": "agent_execute", "client_ref": "r2"},
            {"type": "agent_execute", "client_ref": "r2", "message": 7},
            {"type": "agent_execute", "client_ref": "r2", "message": "x", "nonsense": 1},
            {"type": "agent_cancel", "client_ref": "r2"},
            {"type": "ping", "client_ref": "r2", "more": 1},
        )
        for frame in wrong:
            await socket.send(**frame)
            error = await _error(socket, json.dumps(frame), "r2")
            expect(error["status"] == "INVALID_ARGUMENT", f"{frame} is {error['status']}")
            await _lives(socket)


async def late_connect(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        await socket.send(type="connect", resume={"offset": 0})
        await _error(socket, "a second connect")
        await _lives(socket)


async def ten_wrong(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        for _ in range(9):
            await socket.send(type="no_such_type")
        await _lives(socket)
        for _ in range(10):
            await socket.send(type="no_such_type")
        expect(await socket.end() == 4501, "ten wrong frames in a row were not answered by 4501")


async def too_large(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        await socket.send(type="agent_execute", message="x" * 70_000)
        code = await socket.end()
    errors = [frame for frame in socket.seen if frame.get("type") == "error"]
    told = str(errors[0]) if errors else ""
    expect("/api/agents/execute" in told, f"the error of a frame over 64 KiB does not name REST: {told[:160]}")
    expect(code == 4501, f"a frame over 64 KiB was answered by {code}")


async def ping_pong(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        await _lives(socket)
        await socket.send(type="ping")
        pong = await socket.control("pong")
        expect("client_ref" not in pong, "pong has a client_ref that nobody sent")
        await socket.send(type="pong", offset=1)
        await socket.quiet(0.2)


async def refresh(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        await socket.send(type="refresh", token=world.options.token_a)
        refreshed = await socket.control("refreshed")
        expect(isinstance(refreshed.get("expires_at"), int), f"{refreshed}")
        for token in (world.options.token_b, "not.a.token"):
            await socket.send(type="refresh", token=token)
            error = await _error(socket, "another's or a wrong token")
            expect(error["status"] == "UNAUTHENTICATED", f"{error['status']}")
            await _lives(socket)


async def same_ref(world: World) -> None:
    ref = f"conformance-{uuid.uuid4().hex}"
    socket, _ = await world.connect()
    async with socket:
        first = await world.start(socket, client_ref=ref)
        for name in ("run_id", "thread_id", "request_id", "status"):
            expect(isinstance(first.get(name), str) and first[name], f"run_accepted has {name}: {first.get(name)!r}")
        expect(first.get("existing", False) is False, "a new run is called existing")
        again, _ = await world.connect()
        async with again:
            second = await world.start(again, client_ref=ref)
            expect(second["run_id"] == first["run_id"], "the same client_ref made two runs")
            expect(second.get("existing") is True, "a run that was there is not called existing")
            other = {**world.options.execute, "message": "something else"}
            await again.send(type="agent_execute", client_ref=ref, **other)
            answer = await again.answer(ref)
            expect(answer["type"] == "error", f"the same client_ref with other content was answered by {answer}")
        status, body = await world.rest("GET", f"/api/runs/{first['run_id']}")
        expect(status == 200 and body["run_id"] == first["run_id"], f"{status} {body}")
        while (await socket.event())["event_type"] != "run_completed":
            pass


async def unknown_run(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        for frame in (
            {"type": "agent_cancel", "run_id": "run-nobody-has"},
            {"type": "input_provide", "run_id": "run-nobody-has", "input_id": "i", "value": None},
        ):
            await socket.send(client_ref="u1", **frame)
            error = await _error(socket, str(frame), "u1")
            expect(error["status"] == "NOT_FOUND", f"{frame} is {error['status']}")


async def isolation(world: World) -> None:
    """Both users run at once: each gets their own events, and what is another's does not exist."""
    mine, _ = await world.connect()
    theirs, _ = await world.connect(token=world.options.token_b)
    async with mine, theirs:
        runs = [await world.start(mine), await world.start(theirs)]
        for socket, run, user in zip((mine, theirs), runs, (world.user_a, world.user_b), strict=True):
            while True:
                event = await socket.event(30)
                expect(event["user_id"] == user, f"{user} got an event of {event['user_id']}")
                expect(event["run_id"] != runs[socket is mine]["run_id"], "an event of the other user's run")
                if event["run_id"] == run["run_id"] and event["event_type"] == "run_completed":
                    break
        await theirs.send(type="agent_cancel", run_id=runs[0]["run_id"], client_ref="c1")
        expect((await theirs.answer("c1")).get("status") == "NOT_FOUND", "another's run could be cancelled")
        for path in (f"/api/runs/{runs[0]['run_id']}", f"/api/threads/{runs[0]['thread_id']}/messages"):
            status, _ = await world.rest("GET", path, token=world.options.token_b)
            expect(status == 404, f"another's {path} is {status}")


async def rest_errors(world: World) -> None:
    for status, path, token in (
        (401, "/api/runs", ""),
        (404, "/api/runs/run-nobody-has", None),
        (404, "/api/no-such-route", None),
        (400, "/api/runs?nonsense=1", None),
    ):
        got, body = await world.rest("GET", path, token=token)
        expect(got == status, f"{path} answers {got} and not {status}")
        error = body.get("error", {}) if isinstance(body, dict) else {}
        for name in ("code", "status", "message", "advice", "retryable"):
            expect(name in error, f"the error of {path} has no {name}: {body}")


# Server-Sent Events.


async def sse_is_the_socket(world: World) -> None:
    made = await world.run()
    blocks = await _sse(world, f"/api/runs/{made[0]['run_id']}/events")
    events = [data for _, kind, data in blocks if "event_type" in data]
    expect(events == made, f"{len(events)} events came, others than the {len(made)} of the socket")
    for place, kind, data in blocks:
        if "event_type" in data:
            expect(kind == data["event_type"], f"event: {kind} for a {data['event_type']}")
            wanted = f"{world.epoch}:{data['offset']}:{data['event_id']}"
            expect(place == wanted, f"id: {place} for {wanted}")


async def sse_resumes(world: World) -> None:
    """A position is one position: from the socket to Server-Sent Events, and back."""
    made = await world.run()
    half = made[len(made) // 2]
    place = f"{world.epoch}:{half['offset']}:{half['event_id']}"
    blocks = await _sse(world, f"/api/runs/{made[0]['run_id']}/events", place)
    events = [data for _, _, data in blocks if "event_type" in data]
    expect(events == made[len(made) // 2 + 1 :], "what follows a position of the socket's is something else")
    epoch, offset, event_id = blocks[-1][0].split(":", 2)
    resume = {"epoch": epoch, "offset": int(offset), "event_id": event_id}
    socket, connected = await world.connect(resume=resume)
    async with socket:
        expect(connected["recovered"] is True, f"{resume} of Server-Sent Events was not recovered")


async def sse_resets(world: World) -> None:
    made = await world.run()
    blocks = await _sse(world, f"/api/runs/{made[0]['run_id']}/events", f"other:{made[0]['offset']}:evt-x")
    resets = [data for _, kind, data in blocks if kind == "reset"]
    expect(
        resets and resets[0].get("reason") == "epoch_changed", f"no reset came, but {[kind for _, kind, _ in blocks]}"
    )


async def sse_refuses(world: World) -> None:
    made = world.log[-1]["run_id"]
    await _sse(world, f"/api/runs/{made}/events", status=404, token=world.options.token_b)
    await _sse(world, f"/api/runs/{made}/events", "nonsense", status=400)


async def _sse(
    world: World, path: str, place: str = "", *, status: int = 200, token: str = ""
) -> list[tuple[str, str, Frame]]:
    """The blocks with data of a stream that ends: id, event, data."""
    headers = {"Authorization": f"Bearer {token or world.options.token_a}", "Accept": "text/event-stream"}
    if place:
        headers["Last-Event-ID"] = place
    blocks: list[tuple[str, str, Frame]] = []
    timeout = aiohttp.ClientTimeout(total=None)
    async with world.http.get(
        world.options.url + path, headers=headers, timeout=timeout, read_bufsize=1 << 20
    ) as response:
        world.skip_unless(response.status != 501, "the gateway has no Server-Sent Events")
        expect(response.status == status, f"{path} answers {response.status} and not {status}")
        if status != 200:
            return blocks
        expect(response.content_type == "text/event-stream", f"{path} is {response.content_type}")
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            async for raw in response.content:
                line = raw.decode().rstrip("\r\n")
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                if "data" in fields:
                    blocks.append((fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"])))
                fields = {}
    return blocks


SCENARIOS = (
    Scenario("frames-wrong", _FRAMES, "what is wrong is an error that names the request, and no end", wrong_frames),
    Scenario("frames-late-connect", _FRAMES, "`connect` is the first frame or none", late_connect),
    Scenario("frames-ten-wrong", _FRAMES, "ten wrong frames in a row: 4501", ten_wrong),
    Scenario("frames-too-large", _FRAMES, "over 64 KiB: an error that names REST, and 4501", too_large),
    Scenario("ping-pong", _FRAMES, "`ping` is answered by `pong` with its client_ref", ping_pong),
    Scenario("refresh", _FRAMES, "`refresh` takes a token of the same user, and no other", refresh),
    Scenario("client-ref", _FRAMES, "the same client_ref is the same run, with other content an error", same_ref, 60),
    Scenario("unknown-run", _FRAMES, "a run that is nobody's is NOT_FOUND", unknown_run),
    Scenario("isolation", _FRAMES, "two users at once: nothing of one reaches the other", isolation, 90),
    Scenario("rest-errors", "Errors", "errors over REST have their fields", rest_errors),
    Scenario(
        "sse-is-socket", "Server-sent events", "Server-Sent Events are the socket's events", sse_is_the_socket, 60
    ),
    Scenario("sse-resume", "Server-sent events", "one position on both transports", sse_resumes, 60),
    Scenario("sse-reset", "Server-sent events", "an unusable position is told there, too", sse_resets, 60),
    Scenario("sse-refused", "Server-sent events", "another's run is 404, no position is 400", sse_refuses),
)
