"""What must hold whatever was broken: per user, received = committed, in order, once, or else a notice that says so.

``Received`` keeps what a user was given, ``read_log`` reads back what the log holds, past the gateway, and ``judge``
compares the two. It needs nothing but these two lists, so the judgement itself is tested (``test_oracle``).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from carrel.client import Event, Notice
from carrel.errors import CarrelError
from carrel.v1 import bridge_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from servicekit.rpc.channel import open_channel, responses
from tests.support.stack import RunningStack

__all__ = ["Committed", "LogEnd", "Received", "Verdict", "judge", "judge_delivery", "read_log"]

TERMINAL: Final = "run_completed"
_READ_S: Final = 20.0
_READ_TRIES: Final = 20
_SHOWN: Final = 5


class Committed(NamedTuple):
    """One entry of a user's log, as far as it is compared."""

    offset: int
    event_id: str
    event_type: str
    run_id: str
    agent_name: str = ""
    attempt: int = 0
    data: str = "{}"
    child: bool = False


@dataclass(frozen=True)
class LogEnd:
    """A user's log as it stands: its entries, oldest first, and its epoch."""

    epoch: str
    entries: Sequence[Committed]


@dataclass
class Received:
    """What one user was given, in the order in which it came: events and notices.

    ``wire_repeats`` and ``wire_holes`` are what the client's own bookkeeping met with and did not pass on.
    """

    user: str
    items: list[Event | Notice] = field(default_factory=list)
    wire_repeats: int = 0
    wire_holes: int = 0

    def add(self, item: Event | Notice) -> None:
        """One more. Of an event only what is compared is kept: a soak has many."""
        if isinstance(item, Event):
            item = Event(
                item.offset, item.event_id, item.event_type, item.user_id, "", item.run_id, "", epoch=item.epoch
            )
        self.items.append(item)

    @property
    def events(self) -> list[Event]:
        """The events."""
        return [item for item in self.items if isinstance(item, Event)]

    @property
    def resets(self) -> list[Notice]:
        """Where it was told that its position is void."""
        return [item for item in self.items if isinstance(item, Notice) and item.kind == "reset"]


@dataclass
class Verdict:
    """What came of one user, or of several together. The last five numbers must be 0."""

    committed: int = 0
    received: int = 0
    lost: int = 0
    repeated: int = 0
    foreign: int = 0
    unexplained_gaps: int = 0
    runs_without_end: int = 0
    notices: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    COUNTS = ("committed", "received", "lost", "repeated", "foreign", "unexplained_gaps", "runs_without_end")
    MUST_BE_0 = COUNTS[2:]

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not any(getattr(self, name) for name in self.MUST_BE_0)

    def counts(self) -> dict[str, int]:
        """The numbers by name, in their order."""
        return {name: getattr(self, name) for name in self.COUNTS}

    def __iadd__(self, other: Verdict) -> Verdict:
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.notices += other.notices
        self.ends += other.ends
        self.problems += other.problems
        return self

    def add_wrong(self, other: Verdict) -> None:
        """Add what is wrong with a further reader of a log that is counted already."""
        for name in self.MUST_BE_0:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems += other.problems

    def found(self, name: str, count: int, what: str) -> None:
        """Add to a number that must be 0, and say why."""
        if count:
            setattr(self, name, getattr(self, name) + count)
            self.problems.append(what)


async def read_log(stack: RunningStack, user: str, bridge: str = "") -> LogEnd:
    """Everything that the user's log keeps, read from the bridge itself.

    Args:
        stack: Whose bridge.
        user: Whose log.
        bridge: The bridge's address, when it is not the stack's only one.
    """
    last: CarrelError | None = None
    for _ in range(_READ_TRIES):
        try:
            return await _read_once(stack, user, bridge or stack.address(stack.copies("bridge")[0]))
        except CarrelError as error:
            last = error
            await asyncio.sleep(0.25)
    raise AssertionError(f"the log of {user} cannot be read: {last}")


async def _read_once(stack: RunningStack, user: str, bridge: str) -> LogEnd:
    entries: list[Committed] = []
    epoch = ""
    async with open_channel(bridge, tls=stack.tls_to("bridge")) as channel:
        request = bridge_pb2.ReadEventsRequest(context=stack.session_context(user))
        call = BridgeServiceStub(channel).ReadEvents(request, timeout=_READ_S)
        async for response in responses(call):
            if response.HasField("entries"):
                epoch = response.entries.epoch
                entries += [_committed(entry) for entry in response.entries.entries]
            elif response.HasField("through"):
                epoch = response.through.epoch
    return LogEnd(epoch, entries)


def _committed(entry: Any) -> Committed:
    return Committed(
        entry.offset,
        entry.event_id,
        entry.event_type,
        entry.run_id,
        entry.agent_name,
        entry.attempt,
        entry.data.decode() or "{}",
        bool(entry.parent_request_id),
    )


def judge(received: Received, log: LogEnd, accepted: Iterable[str] = (), *, lossy: bool = False) -> Verdict:
    """Compare what a user was given with what the log holds, and look at the runs in there.

    Args:
        received: What came, up to the log's end: whoever calls has waited for it.
        log: What the log holds now.
        accepted: Runs that were answered with ``run_accepted``: what was acknowledged must be there.
        lossy: The store itself has lost something: runs may lack events, what is there must be right, and whoever
            lacks anything must have been told so.
    """
    verdict = judge_delivery(received, log)
    _judge_runs(verdict, received.user, log, set() if lossy else set(accepted), lossy)
    if lossy:
        _judge_told(verdict, received, log, accepted)
    return verdict


def judge_delivery(received: Received, log: LogEnd, after: int = 0) -> Verdict:
    """The part of ``judge`` that asks for no more than the log and its reader.

    Args:
        received: As ``judge``.
        log: As ``judge``.
        after: The offset from which on the user has read; 0 for all.
    """
    verdict = Verdict(committed=len(log.entries))
    events = received.events
    verdict.received = len({event.event_id for event in events})
    verdict.notices = Counter(
        f"{item.kind} {item.body.get('reason', '')}".strip()
        for item in received.items
        if isinstance(item, Notice) and item.kind in {"reset", "gap"}
    )
    verdict.notices["log_gap"] += sum(entry.event_type == "log_gap" for entry in log.entries)
    verdict.notices += Counter()
    foreign = [event for event in events if event.user_id != received.user]
    verdict.found("foreign", len(foreign), f"{received.user} got events of {sorted({e.user_id for e in foreign})}")
    _judge_repeats(verdict, received)
    _judge_log(verdict, received.user, log)
    _judge_loss(verdict, received, log, after)
    _judge_order(verdict, received, log)
    return verdict


def _judge_repeats(verdict: Verdict, received: Received) -> None:
    times = Counter(event.event_id for event in received.events)
    twice = [event_id for event_id, count in times.items() if count > 1]
    verdict.found("repeated", len(twice), f"{received.user} got {twice[:_SHOWN]} more than once")
    if not received.resets:
        # After a reset everything that is kept comes again; without one the gateway must not repeat itself.
        repeats = received.wire_repeats
        verdict.found("repeated", repeats, f"{received.user} was sent {repeats} events again without a reset")
    holes = received.wire_holes
    verdict.found("unexplained_gaps", holes, f"{received.user}'s offsets skipped {holes} times without a gap or reset")


def _judge_log(verdict: Verdict, user: str, log: LogEnd) -> None:
    offsets = [entry.offset for entry in log.entries]
    holes = sum(after != before + 1 for before, after in itertools.pairwise(offsets))
    verdict.found("unexplained_gaps", holes, f"the log of {user} has {holes} holes: {offsets[:3]} to {offsets[-3:]}")
    twice = len(log.entries) - len({entry.event_id for entry in log.entries})
    verdict.found("repeated", twice, f"the log of {user} has {twice} events twice")


def _judge_loss(verdict: Verdict, received: Received, log: LogEnd, after: int) -> None:
    got = {event.event_id for event in received.events}
    excused = _told_missing(received)
    wanted = [entry for entry in log.entries if entry.offset > after]
    missing = [entry for entry in wanted if entry.event_id not in got and entry.offset not in excused]
    told = [(entry.offset, entry.event_type) for entry in missing[:_SHOWN]]
    verdict.found("lost", len(missing), f"{received.user} never got {len(missing)} committed events: {told}")
    there = {entry.event_id for entry in log.entries}
    oldest = log.entries[0].offset if log.entries else 1
    gone = [event for event in _not_void(received) if event.event_id not in there and event.offset >= oldest]
    told = [(event.offset, event.event_type) for event in gone[:_SHOWN]]
    verdict.found("lost", len(gone), f"the log of {received.user} lost {len(gone)} events without a word: {told}")


def _told_missing(received: Received) -> set[int]:
    """Offsets that a ``gap`` named; of the gateway's, not the client's own word for a jump."""
    gaps = [item.body for item in received.items if isinstance(item, Notice) and item.kind == "gap"]
    gaps = [gap for gap in gaps if gap.get("announced") is not False]
    return {offset for gap in gaps for offset in range(int(gap["from"]), int(gap["to"]) + 1)}


def _not_void(received: Received) -> list[Event]:
    """The events that no later ``reset`` has made void."""
    kept: list[Event] = []
    for item in received.items:
        if isinstance(item, Event):
            kept.append(item)
        elif item.kind == "reset":
            offset = int(item.body.get("offset") or 0)
            kept = [event for event in kept if event.offset <= offset]
    return kept


def _judge_order(verdict: Verdict, received: Received, log: LogEnd) -> None:
    """In the log's order from one reset to the next: after one, older entries may come that were not read before."""
    place = {entry.event_id: entry.offset for entry in log.entries}
    wrong, last = 0, 0
    for item in received.items:
        if isinstance(item, Notice):
            last = 0 if item.kind == "reset" else last
        elif item.event_id in place:
            wrong += place[item.event_id] <= last
            last = place[item.event_id]
    verdict.found("unexplained_gaps", wrong, f"{received.user} got events out of order, {wrong} times")


def _judge_runs(verdict: Verdict, user: str, log: LogEnd, accepted: set[str], lossy: bool) -> None:
    by_run: dict[str, list[Committed]] = {run_id: [] for run_id in accepted}
    for entry in log.entries:
        by_run.setdefault(entry.run_id, []).append(entry)
    gaps = lossy or any(entry.event_type == "log_gap" for entry in log.entries)
    for run_id, entries in by_run.items():
        ends = [entry for entry in entries if entry.event_type == TERMINAL]
        if len(ends) > 1 or not (ends or lossy):
            verdict.found("runs_without_end", 1, f"{user}: {run_id} has {len(ends)} ends, {len(entries)} events")
        if len(ends) != 1:
            continue
        if entries[-1] is not ends[0] or (entries[0].event_type != "run_accepted" and not gaps):
            verdict.problems.append(f"{user}: {run_id} goes from {entries[0].event_type} to {entries[-1].event_type}")
        end = json.loads(ends[0].data)
        code = (end.get("error") or {}).get("code", "")
        verdict.ends[f"{end['status']} {code}".strip()] += 1
        if end["status"] == "SUCCEEDED" and not gaps:
            _judge_steps(verdict, user, run_id, entries)


def _judge_told(verdict: Verdict, received: Received, log: LogEnd, accepted: Iterable[str]) -> None:
    """Of a store that lost something: a user who lacks anything of it has had a reset, a gap, or a ``log_gap``."""
    told = bool(received.resets or _told_missing(received)) or any(e.event_type == "log_gap" for e in log.entries)
    lacks = [] if told else [*_broken_runs(log, accepted), *_given_but_gone(received, log)]
    verdict.found("lost", len(lacks), f"{received.user} was told of no loss, and lacks: {lacks[:_SHOWN]}")


def _broken_runs(log: LogEnd, accepted: Iterable[str]) -> list[str]:
    """Runs, accepted or in the log, that are not whole in it: no beginning, no end, or numbered steps that skip."""
    by_run: dict[str, list[Committed]] = {run_id: [] for run_id in accepted}
    for entry in log.entries:
        by_run.setdefault(entry.run_id, []).append(entry)
    broken = []
    for run_id, entries in by_run.items():
        kinds = [entry.event_type for entry in entries]
        if kinds[:1] != ["run_accepted"] or kinds[-1:] != [TERMINAL]:
            broken.append(f"{run_id}, of which there is {kinds[:1]} to {kinds[-1:]}")
        else:
            succeeded = json.loads(entries[-1].data).get("status") == "SUCCEEDED"
            short = [stage for stage in _stages(entries) if stage.missing(ended=succeeded) > stage.shed]
            broken += [f"steps of {run_id}, {stage.agent}, which has {sorted(stage.numbers)}" for stage in short]
    return broken


def _given_but_gone(received: Received, log: LogEnd) -> list[str]:
    """What the user was given and is not in the log as it was given: it ended there, or has begun anew."""
    there = {(entry.offset, entry.event_id) for entry in log.entries}
    return [
        f"{event.event_type} at {event.epoch}:{event.offset}, which the log has no more"
        for event in received.events
        if (event.offset, event.event_id) not in there or event.epoch not in {"", log.epoch}
    ]


def _judge_steps(verdict: Verdict, user: str, run_id: str, entries: Sequence[Committed]) -> None:
    """A stage that ended well had each of its numbered steps acknowledged: they are there, or said to be left out."""
    for stage in _stages(entries):
        missing = stage.missing(ended=True)
        if missing > stage.shed:
            told = f"{user}: {run_id}, {stage.agent}: {missing} of {stage.steps} steps are gone"
            verdict.found("lost", missing - stage.shed, told)
        verdict.notices["shed"] += stage.shed
    verdict.notices += Counter()


@dataclass(frozen=True)
class _Stage:
    """The numbered steps of a stage's last attempt, how many were left out and said so, and how many it took."""

    agent: str
    numbers: set[int]
    shed: int
    steps: int

    def missing(self, *, ended: bool) -> int:
        """How many steps are not there: up to the highest that is, or to the last, when the stage ended well."""
        wanted = self.steps if ended else max(self.numbers, default=0)
        return wanted - len(self.numbers) if wanted else 0


def _stages(entries: Sequence[Committed]) -> list[_Stage]:
    by_stage: dict[str, list[Committed]] = {}
    for entry in entries:
        if entry.agent_name and not entry.child:
            by_stage.setdefault(entry.agent_name, []).append(entry)
    stages = []
    for agent, mine in by_stage.items():
        last = max(entry.attempt for entry in mine)
        told = [
            json.loads(e.data)
            for e in mine
            if e.attempt == last and e.event_type in {"agent_thinking", "agent_completed"}
        ]
        numbers = {int(data["number"]) for data in told if "number" in data}
        shed = sum(int(data.get("shed") or 0) for data in told)
        stages.append(_Stage(agent, numbers, shed, _steps_of(mine)))
    return stages


def _steps_of(entries: Sequence[Committed]) -> int:
    """How many numbered steps the stage's result says that it took."""
    for entry in reversed(entries):
        if entry.event_type == "agent_completed":
            result = json.loads(entry.data).get("result")
            if isinstance(result, dict):
                return int(result.get("steps") or 0)
    return 0
