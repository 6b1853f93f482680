"""The console's routes: its page at ``/``, its files, what a page should know before it signs in, and that sign-in."""

from __future__ import annotations

from aiohttp import web

import carrel
from gateway.development import DevelopmentSignIn
from gateway.pages import Pages, wants_page
from gateway.rest.http import Handler, json_response

__all__ = ["ConsoleHandlers"]

_ABOUT = "about.json"


class ConsoleHandlers:
    """Routes that are served without a login.

    Args:
        pages: The files.
        development: Signs in by a name; None where there is no such thing.
        docs: Whether the pages about the API are served, so that the console may lead there.
    """

    def __init__(self, pages: Pages, development: DevelopmentSignIn | None = None, *, docs: bool = False) -> None:
        self._pages = pages
        self._development = development
        self._docs = docs

    def root(self, otherwise: Handler) -> Handler:
        """``GET /``: the page for browsers; whoever does not ask for HTML gets what he got before there was one."""

        async def root(request: web.Request) -> web.StreamResponse:
            if wants_page(request):
                return self._pages.index.response(request)
            return await otherwise(request)

        return root

    async def page(self, request: web.Request) -> web.StreamResponse:
        """``GET /console/{path}``: a file; ``about.json`` says what this is, and how one may sign in."""
        if request.match_info["path"] == _ABOUT:
            offered = self._development is not None and self._development.offered(request)
            return json_response({"version": carrel.__version__, "sign_in_by_name": offered, "docs": self._docs})
        return await self._pages.page(request)

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        """``POST /console/sign-in``"""
        if self._development is None:
            raise web.HTTPNotFound
        return await self._development.sign_in(request)
