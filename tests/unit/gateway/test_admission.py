"""Limits, addresses, origins, socket tokens, tickets and settings: the small rules around a connection."""

from __future__ import annotations

import ipaddress
import time
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from carrel.context import UserContextFactory
from carrel.errors import ConnectionsLimitError, OriginError, RateLimitError, StartupError, TokenError, UnavailableError
from gateway.config import GatewaySettings
from gateway.limits import ConnectionLimits, client_address
from gateway.login import Login
from gateway.origins import Origins, normal_origin
from gateway.socket_tokens import SignedSocketTokens
from gateway.tickets import TicketDesk
from servicekit.identity.keys import generate_key
from servicekit.identity.tickets import TicketMinter
from servicekit.settings import load_settings
from tests.support.claims import MemoryClaims
from tests.support.identity import identity


def _login(user: str = "alice", left_s: float = 3600, permissions: frozenset[str] = frozenset()) -> Login:
    return Login(user, time.time() + left_s, permissions)


def test_each_limit_has_its_own_error_and_is_given_back() -> None:
    limits = ConnectionLimits(total=3, per_address=2, per_user=1)
    with limits.connection("a"), limits.user("alice"), limits.connection("a"):
        with pytest.raises(ConnectionsLimitError, match="address"), limits.connection("a"):
            pass
        with pytest.raises(ConnectionsLimitError, match="user"), limits.user("alice"):
            pass
        with limits.connection("b"), pytest.raises(UnavailableError), limits.connection("c"):
            pass
        assert limits.connections == 2
    assert (limits.connections, limits.of_user("alice")) == (0, 0)
    with limits.user("alice"):
        assert limits.of_user("alice") == 1


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["nonsense"], "nonsense"),
        (None, ["198.51.100.1"], "unknown"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
    ],
)
def test_an_address_is_the_nearest_that_is_no_trusted_proxy(
    peer: str | None, forwarded: list[str], expected: str
) -> None:
    assert client_address(peer, forwarded, [ipaddress.ip_network("10.0.0.0/8")]) == expected


def test_production_takes_no_page_of_this_machine() -> None:
    assert Origins((), allow_local=True).allows("http://localhost:3000")
    production = Origins(("https://a.example",), allow_local=False)
    assert not production.allows("http://localhost:3000")
    assert production.headers("https://a.example")["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Origin" not in production.headers("https://b.example")
    with pytest.raises(OriginError):
        production.preflight("https://b.example")


@pytest.mark.parametrize("text", ["*", "https://*.example", "example", "https://a/b", "null", "https://u@a", "ftp://a"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        normal_origin(text)


async def test_socket_tokens_are_bounded_expire_and_work_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("gateway.socket_tokens.time.monotonic", lambda: clock[0])
    tokens = SignedSocketTokens(generate_key(), MemoryClaims(), most_per_user=2)
    first, second = await tokens.issue(_login()), await tokens.issue(_login())
    with pytest.raises(RateLimitError):
        await tokens.issue(_login())
    await tokens.issue(_login("bob"))
    assert (await tokens.redeem(first)).user_id == "alice"
    for wrong in (first, "", "st-nonsense", second[:-1], second.removeprefix("st-")):
        with pytest.raises(TokenError):
            await tokens.redeem(wrong)
    clock[0] += 30
    await tokens.issue(_login())
    assert len(tokens) == 1
    now = time.time()
    monkeypatch.setattr("jwt.api_jwt.datetime", Clock(now + 40))
    with pytest.raises(TokenError, match="too old"):
        await tokens.redeem(second)


class Clock:
    """Stands in for PyJWT's datetime."""

    def __init__(self, at: float) -> None:
        self._at = at

    def now(self, tz: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(self._at, tz)


async def test_a_socket_token_of_one_gateway_logs_in_at_another_and_then_nowhere() -> None:
    key, claims = generate_key(), MemoryClaims()
    here, there = SignedSocketTokens(key, claims), SignedSocketTokens(key, claims)
    login = Login("alice", time.time() + 600, frozenset({"trace:read"}), {"max_engines": 3}, time.time() - 10)
    token = await here.issue(login)
    found = await there.redeem(token)
    assert found == login
    assert found.issued_at == login.issued_at
    for tokens in (here, there):
        with pytest.raises(TokenError):
            await tokens.redeem(token)
    # Kept until the token is worthless by itself.
    (ends,) = claims.names.values()
    assert time.time() + 30 < ends < time.time() + 60


async def test_what_another_key_has_signed_or_is_no_socket_token_logs_in_nowhere() -> None:
    key = generate_key()
    claims = MemoryClaims()
    tokens = SignedSocketTokens(key, claims)
    forged = await SignedSocketTokens(generate_key(key.kid), MemoryClaims()).issue(_login())
    ticket = TicketMinter(key, "gateway").mint_session("alice")
    for wrong in (forged, f"st-{ticket}", ticket):
        with pytest.raises(TokenError):
            await tokens.redeem(wrong)
    assert not claims.names, "nobody is asked about what nobody has issued"


async def test_a_socket_token_of_a_login_that_was_revoked_logs_in_nowhere() -> None:
    tokens = SignedSocketTokens(generate_key(), MemoryClaims())
    token = await tokens.issue(_login())

    def refuse(login: Login) -> None:
        raise TokenError(f"{login.user_id} was revoked")

    tokens.check = refuse
    with pytest.raises(TokenError, match="alice was revoked"):
        await tokens.redeem(token)


def test_a_user_who_was_revoked_gets_fresh_tickets_from_then_on() -> None:
    desk = TicketDesk(identity().minter, 1200)
    alice, bob = desk.session(_login()).ticket, desk.session(_login("bob")).ticket
    desk.forget("alice")
    assert desk.session(_login()).ticket != alice
    assert desk.session(_login("bob")).ticket == bob


def test_session_tickets_are_used_again_until_they_near_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = TicketDesk(identity().minter, 1200)
    first = desk.session(_login())
    assert desk.session(_login()).ticket == first.ticket
    assert desk.session(_login("bob")).ticket != first.ticket
    assert desk.session(_login(permissions=frozenset({"a"}))).ticket != first.ticket
    now = time.time()
    monkeypatch.setattr("gateway.tickets.time.time", lambda: now + 500)
    assert desk.session(_login()).ticket != first.ticket


def test_a_session_ticket_ends_with_its_login_and_a_run_ticket_does_not() -> None:
    desk = TicketDesk(identity().minter, 1200)
    verify = identity().verifier()
    long, short = _login(left_s=3600), _login(left_s=20)
    assert desk.session(long).ticket
    principal = verify.verify(desk.session(short))
    assert principal.expires_at <= time.time() + 21
    assert desk.session(short).ticket == desk.session(short).ticket
    context = UserContextFactory.from_request("alice")
    ticket, ends = desk.mint_run(short, context)
    assert verify.verify_ticket(ticket).expires_at == pytest.approx(ends, abs=2)
    assert ends > time.time() + 1190


def test_settings_by_the_documents_names_and_what_production_asks_for(tmp_path: Path) -> None:
    settings = load_settings(
        GatewaySettings,
        "gateway",
        {
            "WEBSOCKET_HEARTBEAT_INTERVAL": "12",
            "WEBSOCKET_DELIVERY_TIMEOUT": "3",
            "WEBSOCKET_ENABLE_COMPRESSION": "false",
            "CARREL_GATEWAY_ACK_WINDOW_EVENTS": "50",
            "CARREL_GATEWAY_LOGIN__ISSUER": "idp",
            "CARREL_GATEWAY_LIMITS__PER_USER": "7",
            "CARREL_GATEWAY_ALLOWED_ORIGINS": "https://A.example:443,http://b.example:81",
            "CARREL_GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8",
            "CARREL_STATE_DIR": str(tmp_path),
        },
    )
    options = settings.handshake_options()
    assert (options.session.heartbeat_s, options.flow.stall_s) == (12, 3)
    assert (options.terms.compression, options.terms.ack_events, options.flow.ack_s) == (False, 50, 3)
    assert settings.allowed_origins == ("https://a.example", "http://b.example:81")
    assert (settings.login.issuer, settings.limits.per_user) == ("idp", 7)
    assert settings.ticket_key == tmp_path / "keys" / "gateway.jwk.json"
    assert settings.login_secret == tmp_path / "keys" / "login.secret"
    for wrong in (
        {"CARREL_ENVIRONMENT": "production"},
        {"CARREL_GATEWAY_ALLOWED_ORIGINS": "*"},
        {"CARREL_GATEWAY_TRUSTED_PROXIES": "everybody"},
        {"CARREL_GATEWAY_LOGIN__SECRET_FILE": "a", "CARREL_GATEWAY_LOGIN__JWKS": "b"},
        {"CARREL_GATEWAY_LISTN": "x"},
    ):
        with pytest.raises(StartupError):
            load_settings(GatewaySettings, "gateway", wrong)


def test_wrong_login_settings_are_told_by_their_names_together_with_what_else_is_wrong() -> None:
    wrong = {"CARREL_ENVIRONMENT": "production", "CARREL_GATEWAY_LISTEN": "bad", "CARREL_GATEWAY_BRIDGE": "xx"}
    with pytest.raises(StartupError) as caught:
        load_settings(GatewaySettings, "gateway", wrong)
    told = caught.value.message
    for name in ("set CARREL_GATEWAY_LOGIN__JWKS to", "CARREL_GATEWAY_LISTEN=bad", "CARREL_GATEWAY_BRIDGE=xx"):
        assert name in told
    both = {"CARREL_GATEWAY_LOGIN__SECRET_FILE": "a", "CARREL_GATEWAY_LOGIN__JWKS": "b"}
    with pytest.raises(StartupError, match="set CARREL_GATEWAY_LOGIN__SECRET_FILE or CARREL_GATEWAY_LOGIN__JWKS, not"):
        load_settings(GatewaySettings, "gateway", both)
    settings = load_settings(
        GatewaySettings,
        "gateway",
        {"CARREL_ENVIRONMENT": "production", "CARREL_TLS__MODE": "mesh", "CARREL_GATEWAY_LOGIN__JWKS": "keys.json"},
    )
    assert settings.production
