"""``carrel keys init``: what is made, that nothing is replaced, and who gets what."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carrel.cli.app import app
from carrel.cli.certificates import keep_certificates, make_certificates
from carrel.cli.keys import HOLDERS, hand_out, make_keys
from carrel.cli.state import StateFolder
from carrel.errors import StartupError
from servicekit.identity.keys import KeySet, load_signing_key
from servicekit.identity.principals import Scope
from servicekit.tls.settings import IDENTITIES


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_folder_of_keys_has_the_names_of_a_state_folder(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    made = make_keys(state.keys, stores=True)
    assert {state.keys / name for name in made} == set(state.keys.iterdir())
    public = KeySet.from_jwks_file(state.jwks)
    gateway, execution = load_signing_key(state.gateway_key), load_signing_key(state.execution_key)
    assert set(public.kids()) == {gateway.kid, execution.kid}
    found = public.get(execution.kid)
    assert found is not None
    assert found.scopes == {Scope.RUN}
    assert len(state.login_secret.read_bytes()) >= 32
    assert {mode(path) for path in state.keys.iterdir() if path != state.jwks} == {0o600}
    assert mode(state.keys) == 0o700


def test_what_is_there_stays(tmp_path: Path) -> None:
    make_keys(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert make_keys(tmp_path, stores=True) == ["postgres.password", "redis.password"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_some_of_the_ticket_keys_are_no_reason_to_replace_the_others(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "execution.jwk.json").unlink()
    with pytest.raises(StartupError, match=r"but lacks execution\.jwk\.json"):
        make_keys(tmp_path)


def test_production_gets_no_login_secret(tmp_path: Path) -> None:
    assert "login.secret" not in make_keys(tmp_path, login=False)


def test_each_holder_gets_its_own_and_nothing_else(tmp_path: Path) -> None:
    keys, handed = tmp_path / "keys", tmp_path / "handed"
    make_keys(keys, stores=True)
    for name in HOLDERS:
        (handed / name).mkdir(parents=True)
    assert dict(hand_out(keys, handed)) == {name: list(names) for name, names in HOLDERS.items()}
    for name, names in HOLDERS.items():
        assert sorted(path.name for path in (handed / name).iterdir()) == sorted(names)
    assert mode(handed / "gateway" / "gateway.jwk.json") == 0o600
    # The servers' own users read these.
    assert mode(handed / "postgres" / "postgres.password") == 0o444
    assert mode(handed / "execution" / "postgres.password") == 0o600
    private = {"gateway.jwk.json", "execution.jwk.json", "login.secret"}
    assert not private & {path.name for name in ("emitter", "bridge") for path in (handed / name).iterdir()}


def test_a_second_hand_out_brings_what_has_changed(tmp_path: Path) -> None:
    keys, handed = tmp_path / "keys", tmp_path / "handed"
    make_keys(keys)
    (handed / "emitter").mkdir(parents=True)
    list(hand_out(keys, handed))
    (keys / "tickets.jwks.json").write_text('{"keys": []}', encoding="utf-8")
    list(hand_out(keys, handed))
    assert (handed / "emitter" / "tickets.jwks.json").read_text(encoding="utf-8") == '{"keys": []}'


def test_a_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    with pytest.raises(StartupError, match="holds no folder of a service"):
        list(hand_out(tmp_path / "keys", tmp_path))


def test_the_command_says_what_it_made_and_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    done = CliRunner().invoke(app, ["keys", "init", str(folder), "--no-login"])
    assert done.exit_code == 0, done.output
    assert "made tickets.jwks.json, gateway.jwk.json, execution.jwk.json" in done.output
    assert "everything is there" in CliRunner().invoke(app, ["keys", "init", str(folder), "--no-login"]).output
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = CliRunner().invoke(app, ["keys", "init", str(tmp_path / "file")])
    assert done.exit_code != 0
    assert "can't be read or written" in done.output


def test_certificates_are_made_once_renewed_at_half_of_their_life_and_handed_out(tmp_path: Path) -> None:
    keys, handed = tmp_path / "keys", tmp_path / "handed"
    for name in HOLDERS:
        (handed / name).mkdir(parents=True)

    def certificates() -> dict[str, bytes]:
        return {name: (keys / "tls" / name / "tls.crt").read_bytes() for name in IDENTITIES}

    command = ["keys", "init", str(keys), "--stores", "--certs", "--hand-out", str(handed)]
    assert CliRunner().invoke(app, command).exit_code == 0
    first = certificates()
    again = CliRunner().invoke(app, command)
    assert "everything is there" in again.output
    assert certificates() == first
    for name in ("gateway", "execution", "agent_instance", "emitter", "bridge", "operator"):
        assert (handed / name / "tls.crt").read_bytes() == first[name]
        assert mode(handed / name / "tls.key") == 0o600
    assert {path.name for path in (handed / "operator").iterdir()} == {"ca.crt", "tls.crt", "tls.key"}
    assert not {"tls.key", "ca.key"} & {path.name for path in (handed / "redis").iterdir()}
    # Certificates begin five minutes ago, for peers whose clocks are behind: this one is past its half.
    list(make_certificates(keys / "tls", services=("bridge",), life=timedelta(minutes=4)))
    assert keep_certificates(keys / "tls", life=timedelta(days=1), ca_life=timedelta(days=1)) == ["bridge"]
    assert {name for name, text in certificates().items() if text != first[name]} == {"bridge"}
