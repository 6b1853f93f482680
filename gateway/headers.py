"""A request's header that may be there once: what comes several times is read as one value, and means none of them."""

from __future__ import annotations

from aiohttp import web

__all__ = ["single_header"]


def single_header(request: web.BaseRequest, name: str) -> str | None:
    """The header, or None. Of several the list, as HTTP has it: neither an origin nor a login is written so.

    The first alone would be another one than a proxy in front may have looked at.
    """
    values = request.headers.getall(name, ())
    return ", ".join(values) if values else None
