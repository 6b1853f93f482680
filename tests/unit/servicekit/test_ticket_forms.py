"""Hostile tickets: each is signed rightly or nearly, and refused for the one thing that is wrong with it."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errors import TicketError, TooLargeError
from carrel.v1 import context_pb2
from servicekit.identity.tickets import TicketVerifier
from tests.support.identity import identity, session_context

HEADER = {"alg": "EdDSA", "typ": "txntoken+jwt", "kid": "gateway-1"}


@pytest.fixture
def verifier() -> TicketVerifier:
    return identity().verifier()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    base = {
        "iss": "gateway",
        "aud": "carrel",
        "iat": now,
        "exp": now + 600,
        "txn": "x",
        "scope": "session",
        "sub": "alice",
        "perms": [],
    }
    return {name: value for name, value in (base | changes).items() if value is not ...}


def sign(header: str | dict[str, Any], payload: str | dict[str, Any], *, forge: bool = False) -> str:
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (header, payload)]
    signed = ".".join(_encode(part.encode()) for part in parts)
    signature = identity().gateway_key.key.sign(signed.encode())
    return f"{signed}.{_encode(bytes(64) if forge else signature)}"


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def refusal(verifier: TicketVerifier, ticket: str) -> TicketError:
    with pytest.raises(TicketError) as caught:
        verifier.verify(context_pb2.UserExecutionContext(user_id="alice", ticket=ticket))
    assert not verifier._cache
    return caught.value


def test_hand_made_ticket_with_nothing_wrong_passes(verifier: TicketVerifier) -> None:
    verifier.verify(context_pb2.UserExecutionContext(user_id="alice", ticket=sign(HEADER, claims())))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none"}, "not signed with EdDSA"),
        ({"alg": "HS256"}, "not signed with EdDSA"),
        ({"alg": "Ed25519"}, "not signed with EdDSA"),
        ({"typ": "JWT"}, "not of the type"),
        ({"typ": "TXNTOKEN+JWT"}, "not of the type"),
        ({"typ": None}, "not of the type"),
        ({"crit": ["exp"], "exp": 1}, "crit"),
        ({"jwk": {}}, "header parameters"),
        ({"b64": False}, "header parameters"),
        ({"kid": ""}, "names no key"),
        ({"kid": 7}, "names no key"),
        ({"kid": "nobody"}, "not in this service's key file"),
        ({"kid": "execution-1"}, "signature"),
    ],
)
def test_wrong_header_is_refused(verifier: TicketVerifier, header: dict[str, Any], reason: str) -> None:
    assert reason in refusal(verifier, sign(HEADER | header, claims())).message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"exp": ...}, "no claim exp"),
        ({"iat": ...}, "no claim iat"),
        ({"iss": ...}, "no claim iss"),
        ({"aud": ...}, "no claim aud"),
        ({"sub": ...}, "no claim sub"),
        ({"scope": ...}, "no claim scope"),
        ({"txn": ...}, "no claim txn"),
        ({"aud": "other"}, "audience"),
        ({"aud": ["carrel", "other"]}, "audience"),
        ({"iss": "execution"}, "another issuer"),
        ({"iss": 5}, "no text"),
        ({"scope": "root"}, "unknown scope"),
        ({"scope": ["session"]}, "no text"),
        ({"sub": 5}, "cannot be read"),
        ({"sub": ""}, "sub"),
        ({"sub": "a b"}, "sub"),
        ({"sub": "a/b"}, "sub"),
        ({"sub": "x" * 129}, "sub"),
        ({"exp": "tomorrow"}, "cannot be read"),
        ({"exp": int(time.time()) + 10**9}, "times"),
        ({"exp": float(time.time()) + 3600.5}, "times"),
        ({"iat": int(time.time()) + 86_400}, "not valid yet"),
        ({"nbf": int(time.time()) + 86_400}, "not valid yet"),
        ({"iat": "now"}, "not valid yet"),
        ({"perms": "all"}, "permissions"),
        ({"perms": [1]}, "permissions"),
        ({"limits": [1]}, "limits"),
        ({"limits": {"max_engines": "many"}}, "limits"),
        ({"limits": {"max_engines": -1}}, "limits"),
        ({"limits": {"max_engines": True}}, "limits"),
        ({"run": "run-1"}, "names a run"),
        ({"scope": "run"}, "thread"),
        ({"scope": "run", "thread": "t", "run": "r", "req": "a_b"}, "'_'"),
        ({"scope": "service", "run": "r"}, "names a run"),
    ],
)
def test_wrong_claims_are_refused(verifier: TicketVerifier, change: dict[str, Any], reason: str) -> None:
    assert reason in refusal(verifier, sign(HEADER, claims(**change))).message


def test_repeated_names_are_refused_wherever_they_stand(verifier: TicketVerifier) -> None:
    text = json.dumps(claims())
    twice = text[:-1] + ', "sub": "bob"}'
    assert "repeats a name in its payload" in refusal(verifier, sign(HEADER, twice)).message
    nested = text[:-1] + ', "limits": {"a": 1, "a": 2}}'
    assert "repeats a name" in refusal(verifier, sign(HEADER, nested)).message
    header = json.dumps(HEADER)[:-1] + ', "alg": "EdDSA"}'
    assert "repeats a name in its header" in refusal(verifier, sign(header, claims())).message


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("[]", "no object"),
        ("{", "not JSON"),
        ('{"exp": NaN}', "no JSON"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_payload_that_is_no_json_object_is_refused(verifier: TicketVerifier, payload: str, reason: str) -> None:
    assert reason in refusal(verifier, sign(HEADER, payload)).message


def test_ticket_over_the_bound_is_refused_however_well_it_is_signed(verifier: TicketVerifier) -> None:
    permissions = [f"permission-number-{n}" for n in range(300)]
    assert "longer than 8192 bytes" in refusal(verifier, sign(HEADER, claims(perms=permissions))).message
    with pytest.raises(TooLargeError, match="do not fit"):
        identity().minter.mint_session("alice", permissions)


def test_signature_of_another_text_is_refused(verifier: TicketVerifier) -> None:
    assert "signature" in refusal(verifier, sign(HEADER, claims(), forge=True)).message
    header, _, signature = sign(HEADER, claims()).split(".")
    other = sign(HEADER, claims(perms=["admin"])).split(".")[1]
    assert "signature" in refusal(verifier, f"{header}.{other}.{signature}").message


def _add_padding(ticket: str) -> str:
    return ticket + "="


@pytest.mark.parametrize(
    "spoil",
    [
        _add_padding,
        lambda t: " " + t,
        lambda t: t + "\n",
        lambda t: t.rpartition(".")[0] + ".",
        lambda t: t.rpartition(".")[0],
        lambda t: t + ".x",
        lambda t: t.replace(".", "..", 1),
        lambda t: t[:40] + "é" + t[41:],
        lambda t: t[:40] + "\x00" + t[41:],
        lambda t: "x" * 9000,
        lambda t: t + "A" * 9000,
    ],
)
def test_malformed_ticket_is_refused_without_being_quoted(
    verifier: TicketVerifier, spoil: Callable[[str], str]
) -> None:
    ticket = session_context().ticket
    error = refusal(verifier, spoil(ticket))
    assert ticket[:30] not in str(error.to_dict())


@given(position=st.integers(0, 10_000), letter=st.sampled_from("ABCxyz019-_."))
def test_ticket_with_any_one_character_changed_proves_nothing_else(position: int, letter: str) -> None:
    ticket = session_context().ticket
    at = position % len(ticket)
    changed = ticket[:at] + letter + ticket[at + 1 :]
    verifier = identity().verifier()
    try:
        principal = verifier.verify(context_pb2.UserExecutionContext(user_id="alice", ticket=changed))
    except TicketError:
        return
    # The unused bits of a last base64 character may differ: the same ticket in another spelling.
    assert principal == verifier.verify(context_pb2.UserExecutionContext(user_id="alice", ticket=ticket))


@given(st.text(max_size=300))
def test_any_text_as_a_ticket_is_a_ticket_error(text: str) -> None:
    try:
        context = context_pb2.UserExecutionContext(user_id="alice", ticket=text)
    except UnicodeEncodeError:
        return
    with pytest.raises(TicketError):
        identity().verifier().verify(context)
