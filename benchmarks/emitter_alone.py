"""The emitter alone: microseconds per event in each stage, then its process between a client and a bridge that nods.

    python -m benchmarks.emitter_alone [--events 100000] [--profile]

Not the chain's benchmark, which is ``python -m benchmarks``: nothing is stored here.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import pstats
import time
from collections.abc import AsyncIterator, Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson
import uvloop
from grpc import aio

from carrel.v1.bridge_pb2 import PublishRequest, PublishResponse
from carrel.v1.bridge_pb2_grpc import add_BridgeServiceServicer_to_server
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.emitter_pb2 import EmitRequest
from carrel.v1.events_pb2 import ProducerAck
from servicekit.delivery import Producer, ProducerStream
from servicekit.identity.keys import KeySet, SigningKey, generate_key
from servicekit.identity.principals import RunPrincipal, Scope
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies
from services.emitter.app import serve_emitter
from services.emitter.client_bridge import Publisher
from services.emitter.config import EmitterSettings
from services.emitter.convert import reason_name
from services.emitter.domain.guard import Guard
from services.emitter.domain.intake import Intake
from services.emitter.domain.ledger import Ledger
from services.emitter.domain.sanitize import Sanitizer
from services.emitter.domain.statistics import Statistics
from services.emitter.models import Limits
from services.emitter.service import AckStream

USERS = 100
TEXT = (
    "The trace has 8,819 requests in an hour; most are short, and the longest tenth holds a third of the load. "
    "Next I compare the monthly cost of each model at this rate, and what moves to a smaller one."
)
PAYLOADS = {
    "plain text": {"text": TEXT},
    "one long word": {"text": "x" * 180},
    "ids": {
        "text": TEXT[:90],
        "call": "call-0193f0c2a1b40007d0c1f6b2a9e4",
        "sha": "e83c5163316f89bfbde7d9ab23ca2e25604af290",
    },
    "suspect words": {"text": TEXT, "input_tokens": 512, "key": "a"},
    "a secret": {"text": TEXT, "password": "hunter2"},
}


def contexts(minter: TicketMinter) -> list[UserExecutionContext]:
    result = []
    for n in range(USERS):
        ticket = minter.mint_run(f"u{n}", "t1", "r1", "q1", ["trace:read"])
        context = UserExecutionContext(user_id=f"u{n}", thread_id="t1", run_id="r1", request_id="q1", ticket=ticket)
        context.created_at.GetCurrentTime()
        result.append(context)
    return result


def batch(contexts_: Sequence[UserExecutionContext], first: int, events: int, data: bytes) -> EmitRequest:
    request = EmitRequest()
    for context in contexts_:
        item = request.items.add(context=context, producer_id="r1:0:1", fence=1, attempt=1)
        for number in range(first, first + events):
            event = item.events.add(
                event_id="evt-0191b4b2aaaa7bbb8cccddddeeeeffff",
                number=number,
                event_type="agent_thinking",
                agent_name="data",
                data=data,
            )
            event.timestamp.seconds = 1_790_000_000
    return request


def timed(function: Callable[[], int]) -> float:
    """Microseconds of CPU per event: the best of five."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        count = function()
        best = min(best, (time.process_time() - began) / count * 1e6)
    return best


def stages(events: int) -> None:
    """Each stage by itself, in this process."""
    key = generate_key()
    minter, verifier = TicketMinter(key, "execution"), TicketVerifier(KeySet([key]))
    users = contexts(minter)
    sanitizer = Sanitizer()
    guard = Guard(sanitizer)
    print(f"{'stage':<44}{'µs/event':>10}")
    for name, payload in PAYLOADS.items():
        data = orjson.dumps(payload)
        events_ = [event for item in batch(users, 1, 20, data).items for event in item.events]

        def admit(events_: list[Any] = events_, data: bytes = data) -> int:
            for event in events_:
                event.data = data
                guard.admit(event)
            return len(events_)

        print(f"{'guard: ' + name:<44}{timed(admit):>10.2f}")
    scopes = frozenset({Scope.RUN})

    def verify(context: Any) -> RunPrincipal:
        principal = verifier.verify(context, scopes)
        assert isinstance(principal, RunPrincipal)
        return principal

    for per_item in (1, 10, 100):
        _pipeline(verify, guard, users, per_item, events)


def _pipeline(verify: Any, guard: Guard, users: list[UserExecutionContext], per_item: int, events: int) -> None:
    statistics = Statistics()
    ledger = Ledger(Limits(user_events=1000, total_window=1 << 20, user_window=1 << 20, turn_events=100))
    publisher = Publisher(ledger, statistics)
    intake = Intake(verify, guard, ledger, statistics, reason_name)
    stream = AckStream()
    data = orjson.dumps(PAYLOADS["plain text"])
    spent = dict.fromkeys(("parse", "intake", "turns + build + serialize", "acknowledge", "acks out"), 0.0)
    clock = time.process_time
    number, done = 1, 0
    while done < events:
        raw = batch(users, number, per_item, data).SerializeToString()
        t0 = clock()
        request = EmitRequest.FromString(raw)
        t1 = clock()
        now = time.monotonic()
        for item in request.items:
            intake.take(item, stream, now)
        t2 = clock()
        while taken := publisher.take(128, 512 * 1024):
            PublishRequest(items=taken).SerializeToString()
        t3 = clock()
        last = number + per_item - 1
        acks = [
            ProducerAck(user_id=u.user_id, producer_id="r1:0:1", through=last, offset=last, epoch="e") for u in users
        ]
        t4 = clock()
        publisher.acknowledge(acks)
        t5 = clock()
        stream.take()
        t6 = clock()
        for name, took in zip(spent, (t1 - t0, t2 - t1, t3 - t2, t5 - t4, t6 - t5), strict=True):
            spent[name] += took
        number = last + 1
        done += per_item * len(users)
    assert statistics.events_sent == done
    for name, took in spent.items():
        print(f"{f'{per_item:>3} per item: {name}':<44}{took / done * 1e6:>10.2f}")
    print(f"{f'{per_item:>3} per item: together':<44}{sum(spent.values()) / done * 1e6:>10.2f}")


class _Nodding:
    """A bridge that acknowledges at once and keeps nothing."""

    Attach = ReadEvents = ResolveRun = GetState = None

    async def Publish(  # noqa: N802 -- the RPC's name
        self, requests: AsyncIterator[PublishRequest], _context: Any
    ) -> AsyncIterator[PublishResponse]:
        async for request in requests:
            response = PublishResponse()
            for item in request.items:
                last = item.events[-1].number
                response.acks.add(
                    user_id=item.context.user_id, producer_id=item.producer_id, through=last, offset=last, epoch="e"
                )
            yield response


def _bridge(pipe: Connection) -> None:
    async def serve() -> None:
        server = aio.server()
        add_BridgeServiceServicer_to_server(_Nodding(), server)  # type: ignore[arg-type]  # only Publish is called
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(port)
        await server.wait_for_termination()

    uvloop.run(serve())


def _client(pipe: Connection, port: int, secret: bytes, events: int, per_turn: int) -> None:
    async def load() -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        minter = TicketMinter(SigningKey("k1", Ed25519PrivateKey.from_private_bytes(secret)), "execution")
        async with (
            Copies(f"127.0.0.1:{port}", "emitter") as emitters,
            ProducerStream.to_emitters(emitters) as stream,
        ):
            producers = [Producer(stream, "r1:0:1", context, fence=1, attempt=1) for context in contexts(minter)]
            await stream.wait_connected()
            # Not a sheddable kind: every one is to arrive.
            data = orjson.dumps({"agent_name": "data", "description": TEXT})
            pipe.recv()
            began = time.perf_counter()

            async def emit(producer: Producer) -> None:
                for n in range(events // USERS):
                    await producer.emit("agent_started", data)
                    if n % per_turn == per_turn - 1:
                        await asyncio.sleep(0)
                await producer.flush(60)

            async with asyncio.TaskGroup() as group:
                for producer in producers:
                    group.create_task(emit(producer))
            pipe.send(time.perf_counter() - began)
            for producer in producers:
                await producer.aclose()

    uvloop.run(load())


async def _emitter(bridge_port: int, key: SigningKey, events: int, per_turn: int) -> None:
    settings = EmitterSettings(listen="127.0.0.1:0", state_dir=Path("/nonexistent"))
    async with (
        open_channel(f"127.0.0.1:{bridge_port}") as channel,
        Copies(f"127.0.0.1:{bridge_port}", "bridge") as bridges,
        serve_emitter(settings, channel, bridges, TicketVerifier(KeySet([key]))) as server,
    ):
        port = await server.start()
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        secret = key.key.private_bytes_raw()
        client = multiprocessing.get_context("spawn").Process(
            target=_client, args=(theirs, port, secret, events, per_turn), daemon=True
        )
        client.start()
        await asyncio.sleep(2.0)
        before = time.process_time()
        ours.send("go")
        seconds = await asyncio.to_thread(ours.recv)
        spent = time.process_time() - before
        await asyncio.to_thread(client.join)
    print(
        f"process, {per_turn:>3} per turn of a producer: {events / seconds:>9,.0f} events/s; emitter's CPU "
        f"{spent / events * 1e6:.1f} µs/event, i.e. {events / spent:,.0f} events/s on one core"
    )


def process(events: int, per_turn: int) -> None:
    """The emitter in this process, the client and the bridge in others, gRPC between them."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    bridge = multiprocessing.get_context("spawn").Process(target=_bridge, args=(theirs,), daemon=True)
    bridge.start()
    try:
        uvloop.run(_emitter(ours.recv(), generate_key("k1"), events, per_turn))
    finally:
        bridge.terminate()
        bridge.join()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--profile", action="store_true", help="profile the emitter's process")
    options = parser.parse_args()
    stages(options.events)
    if options.profile:
        profiler = cProfile.Profile()
        profiler.runcall(process, options.events, 1)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
        return
    for per_turn in (1, 20):
        process(options.events, per_turn)


if __name__ == "__main__":
    main()
