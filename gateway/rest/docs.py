"""The routes of the pages about the API, and of the documents that they show."""

from __future__ import annotations

from aiohttp import web

from gateway.pages import Pages

__all__ = ["DocsHandlers"]


class DocsHandlers:
    """Routes that are served without a login.

    Args:
        pages: The files.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def index(self, request: web.Request) -> web.StreamResponse:
        """``GET /docs``"""
        return self._pages.index.response(request)

    async def page(self, request: web.Request) -> web.StreamResponse:
        """``GET /docs/{path}``: a file; ``openapi.json``, ``asyncapi.json`` and ``proto.json`` for other tools."""
        return await self._pages.page(request)
