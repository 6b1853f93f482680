"""Threads and agents over REST."""

from __future__ import annotations

from aiohttp import web

from carrel.errors import UnknownThreadError
from carrel.ids import check_id
from gateway.login import Login
from gateway.parts import Parts
from gateway.rest.http import int_query, json_response
from gateway.run_json import message_json, thread_json

__all__ = ["ThreadHandlers"]


class ThreadHandlers:
    """What a user's conversations are, and which agents there are to talk to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/threads``"""
        asked = request.query
        size = int_query(asked, "page_size", 200)
        page = await self._parts.runs.threads(login, size, asked.get("page_token", ""))
        threads = [thread_json(thread) for thread in page.threads]
        return json_response({"threads": threads, "next_page_token": page.next_page_token or None})

    async def messages(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/threads/{thread_id}/messages``"""
        asked = request.query
        size = int_query(asked, "page_size", 1000)
        page = await self._parts.runs.thread(login, _thread_id(request), size, asked.get("page_token", ""))
        return json_response(
            {
                "thread": thread_json(page.thread),
                "messages": [message_json(message) for message in page.messages],
                "next_page_token": page.next_page_token or None,
            }
        )

    async def delete(self, request: web.Request, login: Login) -> web.StreamResponse:
        """``DELETE /api/threads/{thread_id}``"""
        if not await self._parts.runs.delete_thread(login, _thread_id(request)):
            raise UnknownThreadError("you have no thread of this id")
        return web.Response(status=204)

    async def agents(self, _request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/agents``"""
        return json_response(await self._parts.agents.list(login))


def _thread_id(request: web.Request) -> str:
    return check_id(request.match_info["thread_id"], "thread_id")
