"""Settings as the command line sees them: checked for all services at once, and shown with where they come from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from carrel.cli.config import show_config
from carrel.cli.output import exit_code_of
from carrel.cli.reconnect import reconnect_backoff, reconnects
from carrel.cli.settings import SETTINGS, check_settings
from carrel.cli.state import StateFolder
from carrel.errors import StartupError


def problems_of(environment: dict[str, str]) -> list[str]:
    with pytest.raises(StartupError) as caught:
        check_settings((service, environment) for service in SETTINGS)
    assert exit_code_of(caught.value) == 78
    problems: list[str] = caught.value.details["problems"]
    assert all(problem in caught.value.message for problem in problems)
    return problems


def test_nothing_is_said_of_settings_that_are_right() -> None:
    check_settings((service, {"CARREL_LOG_LEVEL": "debug", "OTHERS": "1"}) for service in SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CARREL_FEATURES", '{"gateway.compressed_batchez": true}', "gateway.compressed_batchez"),
        ("CARREL_FEATURES_FILE", "/none/features.json", "/none/features.json"),
        ("CARREL_EXECUTION_ENCRYPTION__KEY_FILE", "/none/keys.json", "/none/keys.json"),
        ("CARREL_BRIDGE_ENCRYPTION__KEY_FILE", "FILE", "is not JSON"),
        ("CARREL_AGENT_INSTANCE_AGENTS", "/none/agents.py", "there is no file /none/agents.py"),
        ("CARREL_AGENT_INSTANCE_AGENTS", "entry-points,no_such_module.agents:X", "there is no module no_such_module"),
        ("CARREL_AGENT_INSTANCE_AGENTS", "FILE.py", "SyntaxError"),
    ],
)
def test_what_settings_name_is_looked_at_before_anything_is_started(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    for file in ("wrong", "wrong.py"):
        (tmp_path / file).write_text("class :\n    1 +\n    raise SystemExit(9)\n")
    environment = {name: value.replace("FILE", str(tmp_path / "wrong"))}
    with pytest.raises(StartupError) as caught:
        check_settings((service, environment) for service in SETTINGS)
    assert exit_code_of(caught.value) == 78
    assert words in caught.value.message
    assert caught.value.advice


def test_agents_of_a_stack_are_not_run_to_look_at_them(tmp_path: Path) -> None:
    agents = tmp_path / "agents.py"
    agents.write_text("raise AssertionError('run')\n")
    check_settings([("agent_instance", {"CARREL_AGENT_INSTANCE_AGENTS": f"{agents},json.tool"})])


def test_problems_of_all_services_are_told_together_and_shared_ones_once() -> None:
    problems = problems_of(
        {
            "CARREL_FOO": "1",
            "CARREL_LOG_LEVEL": "loud",
            "CARREL_BRIDGE_LISTEN": "nowhere",
            "CARREL_GATEWAY_NOTHING_LIKE_IT": "1",
            "MAX_ENGINES_PER_USER": "many",
        }
    )
    assert [problem.partition(" ")[0].partition("=")[0] for problem in problems] == [
        "CARREL_BRIDGE_LISTEN",
        "CARREL_FOO",
        "CARREL_GATEWAY_NOTHING_LIKE_IT",
        "CARREL_LOG_LEVEL",
        "MAX_ENGINES_PER_USER",
    ]


def test_the_best_guess_of_all_services_is_the_one_that_is_told() -> None:
    [problem] = problems_of({"CARREL_EMITER_LISTEN": "127.0.0.1:0"})
    assert "did you mean CARREL_EMITTER_LISTEN?" in problem


def shown(
    capsys: pytest.CaptureFixture[str], state: Path, environ: dict[str, str], service: str = ""
) -> dict[tuple[str, str], dict[str, object]]:
    assert show_config(service, state, as_json=True, environ=environ) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {(row["service"], row["name"].partition(" ")[0]): row for row in rows}


def test_a_running_stacks_addresses_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    settings = {"bridge": {"CARREL_BRIDGE_LISTEN": "127.0.0.1:7"}, "emitter": {"CARREL_EMITTER_BRIDGE": "127.0.0.1:7"}}
    state.write_stack({"url": "http://127.0.0.1:6", "supervisor": os.getpid(), "settings": settings})
    rows = shown(capsys, tmp_path, {"CARREL_BRIDGE_LISTEN": "127.0.0.1:1", "CARREL_LOG_LEVEL": "debug"})
    assert rows["bridge", "CARREL_BRIDGE_LISTEN"]["value"] == "127.0.0.1:7"
    assert rows["bridge", "CARREL_BRIDGE_LISTEN"]["source"] == "stack"
    assert rows["emitter", "CARREL_EMITTER_BRIDGE"]["value"] == "127.0.0.1:7"
    assert rows["emitter", "CARREL_LOG_LEVEL"]["source"] == "environment (CARREL_LOG_LEVEL)"
    assert rows["emitter", "CARREL_EMITTER_LISTEN"]["source"] == "default"
    assert show_config("", tmp_path, as_json=False, environ={}) == 0
    assert f"A stack runs in {tmp_path} at http://127.0.0.1:6" in capsys.readouterr().out


def test_without_a_stack_the_values_are_labelled_as_those_of_separate_services(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert show_config("bridge", tmp_path, as_json=False, environ={}) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"No stack runs in {tmp_path}: these are the values of services that are started one by one")
    assert "CARREL_BRIDGE_LISTEN = 127.0.0.1:50054\n" in out
    rows = shown(capsys, tmp_path, {}, "bridge")
    assert rows["bridge", "CARREL_STATE_DIR"]["value"] == str(tmp_path)


def test_the_command_lines_own_settings_are_shown_and_its_token_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    environ = {"WEBSOCKET_MAX_RECONNECT_ATTEMPTS": "7", "CARREL_CLI_TOKEN": "a.b.c"}
    rows = shown(capsys, tmp_path, environ, "cli")
    assert rows["cli", "WEBSOCKET_MAX_RECONNECT_ATTEMPTS"]["value"] == "7"
    assert "a.b.c" not in str(rows)
    assert show_config("", tmp_path, as_json=False, environ={"WEBSOCKET_MAX_RECONNECT_ATTEMPTS": "x"}) == 1
    assert "WEBSOCKET_MAX_RECONNECT_ATTEMPTS=x is wrong" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("", 3), (" ", 3), ("0", 0), ("12", 12), ("10000", 10_000)])
def test_reconnect_attempts(text: str, expected: int) -> None:
    environ = {"WEBSOCKET_MAX_RECONNECT_ATTEMPTS": text}
    assert reconnects(environ) == expected
    backoff = reconnect_backoff(environ)
    # The loss itself is the first failure.
    assert backoff.delay_s(expected + 1) is None
    assert expected == 0 or backoff.delay_s(expected) is not None


@pytest.mark.parametrize("text", ["three", "-1", "1.5", "10001", "9" * 5000, "\u0663"])
def test_reconnect_attempts_that_are_no_number_are_refused(text: str) -> None:
    with pytest.raises(StartupError, match="whole number from 0 to 10000") as caught:
        reconnects({"WEBSOCKET_MAX_RECONNECT_ATTEMPTS": text})
    assert exit_code_of(caught.value) == 78
