"""Replay while live events arrive, at every split point: no gap, no repeat, order kept, or a notice that says so."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from carrel.client import Notice
from tests.faults.oracle import LogEnd, Received, judge_delivery
from tests.unit.gateway.replay_world import Client, SlowLog, World, run_virtually, turns

_ENDS_WITHIN_S: Final = 30.0
_ROUNDS: Final = 3

Step = tuple[str, int, int]

_NONE: Final = st.just(0)
_STEPS: Final = st.one_of(
    # Most of the time the log grows, turns of the loop or moments pass, and clients go and come back.
    st.tuples(st.just("append"), st.integers(1, 6), st.integers(0, 1)),
    st.tuples(st.just("append"), st.integers(1, 6), st.integers(0, 1)),
    st.tuples(st.just("turns"), st.integers(0, 30), _NONE),
    st.tuples(st.just("moment"), st.integers(1, 120), _NONE),
    st.tuples(st.just("take"), st.integers(0, 8), _NONE),
    st.tuples(st.just("reconnect"), st.integers(0, 8), st.integers(0, 4)),
    st.tuples(st.just("reconnect"), st.integers(0, 8), st.integers(0, 4)),
    st.tuples(st.just("bystander"), _NONE, _NONE),
    st.tuples(st.just("gap"), st.integers(1, 3), st.integers(0, 1)),
    st.tuples(st.just("trim"), _NONE, _NONE),
    st.tuples(st.just("cut"), _NONE, _NONE),
    st.tuples(st.just("restart"), _NONE, _NONE),
    st.tuples(st.just("lose tail"), st.integers(1, 6), st.integers(0, 1)),
)


class Scenario:
    """Plays steps over a world, then lets everything come to rest and judges."""

    def __init__(self, world: World, client: Client, bystander: Client) -> None:
        self.world = world
        self.client = client
        self.bystander = bystander
        self.beside = False

    async def play(self, steps: list[Step]) -> None:
        for what, count, extra in steps:
            await self._step(what, count, extra)
            assert self.client.failed is None, self.client.failed

    async def _step(self, what: str, count: int, extra: int) -> None:
        world = self.world
        match what:
            case "append" | "gap":
                world.append(count, f"{extra}g{world.generation}", gap=what == "gap")
            case "turns":
                await turns(count)
            case "moment":
                # Long enough for a stream to be opened again, or not quite.
                await asyncio.sleep(count / 1000)
            case "trim":
                await world.log.sweep()
            case "cut":
                world.channel.cut()
            case "restart":
                await world.start_bridge()
            case "lose tail":
                await self._lose_tail(count, keep_epoch=bool(extra))
            case _:
                await self._client_step(what, count, extra)

    async def _client_step(self, what: str, count: int, extra: int) -> None:
        if what == "bystander":
            # The ring lives as long as anybody of the user's is there.
            await (self.bystander.hang_up() if self.beside else turns(0))
            self.beside = not self.beside
            if self.beside:
                self.bystander.connect()
            return
        await self.take(count)
        if what in {"reconnect", "hang up"}:
            await self.client.hang_up()
            await turns(extra)
        if what == "reconnect":
            self.client.connect()

    async def take(self, count: int | None = None) -> None:
        """Read frames; a client that finds itself astray comes back."""
        self.client.take(count)
        if self.client.astray:
            await self.client.hang_up()
            self.client.connect()

    async def _lose_tail(self, lost: int, *, keep_epoch: bool) -> None:
        """The bridge is another process now, and its log lacks the tail."""
        self.world.channel.cut()
        await turns(3)
        self.world.log.lose_tail(lost, keep_epoch=keep_epoch)
        self.world.forget_producers()
        await self.world.start_bridge()

    async def rest(self, chooser: random.Random) -> LogEnd:
        """Until the client has the log's last entry, or time is up; several times, each begun in another way."""
        log = LogEnd("", [])
        for _ in range(_ROUNDS):
            if chooser.random() < 0.5:
                self.world.channel.cut()
                await asyncio.sleep(chooser.uniform(0.03, 0.06))
            for _ in range(2):
                self.world.append(1, f"0g{self.world.generation}")
                await turns(chooser.randint(0, 12))
            log = await self._caught_up()
        return log

    async def _caught_up(self) -> LogEnd:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + _ENDS_WITHIN_S, 0.001
        log = self.world.log.end()
        while loop.time() < deadline:
            await self.take()
            if _has(self.client.received, log):
                break
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)
        return log


def _has(received: Received, log: LogEnd) -> bool:
    return any(event.event_id == log.entries[-1].event_id for event in received.events)


async def _scenario(steps: list[Step], ring: int, keep: int, batch: bool, everything: bool, seed: int) -> None:
    chooser = random.Random(seed)
    world = World(SlowLog(keep, lambda: chooser.randint(0, 3)), ring)
    async with world.running():
        client = Client(world, "", batch=batch, everything=everything)
        bystander = Client(world, "", batch=False, everything=False)
        scenario = Scenario(world, client, bystander)
        client.connect()
        try:
            await scenario.play(steps)
            log = await scenario.rest(chooser)
        finally:
            await client.hang_up()
            await bystander.hang_up()
    received = client.received
    received.wire_repeats, received.wire_holes = client.reader.duplicates, client.reader.holes
    begun = 0 if everything or client.begun_at is None else client.begun_at
    verdict = judge_delivery(received, log, after=begun)
    assert verdict.good, f"{verdict.problems}\n{_told(received)}\nlog: {[(e.offset, e.event_id) for e in log.entries]}"


def _told(received: Received) -> str:
    return "\n".join(
        f"  {item.body}" if isinstance(item, Notice) else f"  {item.epoch} {item.offset} {item.event_id}"
        for item in received.items
    )


_CASES: Final[dict[str, Any]] = {
    "ring": st.integers(1, 12),
    "keep": st.integers(3, 40),
    "batch": st.booleans(),
    "everything": st.booleans(),
    "seed": st.integers(0, 1_000_000),
}


@settings(max_examples=150)
@given(steps=st.lists(_STEPS, min_size=1, max_size=30), **_CASES)
def test_a_reader_that_comes_back_anywhere_gets_every_event_once_or_is_told(
    steps: list[Step], ring: int, keep: int, batch: bool, everything: bool, seed: int
) -> None:
    run_virtually(_scenario(steps, ring, keep, batch, everything, seed))


@settings(max_examples=60)
@given(before=st.integers(0, 12), during=st.lists(st.integers(0, 3), min_size=1, max_size=30), **_CASES)
def test_replay_meets_the_live_stream_at_every_split_point(
    before: int, during: list[int], ring: int, keep: int, batch: bool, everything: bool, seed: int
) -> None:
    """No fault at all: only events that arrive while others are replayed, turn by turn, and nothing to be told."""
    steps: list[Step] = [("append", before, 0)] if before else []
    for count in during:
        steps += [("append", count, 0)] if count else [("reconnect", 1, 0)]
        steps.append(("turns", count, 0))
    run_virtually(_scenario(steps, ring, 1000, batch, everything, seed))


@settings(max_examples=60)
@given(
    before=st.integers(1, 10), lost=st.integers(1, 5), since=st.integers(0, 10), keep_epoch=st.integers(0, 1), **_CASES
)
@example(
    before=5, lost=3, since=5, keep_epoch=1, ring=12, keep=40, batch=False, everything=True, seed=1
)  # the ring holds another event at the reader's offset
def test_a_tail_that_was_lost_and_grew_again_while_the_reader_was_away_is_told(
    before: int,
    lost: int,
    since: int,
    keep_epoch: int,
    ring: int,
    keep: int,
    batch: bool,
    everything: bool,
    seed: int,
) -> None:
    """Whether another connection kept the user's ring alive meanwhile (odd seeds) or not."""
    steps: list[Step] = [("moment", 100, 0), ("append", before, 0), ("moment", 100, 0)]
    steps += [("bystander", 0, 0)] if seed % 2 else []
    steps += [("hang up", 100, 0), ("lose tail", lost, keep_epoch), ("moment", 100, 0)]
    steps += [("append", since, 0), ("moment", 100, 0)] if since else []
    run_virtually(_scenario([*steps, ("reconnect", 0, 0)], ring, 1000, batch, everything, seed))
