"""Scenarios about logging in and the first frames."""

from __future__ import annotations

from typing import Any

import aiohttp

from conformance.report import Scenario, expect
from conformance.server.world import World
from conformance.wire import Frame, Socket

__all__ = ["SCENARIOS"]

_SECTION = "Connecting"


def _is_connected(frame: Frame) -> None:
    expect(frame.get("type") == "connected", f"the first frame is {str(frame)[:120]}")
    kinds: dict[str, type | tuple[type, ...]] = {
        "connection_id": str,
        "epoch": str,
        "offset": int,
        "event_id": str,
        "recovered": bool,
        "heartbeat": (int, float),
    }
    for name, kind in kinds.items():
        expect(isinstance(frame.get(name), kind), f"connected has {name}: {frame.get(name)!r}")
    expect(bool(frame["event_id"]) == (frame["offset"] > 0), "event_id is empty for offset 0, and for that only")


async def _refused(socket: Socket, codes: range | set[int], *, status: str = "") -> Frame:
    """The ``error`` before the connection is closed for good."""
    async with socket:
        code = await socket.end()
    errors = [frame for frame in socket.seen if frame.get("type") == "error"]
    expect(errors, f"closed with {code} and no error before it")
    for name, kind in (("code", str), ("status", str), ("message", str), ("advice", str), ("retryable", bool)):
        expect(isinstance(errors[0].get(name), kind), f"the error has {name}: {errors[0].get(name)!r}")
    expect(code in codes, f"the close code is {code}")
    expect(not status or errors[0]["status"] == status, f"the error's status is {errors[0]['status']}")
    return errors[0]


async def by_header(world: World) -> None:
    async with await world.open(world.options.token_a) as socket:
        _is_connected(await socket.next())
        expect(socket.subprotocol == "carrel.v1", f"the subprotocol is {socket.subprotocol}")


async def by_frame(world: World) -> None:
    socket, connected = await world.connect()
    async with socket:
        _is_connected(connected)
        expect(connected["recovered"] is False, "recovered without resume")


async def by_socket_token(world: World) -> None:
    status, body = await world.rest("POST", "/api/socket-tokens")
    expect(status == 201 and body["expires_in"] > 0, f"{status} {body}")
    async with await world.open() as socket:
        await socket.send(type="connect", socket_token=body["socket_token"])
        _is_connected(await socket.next())
        again = await world.open()
        await again.send(type="connect", socket_token=body["socket_token"])
        await _refused(again, range(4500, 5000), status="UNAUTHENTICATED")


async def header_then_connect(world: World) -> None:
    async with await world.open(world.options.token_a, f"/ws/{world.user_a}") as socket:
        await socket.next()
        await socket.send(type="connect", resume=world.at(4), batch=True)
        second = await socket.control("connected")
        _is_connected(second)
        expect(second["recovered"] is True, "the second connected did not recover")
        await world.whole_log(await socket.events(len(world.log) - 5), 5)


async def first_frame_is_connect(world: World) -> None:
    socket = await world.open()
    await socket.send(type="ping")
    await _refused(socket, range(4500, 5000))


async def wrong_token(world: World) -> None:
    socket = await world.open()
    await socket.send(type="connect", token="not.a.token")
    await _refused(socket, {4500}, status="UNAUTHENTICATED")
    status, body = await world.rest("GET", "/api/runs", token="not.a.token")
    expect(status == 401 and body["error"]["status"] == "UNAUTHENTICATED", f"{status} {body}")
    await _refused_upgrade(world, 401, token="not.a.token")


async def another_users_path(world: World) -> None:
    await _refused_upgrade(world, 403, token=world.options.token_a, path=f"/ws/{world.user_b}")
    socket = await world.open("", f"/ws/{world.user_b}")
    await socket.send(type="connect", token=world.options.token_a)
    await _refused(socket, {4503}, status="PERMISSION_DENIED")


async def _refused_upgrade(world: World, status: int, **options: Any) -> None:
    try:
        socket = await world.open(**options)
    except aiohttp.WSServerHandshakeError as error:
        expect(error.status == status, f"the upgrade was refused with {error.status}")
    else:
        await socket.__aexit__()
        expect(False, f"the upgrade was not refused with {status}")


async def two_logins(world: World) -> None:
    socket = await world.open()
    await socket.send(type="connect", token=world.options.token_a, socket_token="st-x")
    await _refused(socket, {4501}, status="INVALID_ARGUMENT")


async def wrong_options(world: World) -> None:
    wrong: tuple[dict[str, Any], ...] = ({"nonsense": 1}, {"batch": "yes"}, {"resume": 7}, {"resume": {"offset": 7}})
    for options in wrong:
        socket = await world.open()
        await socket.send(type="connect", token=world.options.token_a, **options)
        await _refused(socket, {4501}, status="INVALID_ARGUMENT")


async def no_connect(world: World) -> None:
    world.skip_unless(world.options.slow, "waits 15 s; asked for with --slow")
    socket = await world.open()
    async with socket:
        expect(await socket.end(25) == 4505, "a connection without connect was not closed with 4505")


SCENARIOS = (
    Scenario("connect-by-header", _SECTION, "`connected` comes first, complete; the subprotocol is echoed", by_header),
    Scenario("connect-by-frame", _SECTION, "`connect` with a token logs in", by_frame),
    Scenario(
        "connect-by-socket-token", "Socket tokens", "a socket token logs one connection in, once", by_socket_token
    ),
    Scenario("connect-twice", _SECTION, "after the header `connect` begins the stream anew", header_then_connect),
    Scenario("connect-first", _SECTION, "without a header the first frame must be `connect`", first_frame_is_connect),
    Scenario("connect-wrong-token", "Logging in", "no valid token: 401, or an error and 4500", wrong_token),
    Scenario("connect-other-path", _SECTION, "a path that names another user: 403, or 4503", another_users_path),
    Scenario("connect-two-logins", _SECTION, "token and socket_token exclude each other", two_logins),
    Scenario("connect-wrong-options", _SECTION, "wrong options of `connect` are told, and end it", wrong_options),
    Scenario("connect-timeout", "Close codes", "no `connect` within 15 s: 4505", no_connect, 40),
)
