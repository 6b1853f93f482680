"""Rotating the keys of tickets in a folder: the order that is kept, and what is refused too early."""

import json
from pathlib import Path

import pytest

from carrel.cli.key_rotation import KeyRotation
from carrel.cli.keys import make_keys
from carrel.errors import StartupError, TicketError
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity.keys import KeySet, load_signing_key
from servicekit.identity.principals import Scope
from servicekit.identity.tickets import TicketMinter, TicketVerifier


class _Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def rotation(tmp_path: Path, clock: _Clock) -> KeyRotation:
    make_keys(tmp_path)
    return KeyRotation(tmp_path, clock)


def _taken(rotation: KeyRotation, ticket: str) -> bool:
    verifier = TicketVerifier(KeySet.from_jwks_file(rotation.jwks))
    try:
        verifier.verify(UserExecutionContext(user_id="alice", ticket=ticket))
    except TicketError:
        return False
    return True


def _ticket(path: Path) -> str:
    return TicketMinter(load_signing_key(path), "gateway").mint_session("alice")


def test_at_every_step_tickets_of_the_keys_in_use_are_taken(rotation: KeyRotation, clock: _Clock) -> None:
    old = _ticket(rotation.signing("gateway"))
    new = rotation.publish("gateway")
    assert _taken(rotation, old)
    assert _taken(rotation, _ticket(rotation.next("gateway")))
    assert load_signing_key(rotation.signing("gateway")).kid != new.kid
    clock.now += 121
    former, current = rotation.sign("gateway")
    assert current.kid == new.kid == load_signing_key(rotation.signing("gateway")).kid
    assert not rotation.next("gateway").exists()
    assert _taken(rotation, old)
    assert _taken(rotation, _ticket(rotation.signing("gateway")))
    clock.now += 90_121
    assert rotation.retire() == ([former.kid], [])
    assert not _taken(rotation, old)
    assert _taken(rotation, _ticket(rotation.signing("gateway")))


def test_nothing_is_signed_with_a_key_that_is_not_published_for_long_enough(
    rotation: KeyRotation, clock: _Clock
) -> None:
    with pytest.raises(StartupError, match="has no next key"):
        rotation.sign("gateway")
    key = rotation.publish("gateway")
    with pytest.raises(StartupError, match="has a next key already"):
        rotation.publish("gateway")
    clock.now += 119
    with pytest.raises(StartupError, match="published for less than 120 s"):
        rotation.sign("gateway")
    clock.now += 1
    data = json.loads(rotation.jwks.read_text())
    rotation.jwks.write_text(json.dumps({"keys": [jwk for jwk in data["keys"] if jwk["kid"] != key.kid]}))
    with pytest.raises(StartupError, match="nobody would take what it signs"):
        rotation.sign("gateway")


def test_no_key_is_retired_that_tickets_in_flight_may_need(rotation: KeyRotation, clock: _Clock) -> None:
    rotation.publish("execution")
    clock.now += 120
    old, _ = rotation.sign("execution")
    removed, ((kid, left),) = rotation.retire()
    assert (removed, kid, left) == ([], old.kid, 90_120.0)
    clock.now += 3700
    assert rotation.retire(3600, 120) == ([], [(old.kid, 20.0)])
    clock.now += 20
    assert rotation.retire(3600, 120) == ([old.kid], [])
    # The keys in use stay, however old.
    clock.now += 10_000_000
    assert rotation.retire() == ([], [])


def test_a_key_that_was_replaced_by_hand_is_kept_for_as_long(rotation: KeyRotation, clock: _Clock) -> None:
    by_hand = rotation.publish("gateway")
    rotation.next("gateway").unlink()
    assert rotation.retire() == ([], [(by_hand.kid, 90_120.0)])
    clock.now += 90_120
    assert rotation.retire() == ([by_hand.kid], [])


def test_nothing_is_retired_in_a_folder_that_has_not_all_keys(
    rotation: KeyRotation, tmp_path: Path, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = tmp_path / "handed"
    handed.mkdir()
    for path in (rotation.jwks, rotation.signing("gateway")):
        (handed / path.name).write_bytes(path.read_bytes())
        (handed / path.name).chmod(0o600)
    before = (handed / rotation.jwks.name).read_bytes()
    for _ in range(2):
        with pytest.raises(StartupError, match=r"has no execution\.jwk\.json"):
            KeyRotation(handed, clock).retire(0, 0)
        clock.now += 1_000_000
    assert (handed / rotation.jwks.name).read_bytes() == before

    def denied(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    for step in (rotation.retire, rotation.states, lambda: rotation.publish("gateway")):
        with pytest.raises(StartupError, match="cannot be looked at: Permission denied"):
            step()


def test_the_key_of_execution_signs_run_tickets_only(rotation: KeyRotation) -> None:
    assert rotation.publish("execution").scopes == frozenset({Scope.RUN})
    assert {(state.issuer, state.state) for state in rotation.states()} == {
        ("gateway", "signing"),
        ("execution", "signing"),
        ("execution", "next"),
    }


def test_files_that_are_not_there_are_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read") as refused:
        KeyRotation(tmp_path).publish("gateway")
    assert "carrel keys init" in refused.value.advice
    (tmp_path / "tickets.jwks.json").write_text("[]")
    with pytest.raises(StartupError, match="is no JWKS file"):
        KeyRotation(tmp_path).retire()
