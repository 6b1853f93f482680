"""``ScriptedModel``: a language model that says what a test wants. No model is behind it.

    model = ScriptedModel(CallTools(("add", {"a": 1, "b": 2})), "It is 3.")
    async with in_memory_chain(Calculator, model=model) as chain: ...      # what ctx.llm asks
    async with model.serving() as base_url: ...                            # for libraries, over loopback

Each request takes the next step of the script; when there is none left, ``otherwise``. It answers chat completions,
responses and embeddings, streamed or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carrel.testing import model_wire
from carrel.testing.model_wire import BrokenOffError, CallTools, Fail, Hang, Raw, Rule, Say, Step

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["ScriptedModel", "Seen"]

_MAX_REQUEST: int = 16 * 1024 * 1024


@dataclass(frozen=True)
class Seen:
    """One request. ``path`` begins with ``/v1/``; ``headers`` are empty when it came from ``ctx.llm``."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class ScriptedModel:
    """A script, and what was asked of it.

    Args:
        script: Steps, in order; a text stands for ``Say(text)``.
        otherwise: Chooses a step when the script is at its end. By default the request is refused, so that a model that
            is asked once too often fails the test.
        key: Over HTTP, the only key that is taken; None for any.
        name: The model's name, which calls get that name none.

    ``requests``: what was asked; ``aborted``: how many requests the other side gave up; ``open``: how many are under
    way; ``most_open``: the most that were at once; ``base_url``: where it is served, "" while it is not.
    """

    def __init__(
        self, *script: Step | str, otherwise: Rule | None = None, key: str | None = None, name: str = "scripted"
    ) -> None:
        self.script: list[Step] = [Say(step) if isinstance(step, str) else step for step in script]
        self.otherwise: Rule = otherwise or self._exhausted
        self.key = key
        self.name = name
        self.requests: list[Seen] = []
        self.aborted = self.open = self.most_open = 0
        self.base_url = ""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead an OpenAI client here, while it is served: for ``monkeypatch.setenv``."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": self.key or "scripted"}

    def assert_finished(self) -> None:
        """Fail unless every step of the script was asked for."""
        if self.script:
            raise AssertionError(f"the model was never asked for {len(self.script)} step(s): {self.script}")

    def next_step(self, body: Mapping[str, Any]) -> Step:
        """Take the step that answers this request."""
        return self.script.pop(0) if self.script else self.otherwise(body)

    @asynccontextmanager
    async def counted(self, seen: Seen) -> AsyncIterator[None]:
        """Note a request, for as long as it is under way."""
        self.requests.append(seen)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            yield
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.open -= 1

    @asynccontextmanager
    async def serving(self, port: int = 0, *, keep_alive: bool = True) -> AsyncIterator[str]:
        """Serve it on 127.0.0.1 for the length of the block; gives the base URL.

        Args:
            port: 0 for any free one.
            keep_alive: False for clients that outlive an event loop.
        """
        from aiohttp import web

        runner = web.AppRunner(self._app(keep_alive), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self.base_url
        finally:
            self.base_url = ""
            await runner.cleanup()

    def _exhausted(self, _body: Mapping[str, Any]) -> Step:
        asked = len(self.requests)
        return Fail(400, f"the scripted model has no step for request {asked}: give it one more, or `otherwise`")

    def _app(self, keep_alive: bool) -> web.Application:
        from aiohttp import web

        app = web.Application(client_max_size=_MAX_REQUEST)
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/responses"):
            app.router.add_post(path, self._asked)
        app.router.add_get("/v1/models", self._models)
        if not keep_alive:
            app.on_response_prepare.append(_close)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        from aiohttp import web

        return web.json_response({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    async def _asked(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        async with self.counted(Seen(request.path, body, dict(request.headers))):
            return await self._answer(request, body)

    async def _answer(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        from aiohttp import web

        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, f"Incorrect API key provided: {request.headers.get('Authorization', '')}", {})
        step = self.next_step(body)
        if isinstance(step, Hang):
            await asyncio.Event().wait()
        if isinstance(step, Fail):
            return _error(step.status, step.message, step.headers)
        if isinstance(step, Raw):
            return web.Response(body=step.body, content_type=step.content_type)
        assert isinstance(step, Say | CallTools)
        if request.path.endswith("/embeddings") or not body.get("stream"):
            return web.json_response(model_wire.answer(request.path, body, step))
        return await _stream(request, body, step)


async def _stream(request: web.Request, body: Mapping[str, Any], step: Say | CallTools) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    try:
        async for event in model_wire.events(request.path, body, step):
            await response.write(event)
    except BrokenOffError:
        assert request.transport is not None
        request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _close(_: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


def _error(status: int, message: str, headers: Mapping[str, str]) -> web.Response:
    from aiohttp import web

    error = {"message": message, "type": "scripted", "code": f"scripted_{status}", "param": None}
    return web.json_response({"error": error}, status=status, headers=dict(headers))
