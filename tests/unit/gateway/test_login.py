"""Login tokens: every claim, every attack that a lenient verifier would let through; key files and their changes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from carrel.errors import InvalidConfigurationError, TokenError, TokenExpiredError
from gateway.login import ClaimNames, LoginVerifier, bearer_token
from gateway.login_keys import LoginKey, LoginKeys

SECRET = b"a-shared-secret-of-32-bytes-or-more"
CLAIMS: dict[str, Any] = {"sub": "alice", "iss": "idp", "aud": "carrel"}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    merged = {**CLAIMS, "iat": now, "exp": now + 60, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def shared(names: ClaimNames | None = None) -> LoginVerifier:
    return LoginVerifier(LoginKeys([LoginKey("", "HS256", SECRET)]), "idp", "carrel", names)


def signed(body: dict[str, Any] | None = None, headers: dict[str, Any] | None = None) -> str:
    return jwt.encode(body or claims(), SECRET, algorithm="HS256", headers=headers)


def by_hand(header: str, payload: str, secret: bytes = SECRET) -> str:
    parts = [base64.urlsafe_b64encode(text.encode()).rstrip(b"=") for text in (header, payload)]
    signature = hmac.new(secret, b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_a_good_token_says_who_and_what() -> None:
    body = claims(scope="a:read b:write", permissions=["c:x"], limits={"max_engines_per_user": 5})
    login = shared().verify(signed(body))
    assert login.user_id == "alice"
    assert login.permissions == {"a:read", "b:write", "c:x"}
    assert dict(login.limits) == {"max_engines_per_user": 5}
    assert login.expires_at == body["exp"]
    assert not login.is_service


def test_claims_may_have_names_of_their_issuers() -> None:
    names = ClaimNames(user="email", scope="scp", permissions="roles", limits="https://carrel/limits")
    body = claims(email="alice@example.org", scp=["a", "b"], roles="c", **{"https://carrel/limits": {"n": 1}})
    login = shared(names).verify(signed(body))
    assert (login.user_id, set(login.permissions), dict(login.limits)) == (
        "alice@example.org",
        {"a", "b", "c"},
        {"n": 1},
    )


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("sub", "exp", "iat", "iss", "aud")),
        {"iss": "other"},
        {"iss": ["idp"]},
        {"aud": "other"},
        {"aud": []},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a/b"},
        {"sub": "a" * 129},
        {"sub": "ü"},
        {"exp": "tomorrow"},
        {"exp": 1e400},
        {"exp": True},
        {"iat": 4_000_000_000},
        {"nbf": 4_000_000_000},
        {"iat": "now"},
        {"scope": 5},
        {"permissions": {"a": 1}},
        {"permissions": ["a", 5]},
        {"permissions": ["a\n"]},
        {"permissions": [f"p{n}" for n in range(201)]},
        {"limits": []},
        {"limits": {"n": "5"}},
        {"limits": {"n": -1}},
        {"limits": {"n": True}},
    ],
    ids=str,
)
def test_claims_that_are_missing_or_wrong_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        shared().verify(by_hand('{"alg":"HS256"}', json.dumps(claims(**changes))))


def test_a_token_past_its_end_is_told_apart() -> None:
    now = int(time.time())
    with pytest.raises(TokenExpiredError):
        shared().verify(signed(claims(iat=now - 100, exp=now - 6)))
    assert shared().verify(signed(claims(iat=now - 100, exp=now - 2))).user_id == "alice", "clocks differ a little"


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"none"}',
        '{"alg":"HS512"}',
        '{"alg":"RS256"}',
        '{"alg":["HS256"]}',
        '{"alg":"HS256","alg":"HS256"}',
        '{"alg":"HS256","crit":["exp"]}',
        '{"alg":"HS256","b64":false}',
        '{"alg":"HS256","typ":"txntoken+jwt"}',
        '{"alg":"HS256","typ":5}',
        '{"alg":"HS256","kid":5}',
        "[]",
        "{",
        '{"alg":NaN}',
    ],
)
def test_headers_that_choose_their_own_rules_are_refused(header: str) -> None:
    with pytest.raises(TokenError):
        shared().verify(by_hand(header, json.dumps(claims())))


def test_headers_that_bring_a_key_are_not_believed() -> None:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    jwk = json.loads(RSAAlgorithm.to_jwk(own.public_key()))
    for header in ({"jwk": jwk}, {"jku": "https://evil.net/keys"}, {"x5u": "https://evil.net"}):
        with pytest.raises(TokenError):
            shared().verify(jwt.encode(claims(), own, algorithm="RS256", headers=header))


def test_a_claim_that_comes_twice_is_refused() -> None:
    text = json.dumps(claims())[:-1] + ',"sub":"bob"}'
    with pytest.raises(TokenError):
        shared().verify(by_hand('{"alg":"HS256"}', text))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "a" * 20_000, "é.b.c", "a.b.c.d.e", "Bearer x", "\n"])
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(TokenError) as refused:
        shared().verify(text)
    assert len(text) < 2 or text not in str(refused.value)


def test_a_public_key_is_never_taken_for_a_shared_secret(tmp_path: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [json.loads(RSAAlgorithm.to_jwk(private.public_key())) | {"kid": "k"}]}))
    verifier = LoginVerifier(LoginKeys.from_jwks_file(path), "idp", "carrel")
    assert verifier.verify(jwt.encode(claims(), private, algorithm="RS256", headers={"kid": "k"})).user_id == "alice"
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TokenError):
        verifier.verify(by_hand('{"alg":"HS256","kid":"k"}', json.dumps(claims()), pem))


def test_each_kind_of_public_key_verifies_its_own_algorithm(tmp_path: Path) -> None:
    keys: list[tuple[Any, str, str, Any]] = [
        (rsa.generate_private_key(public_exponent=65537, key_size=2048), "PS256", "rsa", RSAAlgorithm),
        (ec.generate_private_key(ec.SECP256R1()), "ES256", "ec", ECAlgorithm),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA", "ed", OKPAlgorithm),
    ]
    jwks = [json.loads(kind.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"} for key, _, kid, kind in keys]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [*jwks, {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]}))
    verifier = LoginVerifier(LoginKeys.from_jwks_file(path), "idp", "carrel")
    for key, algorithm, kid, _ in keys:
        token = jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": kid})
        assert verifier.verify(token).user_id == "alice", algorithm
        with pytest.raises(TokenError):
            verifier.verify(jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": "another"}))
        with pytest.raises(TokenError):
            verifier.verify(jwt.encode(claims(), key, algorithm=algorithm))


def test_keys_follow_their_file_and_a_broken_file_keeps_those_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("servicekit.private_files.time.monotonic", lambda: clock[0])
    old, new = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "jwks.json"

    def write(text: str) -> None:
        path.write_text(text)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        clock[0] += 10

    def jwks(**named: ed25519.Ed25519PrivateKey) -> str:
        keys = [json.loads(OKPAlgorithm.to_jwk(key.public_key())) | {"kid": kid} for kid, key in named.items()]
        return json.dumps({"keys": keys})

    write(jwks(old=old))
    verifier = LoginVerifier(LoginKeys.from_jwks_file(path), "idp", "carrel")
    old_token = jwt.encode(claims(), old, algorithm="EdDSA", headers={"kid": "old"})
    new_token = jwt.encode(claims(), new, algorithm="EdDSA", headers={"kid": "new"})
    verifier.verify(old_token)
    write("{ half a file")
    verifier.verify(old_token)
    write(jwks(new=new))
    verifier.verify(new_token)
    with pytest.raises(TokenError):
        verifier.verify(old_token)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"keys": 5}', '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}']
)
def test_a_file_without_usable_keys_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(InvalidConfigurationError):
        LoginKeys.from_jwks_file(path)


@pytest.mark.parametrize(
    ("header", "token"), [(None, ""), ("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("BEARER a.b-_c", "a.b-_c")]
)
def test_the_authorization_header(header: str | None, token: str) -> None:
    assert bearer_token(header) == token


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearer a b", "Bearer a, Bearer b"])
def test_an_authorization_header_of_another_form_is_refused(header: str) -> None:
    with pytest.raises(TokenError):
        bearer_token(header)
