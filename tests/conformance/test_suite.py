"""The suite for gateways finds what is wrong: ours, behind a proxy that breaks one promise at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from conformance.server.suite import play
from conformance.server.world import Options
from tests.support.stack import RunningStack

Frame = dict[str, Any]
Spoil = Callable[[Frame], list[Frame]]


@asynccontextmanager
async def proxy(url: str, spoil: Spoil) -> AsyncIterator[str]:
    """What stands before a gateway, and replaces each of its frames by what ``spoil`` makes of it."""

    async def socket(request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
        outer = web.WebSocketResponse(protocols=("carrel.v1",))
        try:
            inner = await http.ws_connect(url + request.path, headers=headers, protocols=("carrel.v1",))
        except aiohttp.WSServerHandshakeError as error:
            return web.json_response({}, status=error.status)
        async with inner:
            await outer.prepare(request)

            async def back() -> None:
                async for message in inner:
                    for frame in spoiled(json.loads(message.data), spoil):
                        await outer.send_str(json.dumps(frame))
                await outer.close(code=inner.close_code or 1011)

            task = asyncio.create_task(back())
            try:
                async for message in outer:
                    await inner.send_str(message.data)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return outer

    async def rest(request: web.Request) -> web.StreamResponse:
        sent = {name: value for name, value in request.headers.items() if name in {"Authorization", "Content-Type"}}
        async with http.request(
            request.method, url + request.path_qs, headers=sent, data=await request.read()
        ) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), headers={"Content-Type": answer.content_type}
            )

    app = web.Application()
    app.router.add_get("/ws", socket)
    app.router.add_get("/ws/{user_id}", socket)
    app.router.add_route("*", "/{rest:.*}", rest)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    async with aiohttp.ClientSession() as http:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def spoiled(frame: Frame, spoil: Spoil) -> list[Frame]:
    if frame.get("event_type") != "event_batch":
        return spoil(frame)
    events = [made for item in frame["events"] for made in spoil(item)]
    return [frame | {"events": events, "batch_size": len(events)}]


def only(kind: str, spoil: Callable[[Frame], list[Frame]]) -> Spoil:
    return lambda frame: spoil(frame) if kind in {frame.get("type"), frame.get("event_type")} else [frame]


def without(name: str) -> Callable[[Frame], list[Frame]]:
    return lambda frame: [{key: value for key, value in frame.items() if key != name}]


def changed(**fields: Any) -> Callable[[Frame], list[Frame]]:
    return lambda frame: [{**frame, **fields}]


def shifted(frame: Frame) -> list[Frame]:
    return [{**frame, "offset": frame["offset"] - 1}]


# What is broken, and which scenario must find it.
BREACHES: list[tuple[str, str, Spoil]] = [
    ("connect-by-frame", "no heartbeat in connected", only("connected", without("heartbeat"))),
    ("connect-twice", "connected never recovers", only("connected", changed(recovered=False))),
    ("resume-exact", "connected never recovers", only("connected", changed(recovered=False))),
    ("resume-wrong-epoch", "connected always recovers", only("connected", changed(recovered=True))),
    ("resume-wrong-event", "no reset", only("reset", lambda _: [])),
    ("resume-beyond-top", "another reason", only("reset", changed(reason="trimmed"))),
    ("run-state", "no run_state", only("run_state", lambda _: [])),
    ("event-shape", "no timestamp", lambda frame: without("timestamp")(frame)),
    ("event-run", "a terminal event twice", only("run_completed", lambda frame: [frame, frame])),
    ("event-order", "an event twice", only("run_completed", lambda frame: [frame, frame])),
    ("thread-filter", "no through", only("through", lambda _: [])),
    ("ping-tells-position", "a ping that is behind", only("ping", shifted)),
    ("ping-pong", "no client_ref in pong", only("pong", without("client_ref"))),
    ("client-ref", "existing is not told", only("run_accepted", without("existing"))),
    ("unknown-run", "another status", only("error", changed(status="INTERNAL"))),
    ("connect-wrong-token", "a bye that says come back", only("bye", changed(reconnect=True))),
    ("connect-wrong-token", "a bye of another code", only("bye", changed(code=4505))),
    ("isolation", "another user's event", only("run_completed", changed(user_id="mallory"))),
]


@pytest.mark.parametrize(("name", "what", "spoil"), BREACHES, ids=[f"{name}: {what}" for name, what, _ in BREACHES])
async def test_breach_is_found(
    stack: RunningStack, execute: dict[str, Any], name: str, what: str, spoil: Spoil
) -> None:
    async with proxy(stack.url, spoil) as url:
        options = Options(url, stack.token("alice"), stack.token("bob"), execute, least=20, patience_s=3)
        results = {result.name: result for result in await play(options, [name])}
    assert results[name].outcome == "failed", results[name]


async def test_the_proxy_alone_breaks_nothing(stack: RunningStack, execute: dict[str, Any]) -> None:
    async with proxy(stack.url, lambda frame: [frame]) as url:
        options = Options(url, stack.token("alice"), stack.token("bob"), execute, least=20, patience_s=3)
        results = await play(options, sorted({name for name, _, _ in BREACHES}))
    assert {result.name: result.why for result in results if result.outcome != "passed"} == {}
