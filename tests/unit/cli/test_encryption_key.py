"""``carrel encryption-key`` and ``carrel reencrypt`` as commands: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carrel.cli.app import app

RUNNER = CliRunner()


def test_keys_are_put_in_front_of_those_that_are_there(tmp_path: Path) -> None:
    path, output = tmp_path / "keys.json", ""
    for kid in ("k1", "k2"):
        result = RUNNER.invoke(app, ["encryption-key", str(path), "--id", kid])
        assert result.exit_code == 0, result.output
        assert kid in result.output
        output += result.output
    assert [jwk["kid"] for jwk in json.loads(path.read_text())["keys"]] == ["k2", "k1"]
    secrets = {jwk["k"] for jwk in json.loads(path.read_text())["keys"]}
    assert not any(secret in output for secret in secrets)
    again = RUNNER.invoke(app, ["encryption-key", str(path), "--id", "k1"])
    assert again.exit_code != 0
    assert "no other key's name" in again.output


def test_keys_made_within_a_second_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for _ in range(3):
        made = RUNNER.invoke(app, ["encryption-key", str(path)])
        assert made.exit_code == 0, made.output
    assert len({jwk["kid"] for jwk in json.loads(path.read_text())["keys"]}) == 3


def test_reencrypting_needs_a_store_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = RUNNER.invoke(app, ["reencrypt", "--state", str(tmp_path)])
    assert nothing.exit_code != 0
    assert "there is no run store" in nothing.output
    assert RUNNER.invoke(app, ["migrate", "--state", str(tmp_path)]).exit_code == 0
    without = RUNNER.invoke(app, ["reencrypt", "--state", str(tmp_path)])
    assert without.exit_code != 0
    assert "CARREL_EXECUTION_ENCRYPTION__KEY_FILE" in without.output
    path = tmp_path / "keys.json"
    assert RUNNER.invoke(app, ["encryption-key", str(path)]).exit_code == 0
    monkeypatch.setenv("CARREL_EXECUTION_ENCRYPTION__KEY_FILE", str(path))
    done = RUNNER.invoke(app, ["reencrypt", "--state", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "sealed with the newest key alone" in done.output
    back = RUNNER.invoke(app, ["reencrypt", "--plain", "--state", str(tmp_path)])
    assert back.exit_code == 0, back.output
    assert "plain again" in back.output
