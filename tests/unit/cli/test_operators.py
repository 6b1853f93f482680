"""How an operator gets in: what is named by half, or would give the ticket away, is told before anything is called."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from carrel.cli.operators import OperatorOptions, find_operator
from carrel.errors import CarrelError, InvalidConfigurationError, StartupError
from tests.support.certificates import certificate_for

HERE, THERE, GATEWAY = "127.0.0.1:50051", "execution:50051", "https://agents.example.com"


@pytest.fixture
def token(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("a.b.c\n", encoding="ascii")
    return str(path)


def certificate(folder: Path, service: str = "operator") -> dict[str, str]:
    tls = certificate_for(folder, service)
    return {"CARREL_TLS__CERT": str(tls.cert), "CARREL_TLS__KEY": str(tls.key), "CARREL_TLS__CA": str(tls.ca)}


def test_options_go_before_settings(tmp_path: Path, token: str) -> None:
    environ = {
        **certificate(tmp_path),
        "CARREL_OPERATOR_EXECUTION": "elsewhere:1",
        "CARREL_OPERATOR_URL": "agents.example.com",
        "CARREL_OPERATOR_TOKEN_FILE": token,
        "CARREL_TLS__TRUST_DOMAIN": "carrel.internal",
    }
    by_settings = find_operator(OperatorOptions(tmp_path), environ)
    assert (by_settings.address, by_settings.login) == ("elsewhere:1", ("http://agents.example.com", "a.b.c"))
    by_options = find_operator(OperatorOptions(tmp_path, THERE, GATEWAY), environ)
    assert (by_options.address, by_options.login) == (THERE, (GATEWAY, "a.b.c"))
    assert by_options.tls is not None
    assert "a.b.c" not in repr(by_options)


def test_a_token_may_come_by_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a.b.c\n"))
    operator = find_operator(OperatorOptions(tmp_path, HERE, GATEWAY, "-"), {})
    assert (operator.login, operator.tls) == ((GATEWAY, "a.b.c"), None)


@pytest.mark.parametrize(
    ("options", "environ", "words"),
    [
        (("", "", ""), {}, "no stack runs in the state folder"),
        (("", GATEWAY, ""), {}, "--execution is missing"),
        ((HERE, "", ""), {}, "needs --url and --token-file"),
        ((HERE, GATEWAY, ""), {}, "needs --token-file"),
        ((HERE, GATEWAY, "/none"), {}, "/none"),
        ((THERE, GATEWAY, "TOKEN"), {}, "CARREL_TLS__CERT"),
        ((HERE, GATEWAY, "TOKEN"), {"CARREL_ENVIRONMENT": "production"}, "production needs TLS"),
        ((HERE, GATEWAY, "TOKEN"), {"CARREL_OPERATOR_EXECUTOIN": "x"}, "is not a setting"),
        (("", "", ""), {"CARREL_OPERATOR_EXECUTION": "a:1,b:2"}, "write host:port"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, token: str, options: tuple[str, str, str], environ: dict[str, str], words: str
) -> None:
    execution, url, file = options
    chosen = OperatorOptions(tmp_path, execution, url, file.replace("TOKEN", token))
    with pytest.raises(StartupError) as refused:
        find_operator(chosen, environ)
    assert words in f"{refused.value.message} {refused.value.advice}"


def test_another_layer_may_encrypt(tmp_path: Path, token: str) -> None:
    chosen = OperatorOptions(tmp_path, THERE, GATEWAY, token)
    environ = {"CARREL_ENVIRONMENT": "production", "CARREL_TLS__MODE": "mesh"}
    assert find_operator(chosen, environ).tls is None


def test_another_services_certificate_and_a_token_for_everybody_to_read_are_refused(tmp_path: Path, token: str) -> None:
    chosen = OperatorOptions(tmp_path, THERE, GATEWAY, token)
    with pytest.raises(InvalidConfigurationError, match="is not for this service"):
        find_operator(chosen, certificate(tmp_path, "doctor"))
    Path(token).chmod(0o644)
    with pytest.raises(InvalidConfigurationError, match="every user of this machine"):
        find_operator(chosen, certificate(tmp_path))
    Path(token).chmod(0o600)
    Path(token).write_text("two words", encoding="ascii")
    with pytest.raises(CarrelError, match="holds no token"):
        find_operator(chosen, certificate(tmp_path))
