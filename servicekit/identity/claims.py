"""Reading a ticket strictly: its form, its signature, its claims. What passes here is true as far as the signer is.

PyJWT's defaults accept a missing ``exp``, any ``typ`` and repeated keys, so each option is set and the rest is checked
by hand, before the signature where that is cheaper. Tickets only; login tokens have rules of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import jwt

from carrel.errors import TicketError, TicketExpiredError
from servicekit.identity.jwt_parts import PartError, read_part
from servicekit.identity.keys import KeySet, PublicKey
from servicekit.identity.principals import Principal, RunPrincipal, Scope, ServicePrincipal, SessionPrincipal

__all__ = ["AUDIENCE", "MAX_TICKET_BYTES", "TYPE", "principal_from_claims", "read_claims"]

AUDIENCE: Final = "carrel"
TYPE: Final = "txntoken+jwt"
MAX_TICKET_BYTES: Final = 8192

_MAX_LIFETIME_S: Final = 31 * 24 * 3600
_FORM: Final = re.compile(r"[A-Za-z0-9_-]{2,2048}\.[A-Za-z0-9_-]{2,8192}\.[A-Za-z0-9_-]{86}")
_ID: Final = re.compile(r"[!-.0-~]{1,128}")
_LOGIN: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_HEADER: Final = frozenset({"alg", "typ", "kid"})
_REQUIRED: Final = ["iss", "aud", "iat", "exp", "txn", "scope", "sub"]
_RUN_ONLY: Final = ("thread", "run", "req")


def read_claims(ticket: str, keys: KeySet, leeway_s: float) -> dict[str, Any]:
    """The claims of a ticket whose form, key, signature, audience and times are right.

    Raises:
        TicketError: Something is wrong with it; the message says what, never quoting it.
        TicketExpiredError: Everything else is right, but it is past its ``exp``.
    """
    if len(ticket) > MAX_TICKET_BYTES:
        raise _bad(f"is longer than {MAX_TICKET_BYTES} bytes")
    if not _FORM.fullmatch(ticket):
        raise _bad("is not three base64url parts with an Ed25519 signature")
    header_part, payload_part, _ = ticket.split(".")
    header = _strict(header_part, "header")
    key = _key_for(header, keys)
    # Before the signature, since PyJWT would silently take the last of two equal names.
    _strict(payload_part, "payload")
    claims = _verified(ticket, key, leeway_s)
    issuer, scope = claims["iss"], claims["scope"]
    if key.issuer and issuer != key.issuer:
        raise _bad("is signed with a key that belongs to another issuer")
    if scope not in {s.value for s in Scope}:
        raise _bad("has an unknown scope")
    if Scope(scope) not in key.scopes:
        raise _bad(f"is of the scope {scope}, which its key may not sign")
    return claims


def principal_from_claims(claims: Mapping[str, Any]) -> Principal:
    """The principal that verified claims describe.

    Raises:
        TicketError: A claim is missing, of the wrong kind, or does not belong to the scope.
    """
    scope = Scope(claims["scope"])
    subject = _id(claims, "sub")
    permissions, limits = _permissions(claims), _limits(claims)
    begins, ends = float(claims["iat"]), float(claims["exp"])
    login = _login(claims)
    if scope is Scope.RUN:
        thread, run, request = (_id(claims, name) for name in _RUN_ONLY)
        if "_" in request:
            raise _bad("names a root request with '_' in it")
        return RunPrincipal(subject, thread, run, request, permissions, limits, ends, claims["iss"], begins, login)
    if any(name in claims for name in _RUN_ONLY):
        raise _bad(f"is of the scope {scope.value} and names a run")
    if scope is Scope.SESSION:
        return SessionPrincipal(subject, permissions, limits, ends, begins, login)
    return ServicePrincipal(subject, permissions, ends)


def _key_for(header: Mapping[str, Any], keys: KeySet) -> PublicKey:
    if header.get("alg") != "EdDSA":
        raise _bad("is not signed with EdDSA")
    if header.get("typ") != TYPE:
        raise _bad(f"is not of the type {TYPE}")
    if "crit" in header:
        raise _bad("has a crit header, which nothing here understands")
    if unknown := header.keys() - _HEADER:
        raise _bad(f"has {len(unknown)} header parameters that no ticket has")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise _bad("names no key (kid)")
    key = keys.get(kid)
    if key is None:
        raise TicketError(
            "the ticket is signed with a key that is not in this service's key file",
            advice="add the minter's public key to the file that CARREL_TICKET_JWKS names",
            kid=kid[:64] if kid.isascii() and kid.isprintable() else "",
        )
    return key


def _verified(ticket: str, key: PublicKey, leeway_s: float) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            ticket,
            key.key,
            algorithms=["EdDSA"],
            audience=AUDIENCE,
            leeway=leeway_s,
            options={
                "verify_signature": True,
                "verify_exp": True,
                "verify_nbf": True,
                "verify_iat": True,
                "verify_aud": True,
                "verify_iss": True,
                "verify_sub": True,
                "require": _REQUIRED,
                "strict_aud": True,
            },
        )
    except jwt.ExpiredSignatureError:
        raise TicketExpiredError("the ticket has expired") from None
    except jwt.MissingRequiredClaimError as error:
        raise _bad(f"has no claim {error.claim}") from None
    except jwt.InvalidSignatureError:
        raise _bad("has a signature that is not its key's") from None
    except jwt.InvalidAudienceError:
        raise _bad(f"is not for the audience {AUDIENCE}") from None
    except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
        raise _bad("is not valid yet, or its times are wrong") from None
    except jwt.PyJWTError:
        raise _bad("cannot be read") from None
    issued, ends = claims["iat"], claims["exp"]
    if not (_is_int(issued) and _is_int(ends) and 0 < ends - issued <= _MAX_LIFETIME_S):
        raise _bad("has times that make no sense")
    if not isinstance(claims["iss"], str) or not claims["iss"] or not isinstance(claims["scope"], str):
        raise _bad("has an issuer or a scope that is no text")
    return claims


def _strict(part: str, what: str) -> dict[str, Any]:
    try:
        return read_part(part, what)
    except PartError as refused:
        raise _bad(str(refused)) from None


def _id(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _bad(f"has no usable claim {name}")
    return value


def _login(claims: Mapping[str, Any]) -> str:
    value = claims.get("lgn", "")
    if not isinstance(value, str) or not _LOGIN.fullmatch(value):
        raise _bad("names its login in no form that is known")
    return value


def _permissions(claims: Mapping[str, Any]) -> frozenset[str]:
    values = claims.get("perms", [])
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise _bad("has permissions that are no list of texts")
    return frozenset(values)


def _limits(claims: Mapping[str, Any]) -> Mapping[str, int]:
    values = claims.get("limits", {})
    if not isinstance(values, dict) or not all(_is_int(value) and value >= 0 for value in values.values()):
        raise _bad("has limits that are no whole numbers")
    return MappingProxyType(dict(values))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(problem: str) -> TicketError:
    return TicketError(f"the ticket {problem}", advice="get a ticket from the gateway or from execution")
