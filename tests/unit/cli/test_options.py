"""What `up` and `demo` are started with: agents, folders, the log's form, ports; and how a command is typed again."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carrel.cli import invocation
from carrel.cli.app import app
from carrel.cli.invocation import own_command
from carrel.cli.reload import watched_paths
from carrel.cli.stack import PACKAGED, open_stack, stack_options
from carrel.cli.up import example_request
from carrel.errors import StartupError


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text("")
    return path


def test_own_agents_come_beside_the_packaged_ones(agents: Path) -> None:
    assert stack_options(Path("s")).agents == []
    assert stack_options(Path("s"), agents=["mine"]).agents == [PACKAGED, str(agents)]
    assert stack_options(Path("s"), agents=["mine"], packaged=False).agents == [str(agents)]


def test_agents_that_are_named_twice_are_loaded_once(agents: Path) -> None:
    assert stack_options(Path("s"), agents=[PACKAGED, "mine", "mine.py", PACKAGED]).agents == [PACKAGED, str(agents)]
    assert stack_options(Path("s"), agents=[PACKAGED]).agents == [PACKAGED]


@pytest.mark.parametrize(("given", "said"), [([], "no agent"), (["mine", PACKAGED], "contradict")])
def test_no_packaged_agents_needs_others_and_bears_no_contradiction(given: list[str], said: str, agents: Path) -> None:
    with pytest.raises(StartupError, match=said) as caught:
        stack_options(Path("s"), agents=given, packaged=False)
    assert caught.value.advice


def test_only_own_agents_are_watched(agents: Path) -> None:
    assert watched_paths([PACKAGED, str(agents)]) == [agents]
    with pytest.raises(StartupError, match="nothing to watch"):
        watched_paths([PACKAGED])


def test_the_users_log_format_wins_over_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARREL_LOG_FORMAT", raising=False)
    assert stack_options(Path("s")).log_format == "console"
    monkeypatch.setenv("CARREL_LOG_FORMAT", "json")
    assert stack_options(Path("s")).log_format == "json"


def test_data_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert stack_options(Path("s"), data=tmp_path).environment == {"LLM_COSTS_DATA_DIR": str(tmp_path)}
    with pytest.raises(StartupError, match="nowhere") as caught:
        stack_options(Path("s"), data=tmp_path / "nowhere")
    assert "LLM_COSTS_DATA_DIR" in caught.value.advice


async def test_settings_are_looked_at_before_anything_is_spawned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARREL_FOO", "1")
    monkeypatch.setenv("CARREL_BRIDGE_LOG__PATHS", "x")
    said: list[str] = []
    with pytest.raises(StartupError, match="2 settings are wrong") as caught:
        async with open_stack(stack_options(tmp_path, port=0), lambda _, line: said.append(line)):
            pass
    assert caught.value.phase == "CONFIGURATION"
    assert caught.value.message.count("CARREL_FOO") == 1
    assert said == []


async def test_a_taken_port_is_left_only_by_who_yields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is wrong with the settings ends the start after the ports are chosen.
    monkeypatch.setenv("CARREL_FOO", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for yields, said in ((False, f"127.0.0.1:{port} can't be listened on"), (True, "CARREL_FOO")):
            with pytest.raises(StartupError, match=said):
                async with open_stack(stack_options(tmp_path, port=port, yields=yields), lambda *_: None):
                    pass


PACKAGED_AGENTS = [{"name": "data"}, {"name": "supervisor"}]


@pytest.mark.parametrize(
    ("agents", "default", "expected"),
    [
        (PACKAGED_AGENTS, "supervisor", 'run "Write a report"'),
        (PACKAGED_AGENTS, "data", 'run "Hello"'),
        ([{"name": "b", "requires": ["c"]}, {"name": "c", "requires": []}], "supervisor", 'run "Hello" --agent c'),
        ([], "supervisor", 'run "MESSAGE" --agent NAME'),
    ],
)
def test_the_example_names_an_agent_that_is_there(agents: list[dict[str, object]], default: str, expected: str) -> None:
    assert example_request(agents, default) == expected


def test_the_command_is_typed_as_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / ".venv" / "bin" / "carrel"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert own_command() == ".venv/bin/carrel"
    assert own_command(Path("my-agents")) == str(script)
    monkeypatch.setenv("PATH", str(script.parent))
    assert own_command() == "carrel"
    # As `python -m carrel.cli`: the script beside the interpreter, and without one the interpreter.
    monkeypatch.setattr(sys, "argv", [invocation.__file__])
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    assert own_command() == "carrel"
    script.unlink()
    assert own_command() == ".venv/bin/python -m carrel.cli"


def test_another_installation_on_the_path_is_not_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = [tmp_path / name / "carrel" for name in ("ours", "theirs")]
    for script in scripts:
        script.parent.mkdir()
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(scripts[1].parent))
    monkeypatch.setattr(sys, "argv", [str(scripts[0])])
    assert own_command() == str(scripts[0])
    monkeypatch.chdir(scripts[0].parent)
    assert own_command() == "./carrel"


@pytest.mark.parametrize("command", ["up", "migrate"])
@pytest.mark.parametrize(
    ("option", "variable", "value", "said"),
    [
        ("--redis", "CARREL_UP_REDIS", "foo", "write redis://host:port/db"),
        ("--redis", "CARREL_UP_REDIS", "redis://me:s3cret@host:99999", "a port in it"),
        ("--postgres", "CARREL_UP_POSTGRES", "foo", "must begin with postgresql://"),
        ("--postgres", "CARREL_UP_POSTGRES", "postgresql://me:s3cret@host", "names no database"),
        ("--postgres", "CARREL_UP_POSTGRES", "postgresql://me:s3cret\u2100@host/x", "is no URL"),
    ],
)
def test_wrong_url_is_told_by_its_option_whoever_gave_it(
    command: str, option: str, variable: str, value: str, said: str, tmp_path: Path
) -> None:
    line = [command, "--state", str(tmp_path / "s")]
    for arguments, environment in (([*line, option, value], {}), (line, {variable: value})):
        done = CliRunner().invoke(app, arguments, env=environment)
        assert done.exit_code == 2, done.output
        assert f"'{option}'" in done.output
        assert said in done.output
        assert "s3cret" not in done.output
        assert "********" not in done.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("value", ["bridge", "bridge=0", "worker=2"])
def test_wrong_replicas_are_a_wrong_command_line(value: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["up", "--state", str(tmp_path / "s"), "--replicas", value])
    assert done.exit_code == 2, done.output
    assert f"'--replicas': {value}: " in done.output
    assert not (tmp_path / "s").exists()
