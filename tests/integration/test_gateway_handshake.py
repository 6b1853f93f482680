"""Who gets in: tokens of every wrong kind, origins, limits, first frames, expiry, and how connections are sent away."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.conftest import Eventually
from tests.support.identity import identity
from tests.unit.gateway.harness import SECRET, Gateway, gateway, token

WRONG_TOKENS: dict[str, str] = {
    "garbage": "garbage",
    "three parts": "a.b.c",
    "another secret": token(secret="another-secret-of-32-bytes-or-more-for-tests"),
    "expired": token(ttl_s=-60),
    "another issuer": token(iss="somebody"),
    "another audience": token(aud="other"),
    "no exp": token(exp=None),
    "no iat": token(iat=None),
    "no iss": token(iss=None),
    "no aud": token(aud=None),
    "no sub": token(sub=None),
    "empty sub": token(sub=""),
    "sub with a slash": token(sub="a/b"),
    "not yet valid": token(nbf=4_000_000_000),
    "alg none": jwt.encode({"sub": "alice"}, "", algorithm="none"),
    "a session ticket": identity().minter.mint_session("alice"),
    "a service ticket": identity().minter.mint_service("gateway"),
}


async def _refused(g: Gateway, path: str = "/ws", **options: Any) -> tuple[int, dict[str, Any]]:
    """The status and the error of a socket that is refused before the upgrade."""
    headers = options.pop("headers", {})
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    async with g.http.get(g.url + path, headers=upgrade | headers) as response:
        return response.status, (await response.json())["error"]


def _bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def test_every_wrong_token_is_refused_before_the_upgrade_and_in_a_frame(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        for name, wrong in WRONG_TOKENS.items():
            status, error = await _refused(g, headers=_bearer(wrong))
            assert status == 401, name
            assert error["code"] in {"TOKEN", "TOKEN_EXPIRED"}, name
            assert wrong not in str(error), name
            socket = await g.open()
            await socket.send(type="connect", token=wrong)
            frames, code = await socket.closed()
            assert code == 4500, name
            assert frames[0]["code"] == error["code"], name
        status, _ = await _refused(g, headers={"Authorization": "Basic YWxpY2U6eA=="})
        assert status == 401


async def test_the_path_must_name_the_tokens_user(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        status, error = await _refused(g, "/ws/bob", headers=_bearer(token("alice")))
        assert (status, error["code"]) == (403, "PERMISSION_DENIED")
        socket = await g.open("/ws/bob")
        await socket.send(type="connect", token=token("alice"))
        frames, code = await socket.closed()
        assert (frames[0]["code"], code) == ("PERMISSION_DENIED", 4503)


@pytest.mark.parametrize(
    ("origin", "fits"),
    [
        (None, True),
        ("http://localhost:5173", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:3000", True),
        ("https://app.example.org", True),
        ("https://APP.example.org:443", True),
        ("https://app.example.org.evil.net", False),
        ("https://evil.net", False),
        ("http://app.example.org", False),
        ("http://localhost.evil.net", False),
        ("null", False),
        ("", False),
        ("file://", False),
    ],
)
async def test_origins_are_checked_before_the_upgrade(tmp_path: Path, origin: str | None, fits: bool) -> None:
    async with gateway(tmp_path, allowed_origins=("https://app.example.org",)) as g:
        headers = {} if origin is None else {"Origin": origin}
        if fits:
            await g.connect(headers=headers)
        else:
            status, error = await _refused(g, headers=headers | _bearer(token()))
            assert (status, error["code"]) == (403, "ORIGIN")


async def test_something_that_is_no_upgrade_is_told_so(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g, g.http.get(g.url + "/ws", headers=_bearer(token())) as response:
        assert response.status == 400
        assert "WebSocket" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("path", "headers", "field"),
    [
        ("/ws?deflate=maybe", {}, "deflate"),
        ("/ws?deflate=", {}, "deflate"),
        ("/ws?deflate=1&deflate=0", {}, "deflate"),
        ("/ws/alice?batch=1", {}, "batch"),
        ("/ws", {"deflate": "yes"}, "deflate"),
    ],
)
async def test_what_the_address_says_wrongly_is_refused(
    tmp_path: Path, path: str, headers: dict[str, str], field: str
) -> None:
    async with gateway(tmp_path) as g:
        status, error = await _refused(g, path, headers=headers | _bearer(token()))
        assert (status, error["code"]) == (400, "INVALID_REQUEST")
        assert list(error["details"]["fields"]) == [field]
        await g.connect(path="/ws?deflate=0")


async def test_after_a_header_login_a_refused_connect_may_be_mended(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket = await g.open(headers=_bearer(token()))
        assert (await socket.frame())["type"] == "connected"
        for wrong in ({"batch": "yes"}, {"token": token()}, {"ack": {"window": 0}}, {"resume": {"offset": 5}}):
            await socket.send(type="connect", **wrong)
            assert (await socket.frame())["type"] == "error", wrong
        await socket.send(type="connect", ack={"window": 7})
        assert (await socket.frame())["ack_window"] == 7
        await socket.send(type="connect", ack={"window": 9})
        assert (await socket.frame())["message"] == "connect is the first frame or none"
        other = await g.open(headers=_bearer(token("bob")))
        assert (await other.frame())["type"] == "connected"
        await other.send(type="ping")
        assert (await other.frame())["type"] == "pong"
        await other.send(type="connect", batch=True)
        assert (await other.frame())["type"] == "error"


async def test_a_first_frame_other_than_connect_or_none_at_all_ends_the_connection(tmp_path: Path) -> None:
    async with gateway(tmp_path, connect_seconds=1.0) as g:
        for text, close, code in (
            ('{"type": "ping"}', 4500, "TOKEN"),
            ('{"type": "subscribe"}', 4500, "TOKEN"),
            ("{", 4501, "FRAME"),
            ('{"type": "connect"}', 4500, "TOKEN"),
            ('{"type": "connect", "token": "t", "resume": {"offset": 5}}', 4501, "FRAME"),
            ("x" * 70_000, 4501, "TOO_LARGE"),
            ("", 4505, "HANDSHAKE_TIMEOUT"),
        ):
            socket = await g.open()
            if text:
                await socket.ws.send_str(text)
            frames, closed = await socket.closed()
            assert (frames[0]["code"], closed) == (code, close), text[:40]
            assert frames[-1]["reconnect"] is False


async def test_a_socket_token_works_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        async with g.http.post(g.url + "/api/socket-tokens", headers=_bearer(token("bob"))) as response:
            assert response.status == 201
            issued = await response.json()
        assert issued["expires_in"] == 30
        socket = await g.open()
        await socket.send(type="connect", socket_token=issued["socket_token"])
        assert (await socket.frame())["type"] == "connected"
        await g.publish("bob", "run-1", 1)
        assert (await socket.events(1))[0]["user_id"] == "bob"
        again = await g.open()
        await again.send(type="connect", socket_token=issued["socket_token"])
        frames, code = await again.closed()
        assert (frames[0]["code"], code) == ("TOKEN", 4500)


async def test_connections_are_limited_per_user(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path, limits={"per_user": 2}) as g:
        first, _ = await g.ready()
        await g.ready()
        status, error = await _refused(g, headers=_bearer(token()))
        assert (status, error["code"]) == (429, "CONNECTIONS_LIMIT")
        assert error["details"]["limit"] == "max_connections_per_user"
        late = await g.open()
        await late.send(type="connect", token=token())
        frames, code = await late.closed()
        assert (frames[0]["code"], code) == ("CONNECTIONS_LIMIT", 4504)
        await g.ready("bob")
        await first.ws.close()
        await eventually(lambda: g.server.connections == 2)
        await g.ready()


async def test_connections_are_limited_per_address_and_in_all(tmp_path: Path) -> None:
    async with gateway(tmp_path, limits={"per_address": 2}, trusted_proxies=("127.0.0.0/8",)) as g:
        await g.ready()
        await g.ready("bob")
        status, error = await _refused(g, headers=_bearer(token("carol")))
        assert (status, error["details"]["limit"]) == (429, "max_connections_per_address")
        await g.ready("carol", headers={"X-Forwarded-For": "203.0.113.7"})
    async with gateway(tmp_path, limits={"connections": 1}) as g:
        await g.ready()
        async with g.http.get(g.url + "/healthz") as response:
            assert response.status == 200
        status, error = await _refused(g, headers=_bearer(token("bob")))
        assert (status, error["details"]["limit"]) == (503, "max_connections")
        assert error["retryable"] is True


async def test_a_connection_ends_with_its_token_unless_it_is_refreshed(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        ends, _ = await g.ready(token=token(ttl_s=3))
        stays, _ = await g.ready(token=token(ttl_s=3))
        await stays.send(type="refresh", token=token(ttl_s=300))
        assert (await stays.frame())["type"] == "refreshed"
        await stays.send(type="refresh", token=token("bob"))
        assert (await stays.frame())["code"] == "TOKEN"
        frames, code = await ends.closed()
        assert code == 4002
        wait_ms = frames[-1].pop("retry_ms")
        assert frames == [{"type": "bye", "code": 4002, "reason": "expired", "reconnect": True}]
        assert 0 <= wait_ms <= 1000
        await g.publish("alice", "run-1", 1)
        assert len(await stays.events(1)) == 1


async def test_a_drain_says_bye_refuses_newcomers_and_waits_for_nobody(tmp_path: Path) -> None:
    async with gateway(tmp_path, drain_seconds=2.0) as g:
        polite = [(await g.ready("alice"))[0] for _ in range(3)]
        deaf, _ = await g.ready("bob")
        shy = await g.open()
        draining = asyncio.create_task(g.server.drain())
        await asyncio.sleep(0)
        await shy.send(type="connect", token=token("carol"))
        frames, code = await shy.closed()
        assert (code, frames[-1]["type"]) == (4000, "bye")
        for socket in polite:
            frames, code = await socket.closed()
            assert code == 4000
            assert 0 <= frames[-1]["retry_ms"] <= 250
        with contextlib.suppress(aiohttp.ClientError):
            status, error = await _refused(g, headers=_bearer(token()))
            assert (status, error["code"]) == (503, "DRAINING")
        async with asyncio.timeout(15):
            await draining
        assert g.server.connections == 0
        await deaf.ws.close()


async def test_a_short_secret_and_a_secret_that_others_may_read_are_refused(tmp_path: Path) -> None:
    from carrel.errors import InvalidConfigurationError
    from gateway.login_keys import LoginKeys

    secret = tmp_path / "login.secret"
    secret.write_text(SECRET[:31])
    secret.chmod(0o600)
    with pytest.raises(InvalidConfigurationError, match="32"):
        LoginKeys.from_secret_file(secret)
    secret.write_text(SECRET)
    secret.chmod(0o644)
    with pytest.raises(InvalidConfigurationError, match="every user"):
        LoginKeys.from_secret_file(secret)
