"""Scenarios about positions: those that are good, and every way in which one can be bad."""

from __future__ import annotations

import asyncio
from typing import Any

from conformance.report import Scenario, expect
from conformance.server.world import World, position
from conformance.wire import Frame, Socket

__all__ = ["SCENARIOS"]

_SECTION = "Resuming"


async def exact(world: World) -> None:
    for index in (0, len(world.log) // 2, len(world.log) - 2):
        socket, connected = await world.connect(resume=world.at(index))
        async with socket:
            place = {name: connected[name] for name in ("epoch", "offset", "event_id")}
            expect(place == world.at(index), f"connected says {place} and not what was resumed from")
            expect(connected["recovered"] is True, "a good position was not recovered")
            await world.whole_log(await socket.events(len(world.log) - index - 1), index + 1)


async def at_the_top(world: World) -> None:
    socket, connected = await world.connect(resume=world.at(-1))
    async with socket:
        expect(connected["recovered"] is True, "the top was not recovered")
        await socket.quiet(0.5)


async def everything(world: World) -> None:
    socket, connected = await world.connect(resume={"offset": 0})
    async with socket:
        expect(connected["offset"] == world.base, f"connected says {connected['offset']}, and {world.base} was told")
        await world.whole_log(await socket.events(len(world.log)), 0)


async def nothing(world: World) -> None:
    socket, connected = await world.connect()
    async with socket:
        expect(connected["offset"] == world.log[-1]["offset"], "without resume a connection begins at the top")
        expect(connected["event_id"] == world.log[-1]["event_id"], "the top's event_id is another")
        await socket.quiet(0.5)


async def _lost(world: World, place: Frame, reasons: set[str], token: str = "") -> Socket:
    """Resume from an unusable place: ``recovered: false``, then ``reset``, and what it says then follows."""
    socket, connected = await world.connect(token=token, resume=place)
    async with socket:
        expect(connected["recovered"] is False, f"{place} was recovered")
        reset = await socket.next()
        expect(reset.get("type") == "reset", f"after recovered: false came {str(reset)[:120]}")
        expect(reset.get("reason") in reasons, f"the reason is {reset.get('reason')}, and not one of {sorted(reasons)}")
        expect(isinstance(reset.get("epoch"), str) and isinstance(reset.get("offset"), int), f"{reset}")
        if not token:
            expect(reset["epoch"] == world.epoch, "the reset's epoch is not the log's")
            expect(reset["offset"] == world.base, f"everything kept begins after {world.base}, not {reset['offset']}")
            await world.whole_log(await socket.events(len(world.log)), 0)
    return socket


async def wrong_epoch(world: World) -> None:
    await _lost(world, world.at(3) | {"epoch": "no-such-epoch"}, {"epoch_changed"})


async def wrong_event_id(world: World) -> None:
    await _lost(world, world.at(3) | {"event_id": "evt-no-such-event"}, {"event_mismatch"})


async def beyond_top(world: World) -> None:
    await _lost(world, world.at(-1) | {"offset": world.log[-1]["offset"] + 1000}, {"beyond_top"})


async def foreign(world: World) -> None:
    """Another user's position is of another log: it leads nowhere, and into nobody's log but one's own."""
    socket = await _lost(
        world,
        world.at(3),
        {"epoch_changed", "event_mismatch", "beyond_top"},
        token=world.options.token_b,
    )
    for frame in socket.seen:
        expect(frame.get("user_id", world.user_b) == world.user_b, "another user's event came")


async def trimmed(world: World) -> None:
    oldest = world.at(0)
    for _ in range(world.options.most_runs):
        if world.base >= oldest["offset"]:
            break
        await world.run()
        await world.reread()
    world.skip_unless(world.base > oldest["offset"], "the log keeps more than the runs of this suite make")
    await _lost(world, oldest, {"trimmed"})


async def run_states(world: World) -> None:
    socket, _ = await world.connect(resume=world.at(3) | {"epoch": "no-such-epoch"})
    wanted = world.log[-1]["run_id"]
    async with socket, asyncio.timeout(world.options.patience_s):
        while True:
            frame = await socket.control("run_state")
            for name in ("run_id", "thread_id", "status"):
                expect(isinstance(frame.get(name), str), f"run_state has {name}: {frame.get(name)!r}")
            expect("result" not in frame or frame["result"] is None, "run_state has a result")
            if frame["run_id"] == wanted:
                return


async def live_join(world: World) -> None:
    """Break off after every few events of a run that is under way, and go on: no gap, no repeat, to the end."""
    socket, connected = await world.connect()
    place: Frame = {name: connected[name] for name in ("epoch", "offset", "event_id")}
    run = await world.start(socket)
    got: list[Frame] = []
    while not (got and got[-1]["run_id"] == run["run_id"] and got[-1]["event_type"] == "run_completed"):
        for _ in range(3):
            event = await socket.event()
            got.append(event)
            place = position(connected["epoch"], event)
            if event["event_type"] == "run_completed":
                break
        await socket.__aexit__()
        socket, again = await world.connect(resume=place)
        expect(again["recovered"] is True, f"{place} was not recovered")
    await socket.__aexit__()
    first = connected["offset"] + 1
    offsets = [event["offset"] for event in got]
    expect(offsets == list(range(first, first + len(got))), f"offsets {offsets}")
    await world.reread()
    await world.whole_log(got, first - world.log[0]["offset"])


async def zero_of_an_epoch(world: World) -> None:
    options: dict[str, Any] = {"resume": {"epoch": "no-such-epoch", "offset": 0}}
    socket, connected = await world.connect(**options)
    async with socket:
        expect(connected["recovered"] is False, "the beginning of another log was recovered")
        reset = await socket.next()
        expect(reset.get("type") == "reset", f"{str(reset)[:120]}")


SCENARIOS = (
    Scenario("resume-exact", _SECTION, "a good position: recovered, and everything after it once", exact),
    Scenario("resume-top", _SECTION, "the newest position: recovered, and nothing comes", at_the_top),
    Scenario("resume-everything", _SECTION, "offset 0: everything that is kept", everything),
    Scenario("resume-nothing", _SECTION, "no position: the top, which can be resumed from", nothing),
    Scenario("resume-wrong-epoch", "Resets", "reset `epoch_changed`, then everything that is kept", wrong_epoch),
    Scenario("resume-wrong-event", "Resets", "reset `event_mismatch`, then everything that is kept", wrong_event_id),
    Scenario("resume-beyond-top", "Resets", "reset `beyond_top`, then everything that is kept", beyond_top),
    Scenario(
        "resume-zero-of-epoch", _SECTION, "offset 0 of another epoch is no position of this log", zero_of_an_epoch
    ),
    Scenario("resume-foreign", "Resets", "another user's position leads into one's own log only", foreign),
    Scenario("run-state", "Resets", "after a reset, how each recent run stands", run_states),
    Scenario("resume-live", _SECTION, "broken off and resumed during a run: no gap, no repeat", live_join, 60),
    Scenario("resume-trimmed", "Resets", "reset `trimmed`, then everything that is kept", trimmed, 120),
)
