"""Whose tokens a stack of ``carrel up`` takes: its own secret's, unless an issuer is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.cli.stack import _login
from carrel.cli.state import StateFolder

_SECRET = "CARREL_GATEWAY_LOGIN__SECRET_FILE"


@pytest.mark.parametrize(
    "environ", [{}, {"CARREL_GATEWAY_LOGIN__DISCOVERY": "false"}, {"CARREL_GATEWAY_LOGIN__JWKS": ""}]
)
def test_the_secret_of_the_state_folder_is_used(tmp_path: Path, environ: dict[str, str]) -> None:
    state = StateFolder(tmp_path)
    assert _login(state, environ) == {_SECRET: str(state.login_secret)}


@pytest.mark.parametrize(
    ("name", "value"), [("DISCOVERY", "true"), ("JWKS_URL", "http://127.0.0.1:1/keys"), ("JWKS", "/keys.json")]
)
def test_an_issuer_that_is_named_is_the_only_one(tmp_path: Path, name: str, value: str) -> None:
    assert _login(StateFolder(tmp_path), {f"CARREL_GATEWAY_LOGIN__{name}": value}) == {}
