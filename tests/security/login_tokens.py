"""Login tokens that are wrong in one way each, encoded by hand: a library would refuse to make half of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from tests.security.forge import Forge, Who
from tests.support.stack import RunningStack

__all__ = ["login_claims", "login_jwt", "wrong_headers", "wrong_tokens"]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def login_claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "sub": "alice",
        "iss": "carrel-dev",
        "aud": "carrel",
        "iat": now,
        "exp": now + 600,
        "permissions": ["trace:read"],
    } | changes
    return {name: value for name, value in claims.items() if value is not None}


def login_jwt(secret: bytes, claims: Mapping[str, Any] | str, header: Mapping[str, Any] | None = None) -> str:
    payload = claims if isinstance(claims, str) else json.dumps(claims)
    head = json.dumps({"alg": "HS256", "typ": "JWT"} if header is None else header)
    body = f"{b64(head.encode())}.{b64(payload.encode())}"
    return f"{body}.{b64(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def wrong_tokens(stack: RunningStack, forge: Forge) -> dict[str, str]:
    """Tokens that log nobody in, by what is wrong with them."""
    secret, now = stack.state.login_secret.read_bytes().strip(), int(time.time())
    good = login_jwt(secret, login_claims())
    head, payload, signature = good.split(".")
    none = b64(b'{"alg":"none","typ":"JWT"}')
    eddsa = f"{b64(json.dumps({'alg': 'EdDSA', 'typ': 'JWT', 'kid': forge.gateway.kid}).encode())}.{payload}"
    changed: dict[str, dict[str, Any]] = {
        "expired": {"iat": now - 700, "exp": now - 60},
        "no exp": {"exp": None},
        "exp as text": {"exp": str(now + 600)},
        "no iat": {"iat": None},
        "issued in the future": {"iat": now + 300, "exp": now + 600},
        "not valid yet": {"nbf": now + 300},
        "no sub": {"sub": None},
        "empty sub": {"sub": ""},
        "sub with a slash": {"sub": "alice/../bob"},
        "sub with a space": {"sub": "alice bob"},
        "sub that is no text": {"sub": ["alice"]},
        "sub beyond all bounds": {"sub": "a" * 129},
        "wrong iss": {"iss": "somebody-else"},
        "no iss": {"iss": None},
        "wrong aud": {"aud": "somebody-else"},
        "no aud": {"aud": None},
        "permissions that are no list": {"permissions": {"operator:read": True}},
        "limits that are no numbers": {"limits": {"max_engines_per_user": -1}},
    }
    headers: dict[str, dict[str, Any]] = {
        "another typ": {"alg": "HS256", "typ": "txntoken+jwt"},
        "alg HS512": {"alg": "HS512", "typ": "JWT"},
        "alg RS256": {"alg": "RS256", "typ": "JWT"},
        "no alg": {"typ": "JWT"},
        "critical header": {"alg": "HS256", "typ": "JWT", "crit": ["exp"]},
        "payload not encoded": {"alg": "HS256", "typ": "JWT", "b64": False},
    }
    return {
        "garbage": "garbage",
        "three parts of garbage": f"{'A' * 20}.{'B' * 40}.{'C' * 43}",
        "a fourth part": good + ".AAAA",
        "without its signature": f"{head}.{payload}.",
        "signature of zeros": f"{head}.{payload}.{'A' * 43}",
        "payload exchanged": f"{head}.{b64(json.dumps(login_claims(sub='bob')).encode())}.{signature}",
        "wrong key": login_jwt(b"x" * 64, login_claims()),
        "empty key": login_jwt(b"", login_claims()),
        "public ticket key as the secret": login_jwt(forge.gateway.key.public_key().public_bytes_raw(), login_claims()),
        "alg none": f"{none}.{payload}.",
        "alg none with a signature": f"{none}.{payload}.{signature}",
        "EdDSA by the ticket key": f"{eddsa}.{b64(forge.gateway.key.sign(eddsa.encode()))}",
        "a session ticket": forge.good(Who("session")).ticket,
        "a run ticket": forge.good(Who("run")).ticket,
        "a service ticket": forge.good(Who("service")).ticket,
        "repeated sub": login_jwt(secret, json.dumps(login_claims())[:-1] + ',"sub":"bob"}'),
        "NaN": login_jwt(secret, json.dumps(login_claims())[:-1] + ',"nbf":NaN}'),
        **{name: login_jwt(secret, login_claims(**change)) for name, change in changed.items()},
        **{name: login_jwt(secret, login_claims(), header) for name, header in headers.items()},
    }


def wrong_headers(stack: RunningStack) -> dict[str, dict[str, str]]:
    good = stack.token("alice")
    return {
        "no header": {},
        "empty header": {"Authorization": ""},
        "no scheme": {"Authorization": good},
        "Basic": {"Authorization": f"Basic {good}"},
        "Bearer alone": {"Authorization": "Bearer"},
        "two tokens": {"Authorization": f"Bearer {good} {good}"},
        "two tokens with a comma": {"Authorization": f"Bearer {good}, Bearer {good}"},
        "the token as a cookie": {"Cookie": f"token={good}; Authorization={good}"},
        "another header": {"X-Authorization": f"Bearer {good}"},
    }
