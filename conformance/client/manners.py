"""Scenarios about how a client behaves: when it comes back, and when not; what it acknowledges; requests; its end."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Final

from conformance.client.faults import log, whole
from conformance.client.frames import Cut, Frame, event
from conformance.client.gateway import Script
from conformance.client.harness import Stage
from conformance.report import Scenario, expect

__all__ = ["SCENARIOS"]

_CODES = "Close codes"
_CLIENT = "Frames from the client"


ACCEPTED: Final[Frame] = {
    "type": "run_accepted",
    "run_id": "run-9",
    "thread_id": "t",
    "request_id": "q",
    "status": "RUNNING",
}
ERROR: Final[Frame] = {
    "type": "error",
    "code": "FORBIDDEN",
    "status": "PERMISSION_DENIED",
    "message": "no",
    "advice": "",
    "retryable": False,
}


async def slow_start(stage: Stage) -> None:
    async with stage.play(Script(log(3), refuse=lambda number: 503 if number < 3 else 0)) as (client, gateway):
        await whole(client, gateway)
        expect(len(gateway.attempts) >= 4, f"{len(gateway.attempts)} attempts")


async def waits_as_told(stage: Stage) -> None:
    bye = {"type": "bye", "code": 4000, "reason": "drain", "reconnect": True, "retry_ms": 700}
    script = Script(log(4), bye=lambda number: (2, bye, 4000) if number == 0 else None)
    async with stage.play(script) as (client, gateway):
        await whole(client, gateway)
        waited = gateway.attempts[1] - gateway.attempts[0]
        expect(waited >= 0.69, f"it came back after {waited:.2f} s, and retry_ms was 700")


async def comes_back(stage: Stage) -> None:
    codes = [4000, 4001, 4002, 4003, 4004, 4005, 4499, 1001, 1011, 1012]

    def bye(number: int) -> tuple[int, Frame | None, int] | None:
        return (1, None, codes[number]) if number < len(codes) else None

    async with stage.play(Script(log(len(codes) + 1), bye=bye)) as (client, gateway):
        await whole(client, gateway)


async def stays_away(stage: Stage) -> None:
    await asyncio.gather(*(_stays_away(stage, code) for code in (4500, 4501, 4503, 4504, 4505, 4999)))


async def _stays_away(stage: Stage, code: int) -> None:
    bye = {"type": "bye", "code": code, "reason": "no", "reconnect": False}
    script = Script(log(2), spoil=lambda _, frame: [ERROR, frame], bye=lambda _: (2, bye, code))
    async with stage.play(script) as (client, gateway):
        await client.until(lambda: client.of("error") or len(gateway.attempts) > 1, f"an error for {code}")
        await asyncio.sleep(0.5)
        expect(len(gateway.attempts) == 1, f"{len(gateway.attempts)} attempts with {code}")
        expect(client.of("error"), f"no error was told for {code}")


async def wrong_token(stage: Stage) -> None:
    async with stage.play(Script(log(1)), token="wrong") as (client, gateway):
        await client.until(lambda: client.of("error"), "an error")
        expect(client.of("error")[0].get("code") == "TOKEN", f"the error is {client.of('error')[0]}")
        expect(len(gateway.attempts) == 1, f"{len(gateway.attempts)} attempts with a wrong token")


async def spreads(stage: Stage) -> None:
    """Full jitter: pauses differ, and none is longer than was asked for."""
    async with stage.play(Script(log(2), refuse=lambda number: 503 if number < 8 else 0)) as (client, gateway):
        await whole(client, gateway)
        pauses = [b - a for a, b in pairwise(gateway.attempts)]
        expect(max(pauses) < 2.0, f"a pause of {max(pauses):.2f} s, and 0.2 s was the longest asked for")
        expect(len({round(pause, 2) for pause in pauses}) > 1, "all pauses are the same: clients would come at once")


async def batches(stage: Stage) -> None:
    async with stage.play(Script(log(200), batch=16), needs=("batch",)) as (client, gateway):
        await whole(client, gateway)
        expect(gateway.connects[0].get("batch") is True, "it says that it takes batches, and does not ask for them")


async def compressed(stage: Stage) -> None:
    async with stage.play(Script(log(200), batch=16), needs=("batch", "compress")) as (client, gateway):
        await whole(client, gateway)
        expect(
            gateway.connects[0].get("compress") is True, "it says that it takes compression, and does not ask for it"
        )


async def acknowledges(stage: Stage) -> None:
    async with stage.play(Script(log(300), window=8), needs=("ack",)) as (client, gateway):
        await whole(client, gateway)
        offsets = [offset for number, offset in gateway.acks if number == 0]
        expect(offsets == sorted(set(offsets)), f"acknowledgements went back: {offsets[:20]}")
        expect(gateway.unacknowledged <= 8, f"{gateway.unacknowledged} events were unacknowledged")
        await gateway.acknowledged(299)


async def takes_its_time(stage: Stage) -> None:
    """While the application takes nothing, nothing more is acknowledged, and nothing lost."""
    script = Script(log(6), window=8, answer=lambda _, __: ACCEPTED)
    async with stage.play(script, needs=("ack",)) as (client, gateway):
        await whole(client, gateway)
        await client.tell("pause")
        if "execute" in client.features:
            # Events come on another way than what it is told: once this is done, it has heard of the pause.
            await client.tell("execute", message="hello", client_ref="ref-1")
            await client.until(lambda: client.of("accepted"), "the acceptance")
        await gateway.commit(*log(40, 7))
        await asyncio.sleep(0.7)
        taken = len(client.events)
        acked = max((offset for _, offset in gateway.acks), default=0)
        # The one that was waited for when it was told to pause may still have been taken.
        expect(taken <= 7, f"{taken} events were delivered to an application that takes none")
        expect(acked <= taken, f"{acked} was acknowledged, and {taken} taken")
        await client.tell("go_on")
        await whole(client, gateway)


async def no_window(stage: Stage) -> None:
    async with stage.play(Script(log(50), window=0)) as (client, gateway):
        await whole(client, gateway)
        expect(not gateway.acks, "it acknowledges where no window was granted")


async def repeats_requests(stage: Stage) -> None:
    answers: list[Frame | Cut] = [Cut.BEFORE, Cut.HALFWAY]
    script = Script(log(2), answer=lambda _, __: answers.pop(0) if answers else ACCEPTED)
    async with stage.play(script, needs=("execute",)) as (client, gateway):
        await whole(client, gateway)
        await client.tell("execute", message="hello", client_ref="ref-1")
        await client.until(lambda: client.of("accepted"), "the acceptance")
        expect(client.of("accepted") == [{"client_ref": "ref-1", "run_id": "run-9"}], f"{client.of('accepted')}")
        expect(len(gateway.requests) == 3, f"{len(gateway.requests)} requests")
        expect(all(frame == gateway.requests[0] for frame in gateway.requests), "a request was repeated otherwise")
        expect(gateway.requests[0].get("client_ref") == "ref-1", "the request has another client_ref")


async def refused_request(stage: Stage) -> None:
    error = ERROR | {"code": "THREAD_BUSY", "status": "ABORTED", "retryable": True}
    async with stage.play(Script(log(1), answer=lambda _, __: error), needs=("execute",)) as (client, gateway):
        await client.tell("execute", message="hello", client_ref="ref-1")
        await client.until(lambda: client.of("refused"), "the refusal")
        expect(client.of("refused")[0].get("code") == "THREAD_BUSY", f"{client.of('refused')}")
        await whole(client, gateway)


async def one_thread(stage: Stage) -> None:
    mixed = [event(n, thread_id="thread-1" if n % 3 == 0 else "thread-2") for n in range(1, 20)]
    script = Script(mixed, batch=4, bye=lambda number: (7, None, 4003) if number < 2 else None)
    async with stage.play(script, needs=("thread",), thread_id="thread-1") as (client, gateway):
        await client.until(lambda: len(client.events) >= 6, "the thread's events")
        offsets = [item["offset"] for item in client.events]
        expect(offsets == [3, 6, 9, 12, 15, 18], f"it delivered {offsets}")
        expect(not client.of("gap") and not client.of("reset"), f"{client.summary()}")
        expect(all(frame.get("thread_id") == "thread-1" for frame in gateway.connects), "thread_id was not asked for")


async def ends(stage: Stage) -> None:
    """Told to close while it waits for a gateway, it ends; the stage sees to the time and the exit code."""
    async with stage.play(Script(log(1), refuse=lambda _: 503)) as (_, gateway):
        await gateway.attempted(1)


SCENARIOS: tuple[Scenario[Stage], ...] = (
    Scenario("slow-start", _CODES, "a gateway that is not there yet is waited for", slow_start),
    Scenario("retry-ms", _CODES, "`retry_ms` of `bye` is waited for", waits_as_told),
    Scenario("codes-come-back", _CODES, "4000-4499 and lost connections: back, with the position", comes_back, 60),
    Scenario("codes-stay-away", _CODES, "4500-4999: an error, and no more attempts", stays_away, 60),
    Scenario("wrong-token", _CODES, "the gateway's error is told as it is", wrong_token),
    Scenario("jitter", _CODES, "pauses are spread, and bounded", spreads),
    Scenario("batch", "Events", "batches are their events", batches),
    Scenario("compress", "Compression", "compressed batches are their events", compressed),
    Scenario("ack", "Acknowledging", "what was taken is acknowledged, rising, and to the end", acknowledges, 60),
    Scenario("ack-pause", "Acknowledging", "what was not taken is not acknowledged", takes_its_time),
    Scenario("ack-not-granted", "Acknowledging", "without a window there is nothing to acknowledge", no_window),
    Scenario("requests-repeated", _CLIENT, "a request without its answer is sent again as it was", repeats_requests),
    Scenario("requests-refused", _CLIENT, "a refusal is the answer, and nothing else ends", refused_request),
    Scenario("thread", "Frames from the gateway", "`through` explains what a filter leaves out", one_thread),
    Scenario("closes", _CODES, "told to end while it waits, it ends", ends),
)
