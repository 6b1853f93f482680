"""Tickets and contexts as an attacker would make them, each wrong in one way, and the status that each must get.

Everything is encoded by hand here: a library would refuse to make half of it. Not for other tests than those of this
folder; proper tickets are ``tests.support.stack``'s.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from carrel.cli.state import StateFolder
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity.keys import SigningKey, load_signing_key
from servicekit.identity.principals import AUDIT_WRITE, OPERATOR_READ, OPERATOR_REVOKE

UNAUTHENTICATED: Final = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED: Final = grpc.StatusCode.PERMISSION_DENIED

SCOPES: Final = frozenset({"run", "session", "service"})
_TYPE: Final = "txntoken+jwt"

Context = UserExecutionContext | None


@dataclass(frozen=True)
class Who:
    """Whose ticket is forged. Which ids it holds depends on the scope."""

    scope: str
    user: str = "alice"
    thread: str = "thread-1"
    run: str = "run-1"
    request: str = "req-1"
    permissions: tuple[str, ...] = (AUDIT_WRITE, OPERATOR_READ, OPERATOR_REVOKE)

    def context(self, ticket: str = "", **changes: Any) -> UserExecutionContext:
        """The ids of the scope, with a ticket and with changes."""
        ids: dict[str, Any] = {}
        if self.scope != "service":
            ids["user_id"] = self.user
        if self.scope == "run":
            ids |= {"thread_id": self.thread, "run_id": self.run, "request_id": self.request}
        return UserExecutionContext(**(ids | {"ticket": ticket} | changes))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good ticket says; a change to None takes a claim out."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": "gateway",
            "aud": "carrel",
            "iat": now,
            "exp": now + 600,
            "txn": "t-1",
            "scope": self.scope,
            "sub": "gateway" if self.scope == "service" else self.user,
            "perms": list(self.permissions),
        }
        if self.scope == "run":
            claims |= {"thread": self.thread, "run": self.run, "req": self.request}
        return {name: value for name, value in (claims | changes).items() if value is not None}


@dataclass
class Forge:
    """Signs with the keys of a stack's state folder, with keys of its own, or not at all."""

    state: StateFolder
    stranger: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.gateway: SigningKey = load_signing_key(self.state.gateway_key)
        self.execution: SigningKey = load_signing_key(self.state.execution_key)

    def header(self, **changes: Any) -> dict[str, Any]:
        """A good header; a change to None takes a parameter out."""
        header = {"alg": "EdDSA", "typ": _TYPE, "kid": self.gateway.kid} | changes
        return {name: value for name, value in header.items() if value is not None}

    def ticket(
        self,
        claims: Mapping[str, Any] | str,
        header: Mapping[str, Any] | None = None,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> str:
        """Three parts, signed by the gateway's key unless ``sign`` is given. Text claims are encoded as they are."""
        payload = claims if isinstance(claims, str) else json.dumps(claims)
        body = f"{_b64(json.dumps(header or self.header()).encode())}.{_b64(payload.encode())}"
        signature = (sign or self.gateway.key.sign)(body.encode())
        return f"{body}.{_b64(signature)}"

    def good(self, who: Who, **changes: Any) -> UserExecutionContext:
        """What every service must take; ``changes`` are the context's. A run's ticket is execution's."""
        if who.scope != "run":
            return who.context(self.ticket(who.claims()), **changes)
        header = self.header(kid=self.execution.kid)
        return who.context(self.ticket(who.claims(iss="execution"), header, self.execution.key.sign), **changes)

    def asking(self, who: Who) -> UserExecutionContext:
        """A run's context under the gateway's ticket, as anybody who is logged in gets one: not admitted yet."""
        return who.context(self.ticket(who.claims()))


@dataclass(frozen=True)
class Attack:
    """One wrong context and the status that refuses it. ``expired``: refused in a way that asks for a fresh ticket."""

    name: str
    status: grpc.StatusCode
    context: Context
    expired: bool = False


def attacks(forge: Forge, allowed: frozenset[str], *, needs_operator: bool = False) -> Iterator[Attack]:
    """Every attack on a call that takes tickets of the ``allowed`` scopes."""
    for scope in sorted(allowed):
        who = Who(scope)
        for name, context in _not_authentic(forge, who).items():
            yield Attack(f"{scope}: {name}", UNAUTHENTICATED, context, expired=name == "expired")
        for name, context in _mismatches(forge, who).items():
            yield Attack(f"{scope}: {name}", PERMISSION_DENIED, context)
    for scope in sorted(SCOPES - allowed):
        yield Attack(f"scope {scope}", PERMISSION_DENIED, forge.good(Who(scope)))
    if needs_operator and "service" in allowed:
        plain = Who("service", permissions=("trace:read",))
        yield Attack("service: without an operator's permission", PERMISSION_DENIED, forge.good(plain))


def _not_authentic(forge: Forge, who: Who) -> dict[str, Context]:
    found: dict[str, Context] = {"missing context": None, "missing ticket": who.context()}
    tickets = {
        **_garbage(forge, who),
        **_wrongly_signed(forge, who),
        **_wrong_headers(forge, who),
        **_wrong_claims(forge, who),
    }
    found |= {name: who.context(ticket) for name, ticket in tickets.items()}
    # A payload that was changed under a good signature, with the context changed to fit.
    header, _, signature = forge.ticket(who.claims()).split(".")
    other = replace(who, user="bob", run="run-2")
    payload = _b64(json.dumps(other.claims(perms=["everything"])).encode())
    found["payload exchanged"] = other.context(f"{header}.{payload}.{signature}")
    return found


def _garbage(forge: Forge, who: Who) -> dict[str, str]:
    good = forge.ticket(who.claims())
    return {
        "garbage": "not-a-ticket",
        "three parts of garbage": f"{'A' * 40}.{'B' * 80}.{'C' * 86}",
        "oversized": "A" * 20_000,
        "oversized but well signed": forge.ticket(who.claims(perms=["p" * 9000])),
        "without its signature": good.rpartition(".")[0] + ".",
        "a fourth part": good + ".AAAA",
        "white space around it": f" {good}\n",
        "Bearer in front": f"Bearer {good}",
        "deeply nested": forge.ticket('{"iss":' + "[" * 2500 + "]" * 2500 + "}"),
        "no object": forge.ticket("[1, 2, 3]"),
    }


def _wrongly_signed(forge: Forge, who: Who) -> dict[str, str]:
    claims = who.claims()
    public = forge.gateway.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    hs256 = forge.header(alg="HS256")
    head, payload, signature = forge.ticket(claims).split(".")
    flipped = ("B" if signature[10] == "A" else "A").join((signature[:10], signature[11:]))
    found = {
        "forged signature": f"{head}.{payload}.{flipped}",
        "unknown key": forge.ticket(claims, forge.header(kid="stranger"), forge.stranger.sign),
        "unknown key under a known kid": forge.ticket(claims, sign=forge.stranger.sign),
        "other minter's key": forge.ticket(claims, sign=forge.execution.key.sign),
        "alg none": forge.ticket(claims, forge.header(alg="none"), lambda _: b""),
        "alg none with a signature": forge.ticket(claims, forge.header(alg="none")),
        "alg None": forge.ticket(claims, forge.header(alg="None"), lambda _: bytes(64)),
        "HS256 with the public key": forge.ticket(claims, hs256, _hmac(public.public_bytes_raw())),
        "HS256 with the public key's PEM": forge.ticket(claims, hs256, _hmac(pem)),
        "HS256 in 64 bytes": forge.ticket(claims, hs256, lambda body: _hmac(pem)(body) * 2),
        "a login token's form": forge.ticket(claims, {"alg": "HS256", "typ": "JWT"}, _hmac(_secret(forge.state))),
        "execution's key in the gateway's name": forge.ticket(
            claims, forge.header(kid=forge.execution.kid), forge.execution.key.sign
        ),
    }
    if who.scope != "run":
        found["execution's key for this scope"] = forge.ticket(
            who.claims(iss="execution"), forge.header(kid=forge.execution.kid), forge.execution.key.sign
        )
    return found


def _wrong_headers(forge: Forge, who: Who) -> dict[str, str]:
    claims = who.claims()
    own = {"kty": "OKP", "crv": "Ed25519", "x": _b64(forge.stranger.public_key().public_bytes_raw())}
    return {
        "typ JWT": forge.ticket(claims, forge.header(typ="JWT")),
        "typ at+jwt": forge.ticket(claims, forge.header(typ="at+jwt")),
        "no typ": forge.ticket(claims, forge.header(typ=None)),
        "no kid": forge.ticket(claims, forge.header(kid=None)),
        "no alg": forge.ticket(claims, forge.header(alg=None)),
        "kid that is no text": forge.ticket(claims, forge.header(kid=7)),
        "its own key in the header": forge.ticket(claims, forge.header(jwk=own), forge.stranger.sign),
        "a key's address": forge.ticket(claims, forge.header(jku="http://127.0.0.1/keys"), forge.stranger.sign),
        "a critical header": forge.ticket(claims, forge.header(crit=["b64"], b64=False)),
        "repeated kid": _repeated_kid(forge, claims),
        "repeated alg": _with_header(forge, claims, '"alg": "none"'),
        "repeated typ, once escaped": _with_header(forge, claims, '"t\\u0079p": "JWT"'),
        "a token in a token": forge.ticket(json.dumps(forge.ticket(claims)), forge.header(cty="JWT")),
        "a certificate in the header": forge.ticket(
            claims, forge.header(x5c=[own["x"]], x5u="http://127.0.0.1:1/"), forge.stranger.sign
        ),
        **{
            f"kid {kid!r}"[:60]: forge.ticket(claims, forge.header(kid=kid), forge.stranger.sign)
            for kid in (
                *("../gateway.jwk.json", "/dev/null", "' OR 1=1 --", "http://127.0.0.1:1/k", "k" * 2000, "", "a\x00b"),
                *(f"{forge.gateway.kid} ", forge.gateway.kid.upper(), [forge.gateway.kid], {"kid": 1}, True),
            )
        },
        **{
            f"alg {alg!r}": forge.ticket(claims, forge.header(alg=alg), lambda _: b"")
            for alg in ("NONE", "nOnE", "none ", "", ["EdDSA"], 0, "ES256", "HS512", "Ed25519")
        },
    }


def _wrong_claims(forge: Forge, who: Who) -> dict[str, str]:
    now = int(time.time())
    wrong: dict[str, Mapping[str, Any]] = {
        "expired": {"iat": now - 700, "exp": now - 60},
        "no exp": {"exp": None},
        "exp as text": {"exp": str(now + 600)},
        "valid for a century": {"exp": now + 100 * 365 * 86_400},
        "issued in the future": {"iat": now + 300, "exp": now + 900},
        "not valid yet": {"nbf": now + 300},
        "wrong audience": {"aud": "somebody-else"},
        "audience in a list": {"aud": ["carrel", "somebody-else"]},
        "no audience": {"aud": None},
        "wrong issuer": {"iss": "https://evil.example"},
        "execution's issuer": {"iss": "execution"},
        "no issuer": {"iss": None},
        "no subject": {"sub": None},
        "empty subject": {"sub": ""},
        "subject that is no text": {"sub": 7},
        "no scope": {"scope": None},
        "unknown scope": {"scope": "admin"},
        "scope in a list": {"scope": [who.scope]},
        "permissions that are no list": {"perms": "operator:read"},
        "limits that are no numbers": {"limits": {"max_engines_per_user": "100"}},
    }
    if who.scope == "run":
        wrong |= {"run ticket without a run": {"run": None}, "root request with a _": {"req": "req-1_child"}}
    else:
        wrong |= {"ids of a run in another scope": {"run": "run-1", "thread": "thread-1", "req": "req-1"}}
    found = {name: forge.ticket(who.claims(**changes)) for name, changes in wrong.items()}
    text = json.dumps(who.claims())
    found["repeated claim"] = forge.ticket(text[:-1] + ', "scope": "service"}')
    found["NaN"] = forge.ticket(text[:-1] + ', "nbf": NaN}')
    return found


def _mismatches(forge: Forge, who: Who) -> dict[str, Context]:
    depth = {"operation_depth": 1}
    changes: dict[str, Mapping[str, Any]] = {
        "swapped user": {"user_id": "bob"},
        "swapped thread": {"thread_id": "thread-2"},
        "swapped run": {"run_id": "run-2"},
        "swapped request": {"request_id": "req-2"},
        "user in other letters": {"user_id": "Alice"},
        "depth without a child": {"operation_depth": 3},
        "parent without a child": {"parent_request_id": "req-0"},
    }
    if who.scope != "service":
        changes["no user"] = {"user_id": ""}
    if who.scope == "run":
        changes |= {
            "no ids": {"thread_id": "", "run_id": "", "request_id": ""},
            "child that does not extend": {"request_id": "req-10", "parent_request_id": "req-1", **depth},
            "child of another root": {"request_id": "req-2_step", "parent_request_id": "req-2", **depth},
            "child of a parent outside": {"request_id": "req-1_step", "parent_request_id": "req-2", **depth},
            "child without a name": {"request_id": "req-1_", "parent_request_id": "req-1", **depth},
            "child without a parent": {"request_id": "req-1_step", **depth},
            "child without depth": {"request_id": "req-1_step", "parent_request_id": "req-1"},
            "child with a prefix": {"request_id": "x-req-1_step", "parent_request_id": "req-1", **depth},
            "parent that extends the child": {
                "request_id": "req-1_step",
                "parent_request_id": "req-1_step_on",
                "operation_depth": 2,
            },
        }
    return {name: forge.good(who, **change) for name, change in changes.items()}


def _repeated_kid(forge: Forge, claims: Mapping[str, Any]) -> str:
    text = json.dumps(forge.header(kid="stranger"))[:-1] + f', "kid": "{forge.gateway.kid}"}}'
    body = f"{_b64(text.encode())}.{_b64(json.dumps(claims).encode())}"
    return f"{body}.{_b64(forge.gateway.key.sign(body.encode()))}"


def _with_header(forge: Forge, claims: Mapping[str, Any], more: str) -> str:
    """A name that a header has comes again, in front, under a good signature."""
    text = "{" + more + ", " + json.dumps(forge.header())[1:]
    body = f"{_b64(text.encode())}.{_b64(json.dumps(claims).encode())}"
    return f"{body}.{_b64(forge.gateway.key.sign(body.encode()))}"


def _hmac(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda body: hmac.new(secret, body, hashlib.sha256).digest()


def _secret(state: StateFolder) -> bytes:
    return state.login_secret.read_bytes().strip()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
