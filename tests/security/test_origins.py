"""Origins with an allow-list, as in production: one spelling of one origin, and no trick of a page or a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from tests.unit.gateway.harness import Gateway, gateway, token

_ALLOWED: Final = ("https://app.example", "https://app.example:8443", "https://xn--bcher-kva.example")
_SAME: Final = ("https://app.example", "https://APP.example", "https://app.example:443", *_ALLOWED[1:])
_OTHERS: Final = (
    "",
    "null",
    "Null",
    "http://app.example",
    "wss://app.example",
    "ftp://app.example",
    "https:app.example",
    "//app.example",
    "app.example",
    "https://app.example:444",
    "https://app.example:80",
    "https://app.example:08443",
    "https://app.example.evil.example",
    "https://evilapp.example",
    "https://evil.app.example",
    "https://app.example.",
    "https://app.example:443.evil.example",
    "https://app.example@evil.example",
    "https://evil@app.example",
    "https://app.example:pass@evil.example",
    "https://evil.example/https://app.example",
    "https://evil.example#https://app.example",
    "https://evil.example?https://app.example",
    "https://evil.example\\.app.example",
    "https://app.example/path",
    "https://app.example%00.evil.example",
    "https://app.examp\tle",
    "https://app.example https://evil.example",
    "https://app.example, https://evil.example",
    "https://b\u00fccher.example",
    "https://xn--bcher-kva.example.evil.example",
    "https://\uff41pp.example",
    "https://app\u3002example",
    "https://\u0430pp.example",
    "https://*.example",
    "https://" + "a" * 4000 + ".app.example",
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with an allow-list."""
    async with gateway(tmp_path, allowed_origins=list(_ALLOWED)) as running:
        yield running


async def _status(g: Gateway, lines: str, route: str = "GET /api/runs") -> tuple[int, bytes]:
    host, _, port = g.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"{route} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n{lines}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


async def test_an_allowed_origin_is_one_in_every_spelling(served: Gateway) -> None:
    for origin in _SAME:
        status, answer = await _status(served, f"Origin: {origin}")
        assert status == 200, origin
        assert f"Access-Control-Allow-Origin: {origin}\r\n".encode() in answer


async def test_every_other_is_refused(served: Gateway) -> None:
    taken = []
    for origin in _OTHERS:
        for route in ("GET /api/runs", "GET /ws", "OPTIONS /api/tickets"):
            status, answer = await _status(served, f"Origin: {origin}", route)
            # Whitespace around a header's value is none of the value.
            if (status not in {400, 403} or b"Access-Control-Allow" in answer) and origin.strip() not in _SAME:
                taken.append(f"{route}: {origin!r}: {status}")
    assert not taken, "\n".join(taken)


async def test_of_several_headers_none_counts(served: Gateway) -> None:
    good, evil = "Origin: https://app.example", "Origin: https://evil.example"
    for lines in (f"{good}\r\n{evil}", f"{evil}\r\n{good}", f"{good}\r\n{good}", f"{good}\r\nOrigin: null"):
        for route in ("GET /api/runs", "GET /ws"):
            status, answer = await _status(served, lines, route)
            assert status == 403, lines
            assert b"Access-Control-Allow" not in answer


async def test_of_several_logins_none_counts(served: Gateway) -> None:
    for more in ("Bearer garbage", f"Bearer {token('bob')}", "Basic YTpi", ""):
        for route in ("GET /api/runs", "GET /api/events"):
            status, _ = await _status(served, f"Authorization: {more}", route)
            assert status == 401, more
