"""The console as the gateway serves it: its files and their policy, signing in by a name, what operators see."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import jwt
from yarl import URL

from carrel import __version__
from gateway.pages import CONTENT_SECURITY_POLICY, console_pages
from servicekit.identity.principals import OPERATOR_READ
from tests.unit.gateway.harness import SECRET, Gateway, gateway, token

HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
_LEAST = {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "base-uri 'none'"}


async def _sign_in(g: Gateway, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    sent = {"Origin": g.url, **headers}
    async with g.http.post(f"{g.url}/console/sign-in", json=body, headers=sent) as response:
        return response.status, await response.json()


async def test_browsers_get_the_page_and_scripts_what_they_always_got(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        async with g.http.get(g.url + "/", headers=HTML) as response:
            page = await response.text()
            assert (response.status, response.content_type) == (200, "text/html")
            assert "Accept" in response.headers["Vary"]
        async with g.http.get(g.url + "/") as response:
            assert (await response.json())["protocol"] == "carrel.v1"
        for part in ("console/main.js", "console/css/base.css", "console/mark.svg"):
            assert f'"{part}"' in page
            async with g.http.get(f"{g.url}/{part}") as response:
                assert response.status == 200


async def test_every_file_is_served_under_the_strict_policy(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for path in ("main.js", "index.html", "vendor/preact.js", "client/index.js", "css/chat.css"):
            async with g.http.get(f"{g.url}/console/{path}") as response:
                headers = response.headers
                assert response.status == 200
                assert set(headers["Content-Security-Policy"].split("; ")) >= _LEAST
                assert "unsafe" not in headers["Content-Security-Policy"]
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["Cache-Control"] == "no-cache"


def test_no_page_has_inline_script_or_style_or_asks_elsewhere() -> None:
    folder = Path(console_pages.__code__.co_filename).parent / "console"
    assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".html", ".js", ".css"} or "vendor" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        for never in ("innerHTML", "outerHTML", "insertAdjacentHTML", "dangerouslySetInnerHTML", "document.write"):
            assert f".{never}" not in text, path
            assert never != "dangerouslySetInnerHTML" or never not in text, path
        assert " style=" not in text, path
        assert "eval(" not in text, path
        assert "new Function" not in text, path
        assert "https://" not in text.replace("https?:", ""), path


async def test_a_page_that_is_here_already_is_not_sent_again(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        async with g.http.get(f"{g.url}/console/main.js") as response:
            etag, body = response.headers["ETag"], await response.read()
        async with g.http.get(f"{g.url}/console/main.js", headers={"If-None-Match": etag}) as response:
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["ETag"] == etag
        plain = {"Accept-Encoding": "gzip;q=0"}
        async with g.http.get(f"{g.url}/console/main.js", headers=plain) as response:
            assert "Content-Encoding" not in response.headers
            assert await response.read() == body


async def test_what_is_no_file_of_the_console_is_not_there(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for path in (
            "nothing.js",
            "%2e%2e/pages.py",
            "..%2fpages.py",
            "vendor",
            "vendor/",
            "%2fetc/passwd",
            "index.html/",
        ):
            async with g.http.get(URL(f"{g.url}/console/{path}", encoded=True)) as response:
                assert (response.status, response.content_type) == (404, "application/json"), path


async def test_the_console_can_be_turned_off(tmp_path: Path) -> None:
    async with gateway(tmp_path, console=False) as g:
        async with g.http.get(g.url + "/", headers=HTML) as response:
            assert (await response.json())["name"] == "carrel gateway"
        async with g.http.get(f"{g.url}/console/main.js") as response:
            assert response.status == 404


async def test_a_name_signs_in_on_this_machine_in_development(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        async with g.http.get(f"{g.url}/console/about.json") as response:
            assert await response.json() == {"version": __version__, "sign_in_by_name": True, "docs": True}
        status, body = await _sign_in(g, {"user": "alice", "permissions": ["mail:send"]})
        assert (status, body["user_id"]) == (200, "alice")
        claims = jwt.decode(body["token"], SECRET, algorithms=["HS256"], audience="carrel")
        assert (claims["sub"], claims["permissions"]) == ("alice", ["mail:send"])
        async with g.http.get(f"{g.url}/api/runs", headers={"Authorization": f"Bearer {body['token']}"}) as response:
            assert response.status == 200
        status, body = await _sign_in(g, {"user": "olga", "operator": True})
        claims = jwt.decode(body["token"], SECRET, algorithms=["HS256"], audience="carrel")
        assert OPERATOR_READ in claims["permissions"]


async def test_a_name_signs_nobody_in_from_elsewhere(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for headers in (
            {"Origin": "http://localhost:1"},
            {"Origin": "null"},
            {"Host": "carrel.example", "Origin": "http://carrel.example"},
            {"Host": "localhost.evil.example", "Origin": "http://localhost.evil.example"},
            {"X-Forwarded-For": "203.0.113.7"},
            {"Forwarded": "for=203.0.113.7"},
            {"X-Real-IP": "203.0.113.7"},
            {"x-forwarded-proto": "https"},
        ):
            status, body = await _sign_in(g, {"user": "alice"}, **headers)
            assert (status, body["error"]["code"]) in {(403, "PERMISSION_DENIED"), (403, "ORIGIN")}, headers
            assert "token" not in body
        # As proxies ask that were told nothing.
        host = g.url.removeprefix("http://")
        name, port = host.split(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        sent = json.dumps({"user": "alice"})
        writer.write(
            f"POST /console/sign-in HTTP/1.0\r\nHost: {host}\r\nOrigin: {g.url}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(sent)}\r\n\r\n{sent}".encode()
        )
        assert b" 403 " in await reader.readline()
        writer.close()
        # A request without an Origin is no page's.
        async with g.http.post(f"{g.url}/console/sign-in", json={"user": "alice"}) as response:
            assert response.status == 403


async def test_a_wrong_sign_in_is_told_what_is_wrong(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"user": "a b"},
        {"user": ""},
        {},
        {"user": "alice", "x": 1},
        {"user": "alice", "permissions": ["act_as"]},
        {"user": "alice", "permissions": ["carrel:doctor"]},
        {"user": "alice", "permissions": [OPERATOR_READ]},
        {"user": "alice", "permissions": ["x" * 129]},
        {"user": "alice", "permissions": ["two words"]},
        {"user": "alice", "permissions": [1]},
    ]
    async with gateway(tmp_path) as g:
        for body in wrong:
            status, answer = await _sign_in(g, body)
            assert (status, bool(answer["error"]["message"])) == (400, True), body


async def test_signing_in_by_a_name_can_be_turned_off_and_is_not_there_with_an_issuer(tmp_path: Path) -> None:
    async with gateway(tmp_path, console_sign_in=False, docs=False) as g:
        assert (await _sign_in(g, {"user": "alice"}))[0] == 404
        async with g.http.get(f"{g.url}/console/about.json") as response:
            assert await response.json() == {"version": __version__, "sign_in_by_name": False, "docs": False}


async def test_operators_see_what_answers_and_what_does_not(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        bearer = {"Authorization": f"Bearer {token('olga', permissions=[OPERATOR_READ])}"}
        async with g.http.get(f"{g.url}/api/operator/overview", headers=bearer) as response:
            told = await response.json()
            assert response.status == 200, told
    assert told["gateway"]["connections"] == 0
    (bridge,) = told["services"]["bridge"]
    assert (bridge["error"], bridge["counts"]["state"]) == (None, "ACTIVE")
    assert bridge["counts"]["events_appended"] == 0
    # The fakes of this harness answer no such question.
    (execution,) = told["services"]["execution"]
    assert execution["counts"] is None
    assert execution["error"]["message"]
    assert json.dumps(told).count("ticket") == 0


async def test_nobody_else_sees_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for permissions in ([], ["operator:revoke"], ["operator"], ["trace:read"]):
            bearer = {"Authorization": f"Bearer {token('alice', permissions=permissions)}"}
            async with g.http.get(f"{g.url}/api/operator/overview", headers=bearer) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (403, "PERMISSION_DENIED")
        async with g.http.get(f"{g.url}/api/operator/overview") as response:
            assert response.status == 401


def test_the_files_are_small_enough_to_load_at_once() -> None:
    pages = console_pages()
    whole = sum(len(gzip.compress(page.body)) for page in pages._pages.values())
    assert len(pages) < 120
    assert whole < 200_000
