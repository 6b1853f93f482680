"""Fetched login keys: found without waiting, fetched for a new key, not for an attacker's, refused once too old."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from carrel.errors import StartupError, TokenError, UnavailableError
from gateway.config import GatewaySettings, LoginSettings
from gateway.login import LoginVerifier
from gateway.login_jwks import Fetched, FetchedKeys, FetchFailed
from gateway.login_jwks_http import check_url
from gateway.login_keys import LoginKey, NoKeysError, public_keys
from servicekit.tls.settings import TlsSettings
from tests.conftest import Eventually
from tests.support.issuer import Issuer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """An issuer in the process: what ``fetch`` answers, and how often it was asked."""

    def __init__(self) -> None:
        self.issuer = Issuer(url="idp")
        self.issuer.rotate()
        self.asked = 0
        self.down = False
        self.max_age_s: float | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self) -> Fetched:
        self.asked += 1
        await self.go.wait()
        if self.down:
            raise FetchFailed("it is down")
        return Fetched(public_keys(json.loads(self.issuer.jwks())), self.max_age_s)


async def begun(**options: Any) -> tuple[Fake, FetchedKeys, LoginVerifier, Clock]:
    fake, clock = Fake(), Clock()
    keys = FetchedKeys(fake.fetch, clock=clock, **options)
    await keys.start(1.0)
    return fake, keys, LoginVerifier(keys, "idp", "carrel"), clock


async def test_a_known_key_is_found_without_asking() -> None:
    fake, _, logins, _ = await begun()
    token = fake.issuer.token("alice")
    assert {logins.verify(token).user_id for _ in range(5)} == {"alice"}
    assert fake.asked == 1


async def test_a_new_key_is_fetched_once_for_all_who_come_with_it() -> None:
    fake, _, logins, clock = await begun()
    clock.now += 60
    fake.issuer.rotate()
    token = fake.issuer.token("bob")
    with pytest.raises(TokenError):
        logins.verify(token)
    fake.go.clear()
    asking = [asyncio.create_task(logins.verified(token)) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    fake.go.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [login.user_id for login in results[1:] if not isinstance(login, BaseException)] == ["bob"] * 19
    assert fake.asked == 2


async def test_a_flood_of_unknown_keys_asks_the_issuer_once_in_ten_seconds() -> None:
    fake, _, logins, clock = await begun()
    clock.now += 60
    stranger = Issuer(url="idp")
    for number in range(200):
        stranger.keys = {f"unknown-{number}": ec.generate_private_key(ec.SECP256R1())}
        with pytest.raises(TokenError, match="not accepted here"):
            await logins.verified(stranger.token())
        clock.now += 0.1
    assert fake.asked <= 1 + 3, "20 s have passed"


async def test_what_an_algorithm_confusion_asks_for_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _, logins, _ = await begun()
    (kid,) = fake.issuer.keys
    body = {"sub": "alice", "iss": "idp", "aud": "carrel", "iat": 1, "exp": 4_000_000_000}
    forged = jwt.encode(body, "a-shared-secret-of-32-bytes-or-more", algorithm="HS256", headers={"kid": kid})
    with pytest.raises(TokenError, match="not accepted here"):
        await logins.verified(forged)


async def test_a_removed_key_is_refused_after_the_next_fetch() -> None:
    fake, keys, logins, clock = await begun()
    old = fake.issuer.token()
    fake.issuer.rotate(keep=False)
    assert logins.verify(old).user_id == "alice"
    clock.now += 60
    assert await keys.renewed()
    with pytest.raises(TokenError):
        logins.verify(old)


async def test_keys_are_kept_while_the_issuer_is_down_and_refused_once_too_old() -> None:
    fake, keys, logins, clock = await begun(stale_s=3600)
    token = fake.issuer.token(ttl_s=100_000)
    fake.down = True
    clock.now += 3599
    assert not await keys.renewed()
    assert keys.failures == 1
    assert keys.usable
    assert logins.verify(token).user_id == "alice"
    clock.now += 2
    with pytest.raises(UnavailableError, match="too old"):
        logins.verify(token)
    fake.down = False
    clock.now += 10
    assert await keys.renewed()
    assert logins.verify(token).user_id == "alice"
    assert keys.failures == 0


async def test_the_first_fetch_is_tried_again_and_then_said_to_have_failed() -> None:
    fake = Fake()
    fake.down = True
    with pytest.raises(StartupError, match="it is down"):
        await FetchedKeys(fake.fetch).start(0.6)
    assert fake.asked >= 2


@pytest.mark.parametrize(
    ("max_age_s", "within"),
    [(None, (270, 300)), (0.0, (54, 60)), (1e9, (3240, 3600)), (1200.0, (1080, 1200))],
)
async def test_the_issuers_max_age_is_followed_within_bounds(
    max_age_s: float | None, within: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    fake.max_age_s = max_age_s
    keys = FetchedKeys(fake.fetch)
    await keys.start(1.0)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr("gateway.login_jwks.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await keys.keep_fresh()
    assert within[0] <= slept[0] <= within[1]


def test_what_is_no_public_signing_key_is_passed_over() -> None:
    idp = Issuer()
    idp.rotate()
    weak = {"kty": "RSA", "kid": "weak", "n": "AQAB" * 40, "e": "AQAB", "alg": "RS256"}
    document = json.loads(idp.jwks())
    document["keys"] += [
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "alg": "HS256"},
        {"kty": "EC", "kid": "enc", "crv": "P-256", "use": "enc"},
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "new", "kid": "unknown"},
        weak,
        "no object",
    ]
    assert [key.kid for key in public_keys(document)] == list(idp.keys)
    useless: list[dict[str, Any]] = [{}, {"keys": {}}, {"keys": [weak]}, {"keys": [{}] * 101}]
    for wrong in useless:
        with pytest.raises(NoKeysError):
            public_keys(wrong)


@pytest.mark.parametrize("url", ["idp", "ftp://idp/keys", "https://u:p@idp/", "https://idp/#f", "http://idp/keys"])
def test_urls_that_keys_may_not_come_from(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|no URL"):
        check_url(url, production=False)


def test_plain_http_is_for_this_machine_in_development() -> None:
    check_url("http://127.0.0.1:80/keys", production=False)
    check_url("http://localhost/keys", production=False)
    with pytest.raises(ValueError, match="https"):
        check_url("http://127.0.0.1:80/keys", production=True)


def test_settings_name_one_source_and_production_takes_a_url() -> None:
    with pytest.raises(ValidationError, match="set one of"):
        LoginSettings(jwks_url="https://idp/keys", discovery=True)
    mesh = TlsSettings(mode="mesh")
    taken = GatewaySettings(environment="production", tls=mesh, login=LoginSettings(jwks_url="https://idp/keys"))
    assert taken.login.fetched
    for login in (LoginSettings(jwks_url="http://idp/keys"), LoginSettings(discovery=True, issuer="idp")):
        with pytest.raises(ValidationError, match="CARREL_GATEWAY_LOGIN__"):
            GatewaySettings(login=login)


def test_the_leeway_is_for_either_side() -> None:
    idp = Issuer(url="idp")
    idp.rotate()
    keys = public_keys(json.loads(idp.jwks()))

    class Known:
        def find(self, kid: str, algorithm: str) -> LoginKey | None:
            return keys[0]

        async def renewed(self) -> bool:
            return False

    strict, wide = (LoginVerifier(Known(), "idp", "carrel", leeway_s=leeway) for leeway in (0.0, 60.0))
    now = int(time.time())
    times: list[dict[str, Any]] = [
        {"iat": now + 30, "exp": now + 90},
        {"iat": now, "nbf": now + 30},
        {"iat": now - 90, "exp": now - 30},
    ]
    for claims in times:
        token = idp.token(**claims)
        assert wide.verify(token).user_id == "alice"
        with pytest.raises(TokenError):
            strict.verify(token)
    with pytest.raises(TokenError):
        wide.verify(idp.token(iat=now + 90, exp=now + 300))


async def test_a_token_has_one_name_in_whatever_form_its_signature_is() -> None:
    # Of an ECDSA signature (r, s) anybody can make another good one: (r, n - s). Signing out must mean both.
    fake, _, logins, _ = await begun()
    token = fake.issuer.token("alice")
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    twin = f"{signed}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}"
    assert twin != token
    assert logins.verify(twin).name == logins.verify(token).name
    assert logins.verify(fake.issuer.token("alice", jti="2")).name != logins.verify(token).name


async def test_a_fetch_that_is_under_way_ends_with_the_gateway(eventually: Eventually) -> None:
    fake, keys, logins, clock = await begun()
    clock.now += 60
    fake.go.clear()
    waiting = asyncio.create_task(logins.verified(Fake().issuer.token()))
    await eventually(lambda: fake.asked == 2)
    await keys.aclose()
    await asyncio.wait([waiting], timeout=10)
    assert waiting.cancelled()
    await keys.aclose()
