"""Scenarios about what comes after ``connected``: events, batches, filters, windows, heartbeats, the end."""

from __future__ import annotations

import asyncio
import shlex
from datetime import datetime
from itertools import pairwise

from conformance.report import Scenario, expect
from conformance.server.world import World
from conformance.wire import EVENT_FIELDS, Frame, Socket, events_of

__all__ = ["SCENARIOS"]

_EVENTS = "Events"
_ACK = "Acknowledging"


async def shape(world: World) -> None:
    for event in world.log:
        for name, kind in EVENT_FIELDS.items():
            expect(isinstance(event.get(name), kind), f"{name} is {event.get(name)!r} in {str(event)[:120]}")
        expect(event["user_id"] == world.user_a, f"an event of {event['user_id']}")
        expect(datetime.fromisoformat(event["timestamp"]).utcoffset() is not None, f"timestamp {event['timestamp']}")
        parent = event.get("parent_request_id")
        expect(not parent or event["request_id"].startswith(f"{parent}_"), f"{event['request_id']} of {parent}")


async def order(world: World) -> None:
    offsets = [event["offset"] for event in world.log]
    expect(offsets == list(range(world.base + 1, world.base + 1 + len(offsets))), "offsets are not contiguous")
    expect(len({event["event_id"] for event in world.log}) == len(offsets), "an event_id came twice")


async def one_run(world: World) -> None:
    made = await world.run()
    # As the log has it, with what may follow its end.
    await world.reread()
    kinds = [event["event_type"] for event in world.log if event["run_id"] == made[0]["run_id"]]
    expect(kinds[0] == "run_accepted", f"a run began with {kinds[0]}")
    ends = [index for index, kind in enumerate(kinds) if kind == "run_completed"]
    expect(ends == [len(kinds) - 1], f"of a run's {len(kinds)} events these are terminal: {ends}")


async def every_connection(world: World) -> None:
    sockets = [(await world.connect(batch=batch))[0] for batch in (False, True)]
    made = await world.run()
    for socket in sockets:
        async with socket:
            expect(await socket.events(len(made)) == made, "two connections of a user got different events")


async def batches(world: World) -> None:
    socket, _ = await world.connect(resume=world.at(0), batch=True)
    async with socket:
        await world.whole_log(await socket.events(len(world.log) - 1), 1)
    sizes = [frame["batch_size"] for frame in socket.seen if frame.get("event_type") == "event_batch"]
    expect(sizes, "nothing came in a batch")


async def unbatched(world: World) -> None:
    socket, _ = await world.connect(resume=world.at(0))
    async with socket:
        await world.whole_log(await socket.events(len(world.log) - 1), 1)
    expect(all(frame.get("event_type") != "event_batch" for frame in socket.seen), "a batch that nobody asked for")


async def compressed(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(0), batch=True, compress=True)
    async with socket:
        world.skip_unless(connected.get("compression"), "the gateway grants no compression")
        expect(connected["compression"] == "gzip-hex", f"compression {connected['compression']}")
        await world.whole_log(await socket.events(len(world.log) - 1), 1)
    packed = [frame for frame in socket.seen if frame.get("compressed") is True]
    expect(packed, "no batch was compressed")
    for frame in packed:
        text = len(frame["events_compressed"])
        expect(frame["batch_size"] > 3, f"a batch of {frame['batch_size']} was compressed")
        expect(text <= frame["original_size"] * 0.8, f"{frame['original_size']} bytes became {text} characters")


async def thread_filter(world: World) -> None:
    thread = world.log[-1]["thread_id"]
    await world.run()
    await world.run(thread_id=thread)
    await world.reread()
    wanted = [event for event in world.log[1:] if event["thread_id"] == thread]
    socket, _ = await world.connect(resume=world.at(0), thread_id=thread)
    async with socket:
        expect(await socket.events(len(wanted)) == wanted, "the thread's events are others")
    places = _explained(socket, world.log[0]["offset"])
    expect(places, "nothing was told about the entries of other threads")
    # A place that was told is as good as an event's.
    again, connected = await world.connect(resume=places[-1], thread_id=thread)
    async with again:
        expect(connected["recovered"] is True, f"{places[-1]} of `through` was not recovered")
        left = [event for event in wanted if event["offset"] > places[-1]["offset"]]
        expect(await again.events(len(left)) == left, "the thread's later events are others")


def _explained(socket: Socket, at: int) -> list[Frame]:
    """Every jump of offsets has a ``through`` before it; all of them."""
    places: list[Frame] = []
    for frame in socket.seen[1:]:
        if frame.get("type") == "through":
            expect(frame["offset"] > at, f"through {frame['offset']} at {at}")
            at = frame["offset"]
            places.append({name: frame[name] for name in ("epoch", "offset", "event_id")})
        for event in events_of(frame):
            expect(event["offset"] == at + 1, f"offset {event['offset']} after {at}")
            at = event["offset"]
    return places


async def window(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(0), ack={"window": 10})
    async with socket:
        size = _window(world, connected)
        await world.whole_log(await socket.events(size), 1)
        await socket.quiet(0.3)
        # In part, as a whole, and one that was acknowledged already.
        await socket.send(type="ack", offset=world.log[size // 2]["offset"])
        await world.whole_log(await socket.events(size // 2), size + 1)
        await socket.send(type="ack", offset=world.log[1]["offset"])
        await socket.quiet(0.3)
        taken = size + size // 2
        while taken < len(world.log) - 1:
            await socket.send(type="ack", offset=world.log[taken]["offset"])
            more = min(size, len(world.log) - 1 - taken)
            await world.whole_log(await socket.events(more), taken + 1)
            taken += more
        await socket.send(type="ack", offset=world.log[taken]["offset"])
        await socket.send(type="ping", client_ref="still")
        expect((await socket.answer("still"))["type"] == "pong", "the connection does not live")


def _window(world: World, connected: Frame) -> int:
    world.skip_unless("ack_window" in connected, "the gateway grants no window")
    size = connected["ack_window"]
    expect(isinstance(size, int) and 1 <= size <= 10, f"a window of 10 was asked for, and {size} granted")
    return int(size)


async def window_answers(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(0), ack={"window": 10})
    async with socket:
        size = _window(world, connected)
        await socket.events(size)
        await socket.send(type="ping", client_ref="full")
        expect((await socket.answer("full"))["type"] == "pong", "a full window held up an answer")


async def window_timeout(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(0), ack={"window": 10})
    async with socket:
        size = _window(world, connected)
        code = await socket.end(world.options.ack_s + 5)
    got = [event for frame in socket.seen for event in events_of(frame)]
    expect(len(got) == size, f"{len(got)} events came in a window of {size}")
    expect(4000 <= code < 4500, f"the close code is {code}")
    again, connected = await world.connect(resume=world.at(size))
    async with again:
        expect(connected["recovered"] is True, "a reader that was sent away for its silence was not recovered")
        await world.whole_log(await again.events(len(world.log) - 1 - size), size + 1)


async def no_window(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(0))
    async with socket:
        expect("ack_window" not in connected, "a window that nobody asked for")
        await socket.send(type="ack", offset=world.log[3]["offset"])
        await world.whole_log(await socket.events(len(world.log) - 1), 1)


async def wrong_acks(world: World) -> None:
    socket, _ = await world.connect()
    async with socket:
        for wrong in ({}, {"offset": "1"}, {"offset": True}):
            await socket.send(type="ack", **wrong)
            error = await socket.next()
            expect(error.get("type") == "error", f"ack {wrong} was answered by {error}")


async def heartbeat(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(0))
    world.skip_unless(
        connected["heartbeat"] <= 5 or world.options.slow, f"a heartbeat of {connected['heartbeat']:g} s needs --slow"
    )
    async with socket:
        last = (await socket.events(len(world.log) - 1))[-1]
        ping = await socket.control("ping", connected["heartbeat"] * 1.5 + 5)
        expect(ping.get("epoch") == world.epoch, f"ping has epoch {ping.get('epoch')}")
        expect(ping.get("offset") == last["offset"], f"ping tells {ping.get('offset')}, and {last['offset']} was sent")


async def drain(world: World) -> None:
    world.skip_unless(world.options.drain, "no --drain command")
    assert world.options.drain is not None
    socket, connected = await world.connect()
    async with socket:
        process = await asyncio.create_subprocess_exec(*shlex.split(world.options.drain))
        code = await socket.end(20)
        expect(await process.wait() == 0, "the --drain command failed")
    byes = [frame for frame in socket.seen if frame.get("type") == "bye"]
    expect(byes, f"no bye before the close with {code}")
    expect(4000 <= code < 4500 and byes[0]["reconnect"] is True, f"a drain ends with {code}: {byes[0]}")
    expect(
        isinstance(byes[0].get("retry_ms"), int) and byes[0]["retry_ms"] >= 0, f"retry_ms is {byes[0].get('retry_ms')}"
    )
    place = {name: connected[name] for name in ("epoch", "offset", "event_id")}
    await _comes_back(world, place)


async def _comes_back(world: World, place: Frame) -> None:
    """The gateway, or another in its place, takes the position again within 20 s."""
    async with asyncio.timeout(20):
        while True:
            try:
                socket, connected = await world.connect(resume=place)
            except Exception:  # noqa: BLE001 -- whatever a gateway answers that is on its way down or up
                await asyncio.sleep(0.2)
                continue
            await socket.__aexit__()
            expect(connected["recovered"] is True, f"{place} was not recovered after a drain")
            return


async def same_everywhere(world: World) -> None:
    """What came live is what the log gives later."""
    socket, connected = await world.connect()
    async with socket:
        await world.run()
        top = await world.top()
        live = await socket.events(top["offset"] - connected["offset"])
    await world.reread()
    first = live[0]["offset"] - world.log[0]["offset"]
    await world.whole_log(live, first)
    expect(all(b["offset"] == a["offset"] + 1 for a, b in pairwise(live)), "live offsets are not contiguous")


SCENARIOS = (
    Scenario("event-shape", _EVENTS, "every event has its fields", shape),
    Scenario("event-order", _EVENTS, "offsets are contiguous, ids unique", order),
    Scenario("event-run", _EVENTS, "a run begins with `run_accepted` and ends with one `run_completed`", one_run, 60),
    Scenario("event-connections", _EVENTS, "all connections of a user get the same", every_connection, 60),
    Scenario("event-live-is-log", _EVENTS, "what came live is what the log gives later", same_everywhere, 60),
    Scenario("batch", _EVENTS, "batches hold the same events in the same order", batches),
    Scenario("batch-not-asked", _EVENTS, "without `batch` each event is a frame", unbatched),
    Scenario("batch-compressed", "Compression", "compressed batches hold the same, and save a fifth", compressed),
    Scenario("thread-filter", "Frames from the gateway", "`through` explains every offset left out", thread_filter, 90),
    Scenario("ack-window", _ACK, "a window stops the stream, and `ack` lets it go on", window),
    Scenario("ack-answers", _ACK, "a full window holds up events only", window_answers),
    Scenario("ack-timeout", _ACK, "a full window without `ack`: sent away, to come back", window_timeout, 90),
    Scenario("ack-not-asked", _ACK, "without `ack` in connect there is no window", no_window),
    Scenario("ack-wrong", _ACK, "a wrong `ack` is an error", wrong_acks),
    Scenario("ping-tells-position", "Frames from the gateway", "`ping` tells how far the stream is", heartbeat, 90),
)
LAST = (Scenario("bye-on-drain", "Close codes", "a drain says `bye`, and the position holds after it", drain, 60),)
