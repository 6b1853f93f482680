"""The WebSocket client against a gateway that cuts, resets, refuses and falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from carrel.client import Backoff, Event, Notice, Position, SocketClient
from carrel.errors import (
    CarrelError,
    DeadlineError,
    EnginesLimitError,
    NotWaitingError,
    StoreUnavailableError,
    TokenError,
    UnavailableError,
)
from tests.support.fake_gateway import TOKEN, FakeGateway, event, fake_gateway

Eventually = Callable[..., Awaitable[object]]
FAST = Backoff(attempts=5, first_s=0.001, longest_s=0.01)


def client(gateway: FakeGateway, **options: Any) -> SocketClient:
    return SocketClient(gateway.url, TOKEN, backoff=options.pop("backoff", FAST), **options)


async def take(socket: SocketClient, count: int) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(5):
        async for item in socket.events():
            found.append(item)
            if len(found) == count:
                return found
    raise AssertionError


async def test_new_client_gets_what_comes_from_now_on() -> None:
    async with fake_gateway(log=[event(1)]) as gateway, client(gateway) as socket:
        await gateway.append(event(2), event(3))
        assert [e.offset for e in await take(socket, 2)] == [2, 3]
    offers = {"batch": True, "compress": True, "ack": {"window": 1000}}
    assert gateway.connects == [{"type": "connect", "token": TOKEN, **offers}]


@pytest.mark.parametrize("cut", range(1, 10))
async def test_cut_at_any_event_neither_loses_nor_repeats_one(cut: int) -> None:
    log = [event(n) for n in range(1, 11)]
    async with fake_gateway(log=log, cut_after=[cut, 0, 2]) as gateway, client(gateway, resume=Position()) as socket:
        assert [e.offset for e in await take(socket, 10)] == list(range(1, 11))
        assert socket.reader.duplicates == 0
        assert socket.reader.holes == 0
        assert socket.reconnects >= 2
    assert gateway.connects[1]["resume"] == {"epoch": "e1", "offset": cut, "event_id": f"ev-{cut}"}


async def test_cut_before_the_first_event_loses_nothing_though_its_place_has_no_event_id() -> None:
    # `connected` tells an offset but no event_id: the client reads everything again and drops what lies before.
    async with fake_gateway(log=[event(1), event(2)], cut_after=[0]) as gateway, client(gateway) as socket:
        await gateway.append(event(3))
        assert [e.offset for e in await take(socket, 1)] == [3]
        assert gateway.connects[1]["resume"] == {"offset": 0}
        assert socket.reader.duplicates == 2


async def test_reset_gives_what_is_kept_but_nothing_twice() -> None:
    async with (
        fake_gateway(log=[event(1), event(2)], cut_after=[2]) as gateway,
        client(gateway, resume=Position()) as socket,
    ):
        assert [e.event_id for e in await take(socket, 2)] == ["ev-1", "ev-2"]
        # The log lost its tail, and grew again under another epoch.
        gateway.epoch = "e2"
        gateway.log = [event(1), event(2, event_id="other"), event(3)]
        seen: list[Event | Notice] = []
        async with asyncio.timeout(5):
            async for item in socket.items():
                seen.append(item)
                if isinstance(item, Event) and item.offset == 3:
                    break
        assert [item.kind for item in seen if isinstance(item, Notice)] == ["bye", "reset"]
        assert [item.event_id for item in seen if isinstance(item, Event)] == ["other", "ev-3"]
        assert socket.position == Position("e2", 3, "ev-3")


async def test_execute_is_sent_again_with_the_same_ref_when_the_connection_is_lost() -> None:
    accepted = {"type": "run_accepted", "run_id": "r", "thread_id": "t"}
    async with (
        fake_gateway(answer=lambda _, number: None if number < 3 else accepted) as gateway,
        client(gateway) as socket,
    ):
        run = await socket.execute("hello", params={"n": 1}, pipeline=("data",), thread_id="t")
    assert (run.run_id, run.thread_id) == ("r", "t")
    assert len(gateway.executed) == 3
    assert len({frame["client_ref"] for frame in gateway.executed}) == 1
    assert gateway.executed[0] == {
        "type": "agent_execute",
        "message": "hello",
        "params": {"n": 1},
        "pipeline": ["data"],
        "thread_id": "t",
        "client_ref": run.client_ref,
    }


async def test_refusal_is_raised_as_the_error_it_is_and_not_repeated() -> None:
    body = {"type": "error", **EnginesLimitError("two are active", limit="max_engines_per_user").to_dict()}
    async with fake_gateway(answer=lambda *_: body) as gateway, client(gateway) as socket:
        with pytest.raises(EnginesLimitError, match="two are active"):
            await socket.execute("hello")
    assert len(gateway.executed) == 1


async def test_unavailable_neighbour_is_asked_again() -> None:
    away = {"type": "error", **UnavailableError("execution is away").to_dict()}
    accepted = {"type": "run_accepted", "run_id": "r"}
    async with fake_gateway(answer=lambda _, n: away if n < 3 else accepted) as gateway, client(gateway) as socket:
        assert (await socket.execute("hello")).run_id == "r"


async def test_the_last_answer_is_what_is_raised_when_time_is_over() -> None:
    full = {"type": "error", **StoreUnavailableError("database or disk is full").to_dict()}
    patient = Backoff(attempts=10**6, first_s=0.001, longest_s=0.01)
    async with (
        fake_gateway(answer=lambda *_: full) as gateway,
        client(gateway, backoff=patient) as socket,
    ):
        with pytest.raises(StoreUnavailableError, match="disk is full"):
            await socket.execute("x", timeout_s=1.0)
    assert len(gateway.executed) > 1


async def test_unanswered_execute_ends_with_a_deadline() -> None:
    async with fake_gateway(answer=lambda *_: {}) as gateway, client(gateway) as socket:
        with pytest.raises(DeadlineError):
            await socket.execute("x", timeout_s=0.05)


async def test_bad_token_is_refused_at_once() -> None:
    async with fake_gateway() as gateway:
        with pytest.raises(TokenError, match="bad token"):
            async with SocketClient(gateway.url, "wrong", backoff=FAST, patient=True):
                pass
    assert gateway.attempts == 1


async def test_token_is_asked_for_anew_for_each_connection() -> None:
    given: list[int] = []

    async def token() -> str:
        given.append(1)
        return TOKEN

    async with (
        fake_gateway(log=[event(1), event(2)], cut_after=[1]) as gateway,
        SocketClient(gateway.url, token, resume=Position(), backoff=FAST) as socket,
    ):
        await take(socket, 2)
    assert len(given) == 2


async def test_gives_up_after_the_bounded_number_of_tries_and_every_reader_learns_it() -> None:
    async with (
        fake_gateway(log=[event(1)], cut_after=[1], refuse=lambda n: 503 if n > 1 else 0) as gateway,
        client(gateway, resume=Position()) as socket,
    ):
        await take(socket, 1)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="503"):
                await take(socket, 1)
        with pytest.raises(UnavailableError):
            await socket.execute("x")
    assert gateway.attempts == FAST.attempts


async def test_first_connection_fails_at_once_unless_the_client_is_patient() -> None:
    async with fake_gateway(refuse=lambda n: 503 if n < 3 else 0) as gateway:
        with pytest.raises(UnavailableError):
            async with client(gateway):
                pass
        async with client(gateway, patient=True):
            pass
    assert gateway.attempts == 3


async def test_refused_upgrade_is_not_repeated() -> None:
    async with fake_gateway(refuse=lambda _: 403) as gateway:
        with pytest.raises(CarrelError, match="403"):
            async with client(gateway, patient=True):
                pass
    assert gateway.attempts == 1


async def test_silent_gateway_is_left_and_the_rest_read_elsewhere(eventually: Eventually) -> None:
    async with fake_gateway(log=[event(1)], heartbeat=0.01) as gateway, client(gateway, resume=Position()) as socket:
        await take(socket, 1)
        # Nothing comes for longer than heartbeats explain; the client does not wait for TCP to notice.
        await eventually(lambda: socket.reconnects > 0)
        await gateway.append(event(2))
        assert [e.offset for e in await take(socket, 1)] == [2]


async def test_ping_is_answered_while_events_flow() -> None:
    async with (
        fake_gateway(log=[event(n) for n in range(1, 50)]) as gateway,
        client(gateway, resume=Position()) as socket,
    ):
        await socket.ping()
        assert len(await take(socket, 49)) == 49


async def test_an_answer_and_a_bound_run_are_asked_for_as_the_protocol_says() -> None:
    def answer(frame: dict[str, Any], _: int) -> dict[str, Any]:
        if frame["type"] == "agent_execute":
            return {"type": "run_accepted", "run_id": "r", "thread_id": "t", "status": "QUEUED"}
        return {"type": "input_accepted", "run_id": "r", "input_id": "i", "status": "QUEUED"}

    async with fake_gateway(answer=answer) as gateway, client(gateway) as socket:
        run = await socket.execute("hello", strategy="enqueue", bound=True, client_ref="ref-1")
        assert run.status == "QUEUED"
        assert await socket.provide_input("r", "i", None) == "QUEUED"
    asked, answered = gateway.executed
    assert asked == {
        "type": "agent_execute",
        "message": "hello",
        "strategy": "enqueue",
        "bound": True,
        "client_ref": "ref-1",
    }
    assert {name: answered[name] for name in ("type", "run_id", "input_id", "value")} == {
        "type": "input_provide",
        "run_id": "r",
        "input_id": "i",
        "value": None,
    }


async def test_a_refused_answer_is_the_error_it_is() -> None:
    body = {"type": "error", **NotWaitingError("it does not wait").to_dict()}
    async with fake_gateway(answer=lambda *_: body) as gateway, client(gateway) as socket:
        with pytest.raises(NotWaitingError):
            await socket.provide_input("r", "i", True)
