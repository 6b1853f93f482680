"""Logging in with keys that an issuer tells over HTTP(S): rotation, outages, answers that must not be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carrel.client import GatewayHttp
from carrel.errors import StartupError, TokenError
from gateway.login_jwks import FetchFailed
from gateway.login_jwks_http import IssuerAddress, IssuerClient
from tests.support.issuer import Issuer, issuer
from tests.unit.gateway.harness import gateway


def settings(idp: Issuer, **login: Any) -> dict[str, Any]:
    return {"login": {"issuer": idp.url, "jwks_ca": idp.ca, **login}}


@pytest.mark.parametrize("found", ["url", "discovery"])
async def test_tokens_of_an_issuer_log_in_and_a_new_key_is_taken_at_once(tmp_path: Path, found: str) -> None:
    async with issuer(tmp_path) as idp:
        login = {"jwks_url": idp.jwks_url} if found == "url" else {"discovery": True}
        async with gateway(tmp_path, **settings(idp, **login)) as g:
            async with GatewayHttp(g.url, idp.token("alice")) as http:
                assert await http.get("/api/runs")
            asked = idp.asked
            idp.rotate()
            fresh = idp.token("bob")
            ws = await g.connect("bob", token=fresh)
            assert (await ws.frame())["type"] == "connected"
            await ws.send(type="refresh", token=idp.token("bob", ttl_s=900))
            assert (await ws.control("refreshed"))["type"] == "refreshed"
            assert idp.asked == asked + 1
            stranger = Issuer(url=idp.url)
            stranger.rotate()
            for _ in range(5):
                async with GatewayHttp(g.url, stranger.token()) as http:
                    with pytest.raises(TokenError):
                        await http.get("/api/runs")
            assert idp.asked == asked + 1, "not for each token of an unknown key"


async def test_a_gateway_without_its_issuer_does_not_start_and_says_why(tmp_path: Path) -> None:
    async with issuer() as idp:
        pass
    changes = settings(idp, jwks_url=idp.jwks_url)
    with pytest.raises(StartupError, match="login keys did not come") as caught:
        async with gateway(tmp_path, downstream_wait_seconds=1.0, **changes):
            pass
    assert "CARREL_GATEWAY_LOGIN__JWKS_URL" in caught.value.advice


async def _fetch(idp: Issuer, **address: Any) -> Any:
    known = {"issuer": idp.url, "jwks_url": idp.jwks_url, "ca": idp.ca, "production": False} | address
    async with IssuerClient(IssuerAddress(**known)) as client:
        return await client.fetch()


async def test_an_issuers_max_age_is_read(tmp_path: Path) -> None:
    async with issuer() as idp:
        for said, wanted in (("", None), ("public, max-age=600", 600.0), ("no-store, max-age=600", 0.0)):
            idp.cache_control = said
            assert (await _fetch(idp)).max_age_s == wanted


async def test_an_answer_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.login_jwks_http._TOTAL_S", 0.5)
    async with issuer() as idp:
        idp.delay_s = 2.0
        with pytest.raises(FetchFailed, match="did not answer within"):
            await _fetch(idp)


async def test_answers_that_are_not_believed() -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("answered 302", {"status": 302, "headers": {"Location": "/keys"}}),
        ("answered 500", {"status": 500}),
        ("more than 262144 bytes", {"body": b'{"keys":[' + b" " * 300_000 + b"]}"}),
        ("did not answer JSON", {"body": b"<html>"}),
        ("did not answer a JSON object", {"body": b"[]"}),
        ("is no JWKS", {"body": b"{}"}),
        ("no public key", {"body": b'{"keys":[{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}]}'}),
        ("compressed", {"headers": {"Content-Encoding": "gzip"}}),
    ]
    async with issuer() as idp:
        for message, changes in wrong:
            before = {name: getattr(idp, name) for name in changes}
            for name, value in changes.items():
                setattr(idp, name, value)
            with pytest.raises(FetchFailed, match=message):
                await _fetch(idp)
            for name, value in before.items():
                setattr(idp, name, value)
        assert (await _fetch(idp)).keys


async def test_discovery_must_tell_of_the_very_issuer_and_of_a_safe_place() -> None:
    async with issuer() as idp:
        for message, changes in (
            ("another issuer", {"issuer": idp.url + "/"}),
            ("names no jwks_uri", {"jwks_uri": None}),
            ("https", {"jwks_uri": "http://198.51.100.1/keys"}),
            ("no URL", {"jwks_uri": "file:///etc/passwd"}),
        ):
            idp.discovery = changes
            with pytest.raises(FetchFailed, match=message):
                await _fetch(idp, jwks_url="")


async def test_a_certificate_of_an_unknown_ca_is_not_believed(tmp_path: Path) -> None:
    async with issuer(tmp_path) as idp:
        with pytest.raises(FetchFailed, match=r"(?i)certificate"):
            await _fetch(idp, ca=None)
        assert (await _fetch(idp)).keys


async def test_a_gateway_outlives_an_outage_of_its_issuer(tmp_path: Path) -> None:
    idp = Issuer()
    async with issuer(known=idp):
        port = int(idp.url.rsplit(":", 1)[1])
        world = gateway(tmp_path, **settings(idp, jwks_url=idp.jwks_url))
        g = await world.__aenter__()
    try:
        async with GatewayHttp(g.url, idp.token()) as http:
            assert await http.get("/api/runs"), "the keys that are known are good"
        idp.rotate()
        async with issuer(known=idp, port=port), GatewayHttp(g.url, idp.token()) as http:
            assert await http.get("/api/runs")
    finally:
        await world.__aexit__(None, None, None)
