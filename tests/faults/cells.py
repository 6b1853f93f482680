"""The fault matrix's cells: each breaks one thing at a seeded moment, leaves it broken for a while, and mends it.

A cell says what it needs (``stores``, ``own``: a stack of its own) and what it does; what must hold is the oracle's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.faults.edges import EDGES, Net
from tests.faults.evidence import clock_is_off
from tests.faults.load import Load
from tests.faults.oracle import read_log
from tests.faults.stores import Servers
from tests.support.awake import Awake
from tests.support.stack import SERVICES, RunningStack
from tests.support.tcp_proxy import BOTH, DOWN, UP, Direction, Mode

__all__ = ["CELLS", "Cell", "Scene"]

_BACK_S: Final = 20.0
_CLOCK_S: Final = 3.0
# A hint as Redis sends it; how long they are swallowed; what is late; within what a look finds it, and a call is made.
_HINT: Final = b"$7\r\nmessage\r\n"
_SWALLOWED_S: Final = 12.0
_LATE_S: Final = 0.4
_FOUND_S: Final = 5.0 + 1.0
# Connections are a second old at most; on each edge with calls so many are opened anew, within so long.
_RENEWALS: Final = 2
_AGED_S: Final = 30.0
# Edges with nothing but a stream that lasts as long as its process.
_LASTING: Final = frozenset({"gateway-bridge", "execution-emitter", "agent_instance-emitter", "emitter-bridge"})
STREAMS: Final = (
    # Edges with a stream of events, and the direction in which they go.
    ("client-gateway", DOWN),
    ("gateway-bridge", DOWN),
    ("emitter-bridge", UP),
    ("agent_instance-emitter", UP),
    ("execution-emitter", UP),
    ("execution-agent_instance", DOWN),
)


@dataclass
class Scene:
    """Where a cell acts: the stack, its network, the load, and the seed's random numbers.

    ``notes`` are problems; ``said`` is what the fault is known to have done, to be printed.
    """

    stack: RunningStack
    net: Net
    load: Load
    random: random.Random
    servers: Servers
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def moment(self, least: int = 10, most: int = 120) -> None:
        """A seeded moment in the middle of the load."""
        await self.load.events(self.random.randint(least, most))

    async def restart(self, service: str, number: int = signal.SIGKILL) -> None:
        """End a process, and wait until it is back."""
        old = self.stack.kill(service, number)
        await self.back(service, old)

    async def back(self, service: str, old: int) -> None:
        """Wait until a process is ready again."""
        await until(lambda: self.stack.restarted(service, old), f"{service} is back")


async def until(condition: Callable[[], bool], what: str, within: float = _BACK_S) -> None:
    """Wait for it.

    Raises:
        AssertionError: It did not happen in time.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.005)


Act = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Cell:
    """One fault.

    ``long`` ones take more than a few seconds by their nature, so that no sample holds them. After ``lossy`` ones the
    store lacks what it had acknowledged, and users must have been told so. ``alone`` says that it leaves its stack in
    no state for another.
    """

    name: str
    act: Act
    group: str
    stores: str = "sqlite"
    long: bool = False
    lossy: bool = False
    alone: bool = False


def _kill(service: str) -> Act:
    async def act(scene: Scene) -> None:
        await scene.moment()
        await scene.restart(service)

    return act


def _kill_again(service: str) -> Act:
    async def act(scene: Scene) -> None:
        for _ in range(3):
            await scene.moment(1, 40)
            await scene.restart(service)

    return act


def _stop(service: str, seconds: float) -> Act:
    async def act(scene: Scene) -> None:
        await scene.moment()
        pid = scene.stack.kill(service, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            if scene.stack.pid(service) == pid:
                scene.stack.kill(service, signal.SIGCONT)

    return act


def _network(edge: str, mode: Mode, seconds: float) -> Act:
    async def act(scene: Scene) -> None:
        await scene.moment()
        await until(lambda: scene.net.passed(edge) > 0, f"{edge} is in use")
        with scene.net.during(edge, mode):
            await asyncio.sleep(seconds)

    return act


def _outage(edge: str, seconds: float) -> Act:
    """Connections are reset and new ones refused: the server's machine is gone."""

    async def act(scene: Scene) -> None:
        await scene.moment()
        with scene.net.during(edge, Mode.refuse()):
            scene.net.drop(edge)
            await asyncio.sleep(seconds)

    return act


def _flapping(edge: str) -> Act:
    async def act(scene: Scene) -> None:
        for _ in range(8):
            await scene.moment(1, 30)
            scene.net.drop(edge)

    return act


def _cut(edge: str, direction: Direction) -> Act:
    """Three times in the middle of a message, at seeded places."""

    async def act(scene: Scene) -> None:
        await scene.moment()
        for _ in range(3):
            await _cut_once(scene, edge, Mode.cut(scene.random.randint(1, 6000), direction))

    return act


async def _cut_once(scene: Scene, edge: str, mode: Mode) -> None:
    before = scene.net.cuts(edge)
    scene.net.set(edge, mode)
    await until(lambda: scene.net.cuts(edge) > before, f"{edge} is cut")


def _half_open(edge: str, server: str) -> Act:
    """The server dies, and its peer is never told: only silence says so."""

    async def act(scene: Scene) -> None:
        await scene.moment()
        scene.net.set(edge, Mode.half_open())
        await scene.restart(server)
        # Not healed: new connections pass in this mode, and to notice that the old one is dead is the client's work.
        await scene.load.events(60, within=90)

    return act


def _unacknowledged(edge: str, victim: str, unseen: int = 15) -> Act:
    """The log takes events whose acknowledgement never arrives; then one of the two dies."""

    async def act(scene: Scene) -> None:
        await scene.moment()
        scene.net.set(edge, Mode.hold(DOWN))
        try:
            # What users see is committed, and the acknowledgement of it is on hold.
            await scene.load.events(unseen)
            old = scene.stack.kill(victim)
        finally:
            scene.net.heal()
        await scene.back(victim, old)

    return act


def _unanswered_admission(scene_victim: str) -> Act:
    """Runs are admitted whose answer never arrives; then execution or the gateway dies."""

    async def act(scene: Scene) -> None:
        await scene.moment()
        scene.net.set("gateway-execution", Mode.hold(DOWN))
        try:
            admitted = _runs_seen(scene.load)
            await until(lambda: _runs_seen(scene.load) > admitted, "a run is admitted")
            old = scene.stack.kill(scene_victim)
        finally:
            scene.net.heal()
        await scene.back(scene_victim, old)

    return act


def _runs_seen(load: Load) -> set[str]:
    return {event.run_id for user in load.users for event in user.received.events if event.event_type == "run_accepted"}


def _read_but_unsent(victim: str) -> Act:
    """Events have left the log for the gateway and never arrive at the client; then the gateway or bridge dies."""

    async def act(scene: Scene) -> None:
        await scene.moment()
        edge = "client-gateway" if victim == "gateway" else "gateway-bridge"
        before = scene.net.passed("emitter-bridge")
        with scene.net.during(edge, Mode.hold(DOWN)):
            await until(lambda: scene.net.passed("emitter-bridge") > before + 3000, "events are committed")
            old = scene.stack.kill(victim)
        await scene.back(victim, old)

    return act


def _replay(edge: str, breaking: Callable[[Scene], Awaitable[None]]) -> Act:
    """Everybody reads a long log from its beginning on a further connection, and something breaks in the middle."""

    async def act(scene: Scene) -> None:
        await scene.load.events(500, within=60)
        # Slow enough that the middle can be met.
        scene.net.set(edge, Mode.delay(0.1))
        try:
            watchers = scene.load.watch()
            await until(watchers[0].begun.is_set, "a replay has begun")
            await breaking(scene)
        finally:
            scene.net.heal()

    return act


def _and_kill(service: str) -> Callable[[Scene], Awaitable[None]]:
    async def breaking(scene: Scene) -> None:
        await scene.restart(service)

    return breaking


def _and_cut(edge: str) -> Callable[[Scene], Awaitable[None]]:
    async def breaking(scene: Scene) -> None:
        await _cut_once(scene, edge, Mode.cut(scene.random.randint(1, 60_000), DOWN))

    return breaking


async def _rolling(scene: Scene) -> None:
    for service in reversed(SERVICES):
        await scene.moment(5, 40)
        await scene.restart(service, signal.SIGTERM)


async def _all_at_once(scene: Scene) -> None:
    await scene.moment()
    old = {service: scene.stack.kill(service) for service in SERVICES}
    for service, pid in old.items():
        await scene.back(service, pid)


async def _redis_restarts_with_its_data(scene: Scene) -> None:
    redis = scene.servers.redis
    assert redis is not None
    for _ in range(3):
        await scene.moment(10, 60)
        await asyncio.to_thread(redis.kill)
        await asyncio.sleep(scene.random.uniform(0, 1.5))
        await asyncio.to_thread(redis.start)


async def _redis_restarts_empty(scene: Scene) -> None:
    redis = scene.servers.redis
    assert redis is not None
    await scene.moment()
    await asyncio.to_thread(redis.kill)
    redis.forget()
    await asyncio.to_thread(redis.start)


async def _redis_is_flushed(scene: Scene) -> None:
    redis = scene.servers.redis
    assert redis is not None
    await scene.moment()
    await asyncio.to_thread(redis.call, "FLUSHALL")


def _redis_stops(seconds: float) -> Act:
    async def act(scene: Scene) -> None:
        redis = scene.servers.redis
        assert redis is not None
        await scene.moment()
        redis.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            redis.resume()

    return act


async def _hints_are_lost(scene: Scene) -> None:
    """Pub/Sub is a hint: whoever listens is cut off again and again, so that last messages are lost, too."""
    redis = scene.servers.redis
    assert redis is not None
    await scene.moment()
    for _ in range(60):
        await asyncio.to_thread(redis.call, "CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.05)


async def _hints_are_swallowed(scene: Scene) -> None:
    """No hint arrives, and nobody is told: connections stay up. Looking where logs stand finds every event in time."""
    await scene.moment()
    edge = "bridge-redis"
    before, slowest, deadline = scene.net.sieved(edge), 0.0, time.monotonic() + _SWALLOWED_S
    seen: dict[str, float] = {}
    with scene.net.during(edge, Mode.sieve(_HINT)), Awake() as clock:
        while time.monotonic() < deadline or slowest < _LATE_S:
            assert time.monotonic() < deadline + _SWALLOWED_S, f"no event was late: {slowest:.1f} s at most"
            late = await _longest_wait(scene, seen, clock)
            assert late <= _FOUND_S, f"an event that is in the log has not come for {late:.1f} s"
            slowest = max(slowest, late)
            await asyncio.sleep(0.1)
    swallowed = scene.net.sieved(edge) - before
    assert swallowed, "there was no hint to swallow"
    scene.said.append(f"{swallowed} hints swallowed, the slowest event came {slowest:.1f} s late")


async def _longest_wait(scene: Scene, seen: dict[str, float], clock: Awake) -> float:
    """How long an event has been in a log without having come; ``seen`` keeps since when each is known to be there."""
    logs = await asyncio.gather(*(read_log(scene.stack, user.name) for user in scene.load.users))
    now, longest = clock.seconds, 0.0
    for user, log in zip(scene.load.users, logs, strict=True):
        got = {event.event_id for event in user.received.events}
        since = [seen.setdefault(entry.event_id, now) for entry in log.entries if entry.event_id not in got]
        longest = max(longest, now - min(since, default=now))
    return longest


async def _failover(scene: Scene) -> None:
    setup = scene.servers.sentinel
    assert setup is not None
    await scene.moment()
    await asyncio.to_thread(setup.fail_over)


async def _failover_without_the_tail(scene: Scene) -> None:
    """The replica hears no more of the master, which goes on and dies; it is master then, and lacks the tail."""
    setup = scene.servers.sentinel
    assert setup is not None
    await scene.moment()
    # Stopping it would not do: what is on its way to it would be read when it goes on.
    await asyncio.to_thread(setup.replica.call, "REPLICAOF", "127.0.0.1", 1)
    await scene.load.events(15)
    await asyncio.to_thread(setup.fail_over)


async def _postgres_restarts(scene: Scene) -> None:
    postgres = scene.servers.postgres
    assert postgres is not None
    for turn in range(4):
        await asyncio.sleep(scene.random.uniform(0.5, 2.0))
        if turn % 2:
            await asyncio.to_thread(postgres.kill)
        else:
            await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(postgres.start)


async def _postgres_stops(scene: Scene) -> None:
    postgres = scene.servers.postgres
    assert postgres is not None
    await scene.moment()
    postgres.signal_all(signal.SIGSTOP)
    await asyncio.sleep(4)
    postgres.signal_all(signal.SIGCONT)


def _copy(service: str, act: Callable[[str], Act]) -> Act:
    """One of two copies, chosen by the seed."""

    async def chosen(scene: Scene) -> None:
        await act(scene.random.choice(scene.stack.copies(service)))(scene)

    return chosen


async def _rolling_copies(scene: Scene) -> None:
    for service in reversed(SERVICES):
        for name in scene.stack.copies(service):
            await scene.moment(5, 20)
            await scene.restart(name, signal.SIGTERM)


def _clock(seconds: float, *services: str) -> Act:
    """Wall clocks are wrong for a while; what tickets say is refused meanwhile, and told to users."""

    async def act(scene: Scene) -> None:
        clocks = scene.servers.clocks
        assert clocks is not None
        await scene.moment()
        try:
            for service in services:
                clocks.set(service, seconds)
            began = time.monotonic()
            await _clocks_are(scene, services, off=True)
            await asyncio.sleep(began + 4 - time.monotonic())
        finally:
            for service in services:
                clocks.set(service, 0.0)
        await _clocks_are(scene, services, off=False)

    return act


async def _clocks_are(scene: Scene, services: Sequence[str], *, off: bool) -> None:
    """Wait for what the processes themselves do to say so: in which time they live."""
    for service in services:
        deadline = time.monotonic() + _CLOCK_S
        while await clock_is_off(scene.stack, service) is not off:
            assert time.monotonic() < deadline, f"{service}'s clock is {'right' if off else 'wrong still'}"
            await asyncio.sleep(0.05)


async def _goaway(scene: Scene) -> None:
    """Connections are told to go away while streams are on them, which go on; new calls open new connections.

    Streams that last as long as their process keep their connection: these edges are only told, and nothing is lost.
    """
    await scene.moment()
    aged = [each.name for each in EDGES if each.setting]
    before = {edge: scene.net.connections(edge) for edge in aged}
    renewed: dict[str, int] = {}

    def all_aged() -> bool:
        renewed.update({edge: scene.net.connections(edge) - before[edge] for edge in aged})
        called = [renewed[edge] for edge in aged if edge not in _LASTING]
        return min(called) >= _RENEWALS and all(scene.net.told_to_go(edge) for edge in aged)

    try:
        await until(all_aged, "connections are renewed", within=_AGED_S)
    except AssertionError:
        told = {edge: scene.net.told_to_go(edge) for edge in aged}
        raise AssertionError(f"not aged within {_AGED_S:g} s: told {told}, renewed {renewed}") from None
    told = {edge: scene.net.told_to_go(edge) for edge in aged}
    scene.said.append(f"told to go away: {told}; opened anew: {renewed}")


async def _full_disk(scene: Scene) -> None:
    await scene.moment()
    ballast = scene.stack.state.root / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        await asyncio.sleep(4)
    finally:
        ballast.unlink(missing_ok=True)


def _cells() -> list[Cell]:
    cells = [Cell(f"kill {service}", _kill(service), "kill") for service in SERVICES]
    cells += [Cell(f"kill {service} three times", _kill_again(service), "kill") for service in SERVICES]
    cells += [Cell(f"stop {service} for 3 s", _stop(service, 3.0), "stop") for service in SERVICES]
    cells += [Cell(f"stop {service} for 20 s", _stop(service, 20.0), "stop", long=True) for service in SERVICES]
    cells += [
        Cell("kill bridge between commit and ack", _unacknowledged("emitter-bridge", "bridge"), "commit"),
        Cell("kill emitter between commit and ack", _unacknowledged("emitter-bridge", "emitter"), "commit"),
        Cell(
            "kill agent_instance before its ack", _unacknowledged("agent_instance-emitter", "agent_instance"), "commit"
        ),
        Cell("kill execution before its ack", _unacknowledged("execution-emitter", "execution", 3), "commit"),
        Cell("kill execution after admission", _unanswered_admission("execution"), "commit"),
        Cell("kill gateway after admission", _unanswered_admission("gateway"), "commit"),
        Cell("kill gateway with unsent events", _read_but_unsent("gateway"), "commit"),
        Cell("kill bridge with unsent events", _read_but_unsent("bridge"), "commit"),
    ]
    cells += [Cell(f"cut {edge} in a batch", _cut(edge, direction), "batch") for edge, direction in STREAMS]
    cells += [
        Cell("kill gateway in a replay", _replay("client-gateway", _and_kill("gateway")), "replay"),
        Cell("kill bridge in a replay", _replay("gateway-bridge", _and_kill("bridge")), "replay"),
        Cell("cut client-gateway in a replay", _replay("client-gateway", _and_cut("client-gateway")), "replay"),
        Cell("cut gateway-bridge in a replay", _replay("gateway-bridge", _and_cut("gateway-bridge")), "replay"),
    ]
    for edge in (each.name for each in EDGES):
        modes = {
            "is slow (50 ms)": Mode.delay(0.05),
            "is slow (300 ms)": Mode.delay(0.3),
            "holds everything": Mode.hold(BOTH),
            "is one-way up": Mode.hold(DOWN),
            "is one-way down": Mode.hold(UP),
            "is a blackhole": Mode.blackhole(),
            "resets": Mode.reset(),
        }
        cells += [Cell(f"{edge} {what}", _network(edge, mode, 3.0), "network") for what, mode in modes.items()]
        cells.append(Cell(f"{edge} is refused", _outage(edge, 3.0), "network"))
        cells.append(Cell(f"{edge} flaps", _flapping(edge), "network"))
    cells += [
        Cell(
            f"{each.name} is half-open, {each.server} dies", _half_open(each.name, each.server), "half-open", long=True
        )
        for each in EDGES
    ]
    cells += [
        Cell("rolling restart of everything", _rolling, "rolling"),
        Cell("kill everything at once", _all_at_once, "kill"),
    ]
    return cells


def _shared_cells() -> list[Cell]:
    """On a Redis and a PostgreSQL."""
    acts: dict[str, Act] = {
        "Redis restarts with its data, three times": _redis_restarts_with_its_data,
        "Redis stands still for 4 s": _redis_stops(4.0),
        "hints are lost": _hints_are_lost,
        "PostgreSQL restarts every few seconds": _postgres_restarts,
        "PostgreSQL stands still for 4 s": _postgres_stops,
        "kill bridge": _kill("bridge"),
        "kill execution": _kill("execution"),
        "kill bridge between commit and ack": _unacknowledged("emitter-bridge", "bridge"),
    }
    cells = [Cell(name, act, "stores", "shared") for name, act in acts.items()]
    for edge in ("bridge-redis", "execution-postgres"):
        modes = {
            "is slow (50 ms)": Mode.delay(0.05),
            "holds everything": Mode.hold(BOTH),
            "is one-way up": Mode.hold(DOWN),
            "is a blackhole": Mode.blackhole(),
            "resets": Mode.reset(),
        }
        cells += [Cell(f"{edge} {w}", _network(edge, mode, 3.0), "stores", "shared") for w, mode in modes.items()]
        cells.append(Cell(f"{edge} flaps", _flapping(edge), "stores", "shared"))
        cells += [
            Cell(f"{edge} is cut going {way}", _cut(edge, direction), "stores", "shared")
            for way, direction in (("up", UP), ("down", DOWN))
        ]
    cells += [
        Cell("Redis restarts without its data", _redis_restarts_empty, "stores", "shared", lossy=True),
        Cell("Redis is flushed", _redis_is_flushed, "stores", "shared", lossy=True),
        Cell("Redis fails over", _failover, "failover", "sentinel", lossy=True, alone=True),
        Cell(
            "Redis fails over to a replica without the tail",
            _failover_without_the_tail,
            "failover",
            "sentinel",
            lossy=True,
        ),
    ]
    return cells


def _copies_cells() -> list[Cell]:
    """On two copies of everything."""
    cells = [Cell(f"kill a copy of {each}", _copy(each, _kill), "copies", "copies") for each in SERVICES]
    cells += [
        Cell(f"stop a copy of {each} for 5 s", _copy(each, lambda name: _stop(name, 5.0)), "copies", "copies")
        for each in SERVICES
    ]
    cells += [
        Cell("rolling restart of both copies of everything", _rolling_copies, "copies", "copies", long=True),
        Cell("hints are lost", _hints_are_lost, "copies", "copies"),
        Cell("hints are swallowed", _hints_are_swallowed, "copies", "copies", long=True),
        Cell("PostgreSQL restarts every few seconds", _postgres_restarts, "copies", "copies"),
    ]
    return cells


def _other_cells() -> list[Cell]:
    cells = [
        Cell(f"{whose} clock is 10 minutes {word}", _clock(seconds, *services), "clock", "clocks")
        for whose, services in [*((f"{service}'s", (service,)) for service in SERVICES), ("everybody's", SERVICES)]
        for word, seconds in (("ahead", 600.0), ("behind", -600.0))
    ]
    return [
        *cells,
        Cell("Redis stands still for 20 s", _redis_stops(20.0), "stores", "default probes", long=True),
        Cell("connections between services are told to go away", _goaway, "goaway", "aging"),
        Cell("the disk is full for a while", _full_disk, "disk", "small disk"),
    ]


CELLS: Final = (*_cells(), *_shared_cells(), *_copies_cells(), *_other_cells())
