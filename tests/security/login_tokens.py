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
        **_spellings(payload),
        **_kids(secret, b"a-secret-of-somebody-else-32-bytes-long"),
        **_doubled(secret),
        "repeated sub": login_jwt(secret, json.dumps(login_claims())[:-1] + ',"sub":"bob"}'),
        "NaN": login_jwt(secret, json.dumps(login_claims())[:-1] + ',"nbf":NaN}'),
        **{name: login_jwt(secret, login_claims(**change)) for name, change in changed.items()},
        **{name: login_jwt(secret, login_claims(), header) for name, header in headers.items()},
    }


def _spellings(payload: str) -> dict[str, str]:
    """No algorithm, in every spelling that a lenient library might take."""
    found = {}
    for alg in ("None", "NONE", "nOnE", "none ", "", "HS256none", None, ["none"], 0):
        head = b64(json.dumps({"alg": alg, "typ": "JWT"}).encode())
        found[f"alg {alg!r}"] = f"{head}.{payload}."
        found[f"alg {alg!r} with a signature"] = f"{head}.{payload}.{'A' * 43}"
    return found


def _kids(secret: bytes, stranger: bytes) -> dict[str, str]:
    """Names of keys that lead a careless reader to a key of the sender's choice, signed with that key."""
    tricks: dict[str, tuple[Any, bytes]] = {
        "a path to nothing": ("../../../../dev/null", b""),
        "a path to a known file": ("/proc/sys/kernel/randomize_va_space", b"2\n"),
        "SQL": ("x' UNION SELECT 'known' -- ", b"known"),
        "an address": ("http://127.0.0.1:1/keys", stranger),
        "a command": ("$(cat /etc/passwd)|id", stranger),
        "very long": ("k" * 3000, stranger),
        "a NUL": ("key\x00.pem", stranger),
        "the secret's own name": ("login.secret", b"login.secret"),
        "empty": ("", b""),
    }
    wrong = {
        f"kid {name}": login_jwt(key, login_claims(), {"alg": "HS256", "typ": "JWT", "kid": kid})
        for name, (kid, key) in tricks.items()
    }
    # Signed well: the form alone is wrong.
    no_text: dict[str, Any] = {"a number": 7, "a list": ["k"], "an object": {"k": 1}, "null": None}
    for name, kid in no_text.items():
        wrong[f"kid that is {name}"] = login_jwt(secret, login_claims(), {"alg": "HS256", "typ": "JWT", "kid": kid})
    own = {"kty": "oct", "k": b64(stranger), "alg": "HS256"}
    keys: dict[str, dict[str, Any]] = {
        "jwk": {"jwk": own},
        "jku": {"jku": "http://127.0.0.1:1/jwks"},
        "x5u": {"x5u": "http://127.0.0.1:1/pem"},
        "x5c": {"x5c": [b64(stranger)]},
        "jwk and kid": {"jwk": own, "kid": "own"},
    }
    for name, more in keys.items():
        wrong[f"{name} of the sender's"] = login_jwt(stranger, login_claims(), {"alg": "HS256", "typ": "JWT", **more})
    return wrong


def _doubled(secret: bytes) -> dict[str, str]:
    """Names that come twice, and tokens in tokens."""
    good = login_jwt(secret, login_claims())

    def signed(head: str, payload: str) -> str:
        body = f"{b64(head.encode())}.{b64(payload.encode())}"
        return f"{body}.{b64(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"

    claims = json.dumps(login_claims())
    return {
        "alg twice": signed('{"alg":"none","alg":"HS256","typ":"JWT"}', claims),
        "typ twice": signed('{"alg":"HS256","typ":"JWT","typ":"JWT"}', claims),
        "alg twice, once escaped": signed('{"alg":"HS256","\\u0061lg":"none","typ":"JWT"}', claims),
        "exp twice": signed('{"alg":"HS256","typ":"JWT"}', claims[:-1] + ',"exp":9999999999}'),
        "sub twice, once escaped": signed('{"alg":"HS256","typ":"JWT"}', claims[:-1] + ',"\\u0073ub":"bob"}'),
        "a name twice further in": signed('{"alg":"HS256","typ":"JWT"}', claims[:-1] + ',"x":{"a":1,"a":2}}'),
        "a token in a token": signed('{"alg":"HS256","typ":"JWT","cty":"JWT"}', json.dumps(good)),
        "a token as the payload": signed('{"alg":"HS256","cty":"JWT"}', good),
        "a payload that is a list": signed('{"alg":"HS256","typ":"JWT"}', f"[{claims}]"),
        "a payload too deep": signed('{"alg":"HS256","typ":"JWT"}', '{"a":' * 2000 + "1" + "}" * 2000),
        "a header too long": signed(json.dumps({"alg": "HS256", "typ": "JWT", "x": "y" * 6000}), claims),
        "a payload too long": signed('{"alg":"HS256","typ":"JWT"}', json.dumps(login_claims(x="y" * 10_000))),
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
