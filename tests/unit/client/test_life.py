"""A client from its first connection to its close: states, tokens that end, runs followed over resets, a prompt end."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from carrel.client import (
    Backoff,
    ConnectionState,
    Event,
    Notice,
    Position,
    Reset,
    RunStatus,
    SocketClient,
)
from carrel.client.following import follow
from carrel.client.login import Login, expiry_of
from carrel.errors import (
    CarrelError,
    InvalidPositionError,
    PermissionDeniedError,
    TokenError,
    UnavailableError,
    UnknownRunError,
)
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.fake_gateway import TOKEN, event, fake_gateway

FAST = Backoff(attempts=5, first_s=0.001, longest_s=0.01)


def jwt(expires_at: float, name: str = "") -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expires_at, "name": name}).encode()).decode().rstrip("=")
    return f"a.{claims}.signature"


# Tokens.


def test_the_end_of_a_token_is_read_from_it_and_never_trusted_to_be_there() -> None:
    assert expiry_of(jwt(1234.5)) == 1234.5
    for text in ("", "a.b", "a.good.token", "a.W10.c", jwt("soon"), jwt(True), "st-1234"):  # type: ignore[arg-type]
        assert expiry_of(text) is None


@pytest.mark.parametrize(("left", "wait"), [(3600, 3540), (100, 90), (20, 15), (4, 2), (-5, 0)])
async def test_fresh_token_is_asked_for_in_time(left: float, wait: float) -> None:
    login = Login(lambda: jwt(time.time() + left))
    await login.token()
    assert login.refresh_in_s() == pytest.approx(wait, abs=0.5)
    fixed = Login(jwt(time.time() + left))
    await fixed.token()
    assert fixed.refresh_in_s() is None


async def test_token_is_renewed_on_the_open_connection_before_it_ends(eventually: Eventually) -> None:
    given: list[str] = []

    async def token() -> str:
        given.append(jwt(time.time() + 2, str(len(given))))
        return given[-1]

    async with fake_gateway() as gateway:
        gateway.expires_at = time.time() + 3600
        async with SocketClient(gateway.url, token, backoff=FAST) as socket:
            await eventually(lambda: gateway.refreshed)
            await socket.ping()
    # The gateway's word on the new end is believed: there was no second one.
    assert (gateway.refreshed, len(given), len(gateway.connects)) == (given[1:], 2, 1)


async def test_token_source_that_is_away_is_asked_again_and_one_that_is_broken_is_told() -> None:
    calls: list[int] = []

    def away() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionRefusedError("the issuer is away")
        return TOKEN

    def broken() -> str:
        raise KeyError("no such user")

    async with fake_gateway() as gateway:
        async with SocketClient(gateway.url, away, backoff=FAST, patient=True):
            assert len(calls) == 3
        with pytest.raises(CarrelError, match="KeyError"):
            async with SocketClient(gateway.url, broken, backoff=FAST, patient=True):
                pass


# Errors that are told.


async def test_another_users_address_is_told_as_that() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive_json()
        error = PermissionDeniedError("the address names another user than the token")
        await ws.send_json({"type": "error", **error.to_dict()})
        await ws.send_json({"type": "bye", "code": 4503, "reason": "forbidden", "reconnect": False})
        await ws.close(code=4503)
        return ws

    app = web.Application()
    app.router.add_get("/ws/{user_id}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        with pytest.raises(PermissionDeniedError, match="another user"):
            async with SocketClient(url, TOKEN, user_id="bob", backoff=FAST, patient=True):
                pass
    finally:
        await runner.cleanup()


async def test_nobody_at_the_address_and_no_address_are_told() -> None:
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 cannot be reached"):
        async with SocketClient("http://127.0.0.1:1", TOKEN, backoff=FAST):
            pass
    with pytest.raises(CarrelError, match="is no address"):
        async with SocketClient("nonsense", TOKEN, backoff=FAST):
            pass


def test_a_position_without_its_epoch_is_refused() -> None:
    with pytest.raises(InvalidPositionError):
        SocketClient("http://x", TOKEN, resume=Position("", 7, "ev-7"))
    for text in ("", "e1", "e1:7", "e1:x:y", ":7:ev-7", "e1:-1:"):
        with pytest.raises(InvalidPositionError):
            Position.parse(text)
    for position in (Position(), Position("e1", 7, "r1:0:1-3"), Position("e1", 0)):
        assert Position.parse(str(position)) == position


# States and the end.


async def test_states_tell_a_person_what_goes_on(eventually: Eventually) -> None:
    states: list[ConnectionState] = []
    async with (
        fake_gateway(log=[event(1)], cut_after=[1], refuse=lambda n: 503 if n == 2 else 0) as gateway,
        SocketClient(gateway.url, TOKEN, resume=Position(), backoff=FAST, on_state=states.append) as socket,
    ):
        await anext(socket.events())
        await eventually(lambda: socket.reconnects > 0)
    phases = [state.phase.value for state in states]
    assert phases == [
        *("connecting", "connected", "waiting"),
        *("connecting", "waiting"),
        *("connecting", "connected", "closed"),
    ]
    assert "4000" in states[2].reason
    assert (states[4].reason, states[4].failures) == ("HTTP status 503", 2)
    assert states[4].retry_s > 0


async def test_closing_ends_iterators_after_what_has_come_and_is_prompt(eventually: Eventually) -> None:
    async def deaf(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(autoclose=False)
        await ws.prepare(request)
        await ws.receive_json()
        await ws.send_json({"type": "connected", "epoch": "e1", "offset": 0, "recovered": True, "heartbeat": 30})
        await ws.send_json(event(1))
        # Never reads again: no closing handshake.
        await asyncio.wait_for(request.app[GONE].wait(), 20)
        return ws

    app = web.Application()
    app[GONE] = asyncio.Event()
    app.router.add_get("/ws", deaf)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with SocketClient(url, TOKEN, resume=Position(), backoff=FAST) as socket:
            await eventually(lambda: socket.held == 1)
            with Awake() as took:
                await socket.aclose()
            assert took.seconds < 2
            assert [item.offset async for item in socket.events()] == [1]
            with pytest.raises(UnavailableError, match="closed"):
                await socket.ping()
    finally:
        app[GONE].set()
        await runner.cleanup()


GONE = web.AppKey("gone", asyncio.Event)


# Runs that are followed.


async def test_run_is_followed_to_its_end_over_lost_connections() -> None:
    log = [event(1, run_id="r"), event(2, run_id="other"), event(3, "run_completed", run_id="r")]
    async with (
        fake_gateway(log=log, cut_after=[1, 1]) as gateway,
        SocketClient(gateway.url, TOKEN, resume=Position(), backoff=FAST) as socket,
    ):
        assert [item.offset async for item in socket.run_events("r")] == [1, 3]


def status(run_id: str, state: str) -> RunStatus:
    return RunStatus("run_state", {"type": "run_state", "run_id": run_id, "status": state})


async def followed(*items: Event | Notice | None, runs: dict[str, Any] | None = None) -> tuple[list[str], list[str]]:
    """What is given of a stream, of which nothing more comes in time after the items."""
    stream, looked = list(items), list[str]()

    async def take(wait_s: float | None) -> Event | Notice | None:
        if stream:
            return stream.pop(0)
        if wait_s is None:
            return None
        raise TimeoutError

    async def look(run_id: str) -> RunStatus:
        looked.append(run_id)
        known = (runs or {})[run_id]
        if isinstance(known, CarrelError):
            raise known
        return status(run_id, known)

    def rows() -> AsyncIterator[Event | Notice]:
        return follow(["r", "s"], take, look)

    return [item.event_id async for item in rows() if isinstance(item, Event)], looked


def of(run_id: str, kind: str = "agent_thinking", offset: int = 1) -> Event:
    return Event.from_json(event(offset, kind, run_id=run_id, event_id=f"{run_id}-{kind}"))


RESET = Reset("reset", {"type": "reset", "reason": "trimmed", "epoch": "e2", "offset": 0})


async def test_several_runs_end_with_the_last_of_them() -> None:
    given, _ = await followed(of("r"), of("x"), of("s", "run_completed"), of("r", "run_completed"), of("r"))
    assert given == ["r-agent_thinking", "s-run_completed", "r-run_completed"]


async def test_run_whose_end_a_reset_took_is_over_once_its_state_is_told() -> None:
    given, looked = await followed(of("r"), RESET, status("r", "SUCCEEDED"), status("s", "FAILED"), of("s"))
    assert given == ["r-agent_thinking", "s-agent_thinking"]
    assert looked == []


async def test_last_event_that_comes_after_the_state_is_given() -> None:
    given, _ = await followed(
        RESET, status("r", "SUCCEEDED"), status("s", "SUCCEEDED"), of("r", "run_completed"), of("s", "run_completed")
    )
    assert given == ["r-run_completed", "s-run_completed"]


async def test_state_that_is_not_told_after_a_reset_is_asked_for() -> None:
    given, looked = await followed(RESET, status("r", "CANCELLED"), runs={"s": "TIMED_OUT"})
    assert (given, looked) == ([], ["s"])
    with pytest.raises(UnknownRunError):
        await followed(RESET, status("r", "CANCELLED"), runs={"s": UnknownRunError("there is no such run")})


async def test_a_bad_token_is_no_matter_of_patience() -> None:
    async with fake_gateway() as gateway:
        with pytest.raises(TokenError):
            async with SocketClient(gateway.url, lambda: "wrong", backoff=FAST, patient=True):
                pass
    assert gateway.attempts == 1


async def test_silence_says_nothing_while_the_connection_is_away() -> None:
    waits: list[Event | TimeoutError] = [TimeoutError(), TimeoutError(), of("r", "run_completed")]
    away = [True, True, False]

    async def take(wait_s: float | None) -> Event | Notice | None:
        item = waits.pop(0)
        if isinstance(item, TimeoutError):
            raise item
        return item

    async def look(run_id: str) -> RunStatus:
        raise AssertionError(run_id)

    stream = follow(["r"], take, look, known_ended=["r"], steady=lambda: not away.pop(0))
    assert [item async for item in stream] == [of("r", "run_completed")]
