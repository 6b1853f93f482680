"""Scenarios about what goes wrong on the way: lost connections, repeats, gaps, resets, silence, nonsense."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from conformance.client.frames import Cut, Frame, Sent, event
from conformance.client.gateway import Script, ScriptedGateway
from conformance.client.harness import Client, Stage
from conformance.report import Scenario, expect

__all__ = ["SCENARIOS", "log", "whole"]

_SECTION = "Resuming"
_EVENTS = "Events"
Spoil = Callable[[int, Frame], list[Sent]]


def log(count: int, first: int = 1) -> list[Frame]:
    """So many events."""
    return [event(offset) for offset in range(first, first + count)]


async def whole(client: Client, gateway: ScriptedGateway, *, gaps: int = 0, resets: int = 0) -> None:
    """Everything that was committed was delivered, in order, once; and no more notices came than were due."""
    committed = gateway.script.log
    await client.until(
        lambda: client.events and client.events[-1]["event_id"] == committed[-1]["event_id"], "the last event"
    )
    got = [(item["offset"], item["event_id"]) for item in client.events]
    want = [(item["offset"], item["event_id"]) for item in committed]
    expect(got == want, _difference(got, want))
    for kind, due in (("gap", gaps), ("reset", resets), ("error", 0)):
        expect(len(client.of(kind)) == due, f"{len(client.of(kind))} {kind} notices, and {due} were due")


def _difference(got: list[tuple[int, str]], want: list[tuple[int, str]]) -> str:
    missing = [offset for offset, _ in want if offset not in {other for other, _ in got}]
    twice = sorted({offset for offset, _ in got if [other for other, _ in got].count(offset) > 1})
    return f"missing: {missing[:10]}, more than once: {twice[:10]}, in the order {[offset for offset, _ in got][:20]}"


async def plain(stage: Stage) -> None:
    async with stage.play(Script(log(20))) as (client, gateway):
        await whole(client, gateway)
        await gateway.commit(event(21), event(22))
        await whole(client, gateway)
        same = {name: client.events[0].get(name) for name in ("event_type", "user_id", "run_id", "data")}
        expect(same == {name: event(1)[name] for name in same}, f"an event was delivered as {client.events[0]}")


async def from_now_on(stage: Stage) -> None:
    async with stage.play(Script(log(5)), resume=None) as (client, gateway):
        await gateway.wait_for_connects(1)
        await gateway.commit(event(6), event(7))
        await client.until(lambda: len(client.events) >= 2, "two events")
        expect([item["offset"] for item in client.events] == [6, 7], f"{client.summary()}")


async def from_position(stage: Stage) -> None:
    place = {"epoch": "epoch-1", "offset": 3, "event_id": "evt-3"}
    async with stage.play(Script(log(6)), resume=place) as (client, gateway):
        await client.until(lambda: len(client.events) >= 3, "three events")
        expect([item["offset"] for item in client.events] == [4, 5, 6], f"{client.summary()}")
        expect(gateway.connects[0].get("resume") == place, f"it resumed from {gateway.connects[0].get('resume')}")


def _cut_at(kind: Cut) -> Spoil:
    """Each connection brings one event, and is cut where the next is due."""
    given: set[int] = set()

    def spoil(number: int, frame: Frame) -> list[Sent]:
        if number in given:
            return [kind]
        given.add(number)
        return [frame]

    return spoil


async def cut_everywhere(stage: Stage) -> None:
    async with stage.play(Script(log(8), spoil=_cut_at(Cut.BEFORE))) as (client, gateway):
        await whole(client, gateway)
        for connect in gateway.connects[1:]:
            place = connect.get("resume", {})
            known = {"epoch": "epoch-1", "offset": place.get("offset"), "event_id": f"evt-{place.get('offset')}"}
            expect(place in (known, {"offset": 0}), f"it resumed from {place}")


async def cut_halfway(stage: Stage) -> None:
    async with stage.play(Script(log(6), spoil=_cut_at(Cut.HALFWAY))) as (client, gateway):
        await whole(client, gateway)


async def cut_in_greeting(stage: Stage) -> None:
    def greet(number: int, frame: Frame) -> list[Sent]:
        cuts: dict[int, list[Sent]] = {0: [Cut.BEFORE], 1: [frame, Cut.BEFORE]}
        return cuts.get(number, [frame])

    async with stage.play(Script(log(4), greet=greet)) as (client, gateway):
        await whole(client, gateway)


async def cut_before_reset(stage: Stage) -> None:
    def greet(number: int, frame: Frame) -> list[Sent]:
        return [Cut.BEFORE] if number == 0 and frame["type"] == "reset" else [frame]

    lost = {"epoch": "epoch-0", "offset": 9, "event_id": "evt-9"}
    async with stage.play(Script(log(4), greet=greet), resume=lost) as (client, gateway):
        await whole(client, gateway, resets=1)


async def repeats(stage: Stage) -> None:
    def spoil(_: int, frame: Frame) -> list[Sent]:
        return [frame, frame]

    async with stage.play(Script(log(10), spoil=spoil)) as (client, gateway):
        await whole(client, gateway)


async def announced_gap(stage: Stage) -> None:
    def spoil(_: int, frame: Frame) -> list[Sent]:
        if frame["offset"] in {3, 4}:
            return []
        return [{"type": "gap", "from": 3, "to": 4}, frame] if frame["offset"] == 5 else [frame]

    async with stage.play(Script(log(7), spoil=spoil)) as (client, _):
        await client.until(lambda: client.events and client.events[-1]["offset"] == 7, "the last event")
        kinds = [body["offset"] if kind == "event" else (body["from"], body["to"]) for kind, body in client.told]
        expect(kinds == [1, 2, (3, 4), 5, 6, 7], f"it told {kinds}")


def _without(offset: int, *, always: bool) -> Spoil:
    def spoil(number: int, frame: Frame) -> list[Sent]:
        return [] if frame["offset"] == offset and (always or number == 0) else [frame]

    return spoil


async def mended_gap(stage: Stage) -> None:
    async with stage.play(Script(log(6), spoil=_without(3, always=False))) as (client, gateway):
        await client.until(lambda: client.events and client.events[-1]["offset"] == 6, "the last event")
        if not client.of("gap"):
            await whole(client, gateway)


async def lasting_gap(stage: Stage) -> None:
    async with stage.play(Script(log(6), spoil=_without(3, always=True))) as (client, _):
        await client.until(
            lambda: client.of("gap") or client.of("error") or (client.events and client.events[-1]["offset"] == 6),
            "a gap or an error",
        )
        notice = next((i for i, (kind, _) in enumerate(client.told) if kind in {"gap", "error"}), None)
        expect(notice is not None, f"the event 3 never came, and nothing was told; {client.summary()}")
        early = [body["offset"] for kind, body in client.told[:notice] if kind == "event"]
        expect(early == [1, 2], f"it delivered {early} before it told of the gap")


async def lost_tail(stage: Stage) -> None:
    """A heartbeat tells less than the client has read: the log lost its end, and has grown again when it asks."""
    script = Script(log(6), heartbeat=0.3)
    async with stage.play(script) as (client, gateway):
        await whole(client, gateway)
        script.log[3:] = [event(offset, event_id=f"new-{offset}") for offset in (4, 5, 6, 7)]
        gateway.rewind(3)
        await client.until(lambda: len(client.events) >= 10, "what the log has now")
        got = [item["event_id"] for item in client.events[6:]]
        expect(len(client.of("reset")) == 1, f"{len(client.of('reset'))} resets were told")
        expect(got == ["new-4", "new-5", "new-6", "new-7"], f"after the reset it delivered {got}")


async def missed_tail(stage: Stage) -> None:
    """The last event never came, and a heartbeat tells that it was sent."""
    script = Script(log(6), heartbeat=0.3, spoil=_without(6, always=False))
    async with stage.play(script) as (client, gateway):
        await whole(client, gateway)


async def silence(stage: Stage) -> None:
    def spoil(number: int, frame: Frame) -> list[Sent]:
        return [Cut.SILENCE] if number == 0 and frame["offset"] == 3 else [frame]

    def greet(number: int, frame: Frame) -> list[Sent]:
        return [Cut.SILENCE] if number == 0 and frame["type"] == "ping" else [frame]

    async with stage.play(Script(log(5), heartbeat=0.3, spoil=spoil, greet=greet)) as (client, gateway):
        await whole(client, gateway)


async def new_epoch_live(stage: Stage) -> None:
    script = Script(log(5))
    reset = {"type": "reset", "reason": "epoch_changed", "epoch": "epoch-2", "offset": 3}

    def spoil(number: int, frame: Frame) -> list[Sent]:
        if number == 0 and frame["offset"] == 4:
            script.epoch = "epoch-2"
            return [reset, frame]
        return [Cut.BEFORE] if number == 0 and frame["offset"] == 5 else [frame]

    script.spoil = spoil
    async with stage.play(script) as (client, gateway):
        await whole(client, gateway, resets=1)
        at = [kind for kind, _ in client.told].index("reset")
        expect(client.told[at - 1][1].get("offset") == 3, "the reset was not told where it came")
        expect(gateway.connects[1].get("resume", {}).get("epoch") == "epoch-2", "it resumed in the old epoch")


def _lost(place: Frame, reason: str) -> Callable[[Stage], Awaitable[None]]:
    async def play(stage: Stage) -> None:
        async with stage.play(Script(log(5, 11), first=11), resume=place) as (client, gateway):
            await whole(client, gateway, resets=1)
            expect(client.told[0][0] == "reset", "the reset was not the first that was told")
            expect(client.of("reset")[0].get("reason") == reason, f"the reason told is {client.of('reset')[0]}")

    return play


async def reset_while_away(stage: Stage) -> None:
    """Between two connections the log is made anew: what was delivered before is not delivered again."""
    script = Script(log(4), bye=lambda number: (4, None, 4003) if number == 0 else None)

    def refuse(number: int) -> int:
        if number == 1:
            script.epoch, script.log = "epoch-2", [*log(2), event(3, event_id="new-3"), event(4, event_id="new-4")]
        return 503 if number == 1 else 0

    script.refuse = refuse
    async with stage.play(script) as (client, _):
        await client.until(
            lambda: client.events and client.events[-1]["event_id"] == "new-4", "the new log's last event"
        )
        ids = [item["event_id"] for item in client.events]
        expect(len(client.of("reset")) == 1, f"{len(client.of('reset'))} resets were told")
        expect(ids[:4] == [f"evt-{n}" for n in range(1, 5)], f"it delivered {ids}")
        expect(ids[-2:] == ["new-3", "new-4"], f"it delivered {ids}")


def _nonsense(text: str) -> Callable[[Stage], Awaitable[None]]:
    """Once on the first connection: it comes back and has everything, or gives up and says so."""

    async def play(stage: Stage) -> None:
        def spoil(number: int, frame: Frame) -> list[Sent]:
            return [text, frame] if number == 0 and frame["offset"] == 3 else [frame]

        async with stage.play(Script(log(5), spoil=spoil)) as (client, gateway):
            await client.until(lambda: client.of("error") or len(client.events) >= 5, "the rest, or an error")
            if not client.of("error"):
                await whole(client, gateway)

    return play


async def unknown(stage: Stage) -> None:
    def spoil(_: int, frame: Frame) -> list[Sent]:
        return [{"type": "of_a_later_release", "offset": 99}, {**frame, "later": {"x": 1}}]

    script = Script([event(1), event(2, event_type="of_a_later_release"), event(3)], spoil=spoil)
    async with stage.play(script) as (client, gateway):
        await whole(client, gateway)


_PLACES = (
    ("reset-epoch", {"epoch": "epoch-0", "offset": 12, "event_id": "evt-12"}, "epoch_changed"),
    ("reset-trimmed", {"epoch": "epoch-1", "offset": 4, "event_id": "evt-4"}, "trimmed"),
    ("reset-beyond-top", {"epoch": "epoch-1", "offset": 99, "event_id": "evt-99"}, "beyond_top"),
    ("reset-mismatch", {"epoch": "epoch-1", "offset": 12, "event_id": "evt-other"}, "event_mismatch"),
)
_NONSENSE = (
    ("nonsense-json", "{"),
    ("nonsense-array", "[1, 2]"),
    ("nonsense-event", json.dumps({"event_type": "agent_thinking"})),
    ("nonsense-batch", json.dumps({"event_type": "event_batch", "batch_size": 2, "compressed": False})),
    ("nonsense-packed", json.dumps({"event_type": "event_batch", "compressed": True, "events_compressed": "zz"})),
)

SCENARIOS: tuple[Scenario[Stage], ...] = (
    Scenario("plain", _EVENTS, "every event, as it was sent, in order", plain),
    Scenario("from-now-on", _SECTION, "without a position: what comes from now on", from_now_on),
    Scenario("from-position", _SECTION, "a position is sent as it was given", from_position),
    Scenario("cut-everywhere", _SECTION, "cut after each event: nothing lost, nothing twice", cut_everywhere, 60),
    Scenario("cut-halfway", _SECTION, "cut in the middle of a frame", cut_halfway, 60),
    Scenario("cut-greeting", _SECTION, "cut before and right after `connected`", cut_in_greeting),
    Scenario("cut-before-reset", "Resets", "cut between `connected` and `reset`", cut_before_reset),
    Scenario("repeats", _SECTION, "events that come twice are delivered once", repeats),
    Scenario("gap-announced", "Frames from the gateway", "`gap` is told where it stands", announced_gap),
    Scenario("gap-mended", _EVENTS, "an event left out once is had again, or its loss told", mended_gap),
    Scenario("gap-lasting", _EVENTS, "an event that never comes: told before what follows it", lasting_gap),
    Scenario("tail-lost", "Frames from the gateway", "`ping` below the position: the log lost its end", lost_tail),
    Scenario("tail-missed", "Frames from the gateway", "`ping` above the position: events did not come", missed_tail),
    Scenario("silence", "Frames from the gateway", "no heartbeat: the connection is given up", silence),
    Scenario("reset-live", "Resets", "a `reset` in the middle of a connection", new_epoch_live),
    *(Scenario(name, "Resets", f"`reset` with {why}", _lost(place, why)) for name, place, why in _PLACES),
    Scenario("reset-while-away", "Resets", "the log is made anew between two connections", reset_while_away),
    *(Scenario(name, _EVENTS, "what is malformed is never passed over", _nonsense(text)) for name, text in _NONSENSE),
    Scenario("unknown", "WebSocket", "unknown kinds and fields are no fault", unknown),
)
