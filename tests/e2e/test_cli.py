"""The command line against a whole stack: what a person types, and what they see."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from carrel.cli.tokens import DEFAULT_PERMISSIONS
from tests.support.stack import (
    SERVICES,
    RunningStack,
    carrel_command,
    clean_environment,
    run_carrel,
    running_stack,
)

Eventually = Callable[..., Awaitable[object]]

STAGES = ("supervisor", "data", "optimization", "report")
AGENTS_FILE = """
import asyncio
from carrel import Agent, AgentContext, Request


class Greeter(Agent):
    name = "greeter"

    async def run(self, ctx: AgentContext, request: Request) -> dict:
        if request.params.get("wait"):
            await ctx.thinking("waiting")
            await asyncio.sleep(60)
        if request.params.get("fail"):
            raise ValueError("no")
        await ctx.artifacts.put("greeting.md", f"# Hello {request.message}", "text/markdown")
        return {"answer": ANSWER, "params": dict(request.params)}
"""


def agents_file(folder: Path, answer: str = "hello") -> Path:
    path = folder / "my_agents.py"
    path.write_text(AGENTS_FILE.replace("ANSWER", repr(answer)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def greeter(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("greeter")
    agents_file(folder)
    # As a module of the folder that the stack is started in.
    with running_stack(folder, agents=["my_agents"]) as running:
        yield running


def state_of(stack: RunningStack) -> str:
    return str(stack.folder / "state")


def events_in(output: str) -> list[dict[str, Any]]:
    return [body for line in output.splitlines() if "event_type" in (body := json.loads(line))]


def test_run_shows_every_stage_saves_the_report_and_exits_0(shared_stack: RunningStack, tmp_path: Path) -> None:
    done = run_carrel("run", "Write a report", "--state", state_of(shared_stack), "--save", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        assert f"▶ {stage}" in done.stdout
        assert f"✓ {stage}" in done.stdout
    assert "✓ the run succeeded" in done.stdout
    assert f"report: {Path('out') / 'report.md'}" in done.stdout
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8").startswith("# ")
    assert len(list((tmp_path / "out").glob("*.svg"))) >= 2


def test_run_json_prints_one_event_a_line_and_then_what_was_saved(shared_stack: RunningStack, tmp_path: Path) -> None:
    done = run_carrel("run", "Optimize", "--json", "--user", "jo", "--state", state_of(shared_stack), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = events_in(done.stdout)
    assert [event["offset"] for event in events] == list(range(events[0]["offset"], events[0]["offset"] + len(events)))
    assert {event["user_id"] for event in events} == {"jo"}
    assert events[-1]["event_type"] == "run_completed"
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "saved"


def test_params_reach_the_agent_as_json_or_text(greeter: RunningStack, tmp_path: Path) -> None:
    done = run_carrel(
        *("run", "you", "--agent", "greeter", "--json", "--state", state_of(greeter)),
        *("-p", "n=3", "-p", "text=three", "-p", "deep.list=[1, 2]"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = events_in(done.stdout)[-1]["data"]["result"]
    assert result == {"answer": "hello", "params": {"n": 3, "text": "three", "deep": {"list": [1, 2]}}}


def test_agents_file_is_loaded_and_its_artifact_saved_in_the_state_folder(
    greeter: RunningStack, tmp_path: Path
) -> None:
    done = run_carrel("run", "World", "--pipeline", "greeter", "--state", state_of(greeter), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = next(line.split("report: ")[1] for line in done.stdout.splitlines() if "report: " in line)
    assert Path(saved).read_text(encoding="utf-8") == "# Hello World"
    assert Path(saved).is_relative_to(greeter.folder / "state" / "saved")
    after = done.stdout.partition("✓ the run succeeded\n")[2].splitlines()
    assert after[0].split() == [after[0].split()[0], "hello"], "the result is shown, as text"


def test_failed_run_exits_1_and_refused_one_3_and_wrong_usage_2(greeter: RunningStack, tmp_path: Path) -> None:
    at = ("--state", state_of(greeter))
    failed = run_carrel("run", "x", "--agent", "greeter", "-p", "fail=true", *at, cwd=tmp_path)
    assert failed.returncode == 1
    assert "✗ the run ended as FAILED" in failed.stdout
    unknown = run_carrel("run", "x", "--agent", "nobody", *at, cwd=tmp_path)
    assert unknown.returncode == 3
    assert "error:" in unknown.stderr
    assert "nobody" in unknown.stderr
    placeholder = run_carrel("run", "x", "--agent", "greeter", "--thread", "none", *at, cwd=tmp_path)
    assert placeholder.returncode == 3
    assert "thread_id" in placeholder.stderr
    token = run_carrel("run", "x", "--token", "no.token.this", *at, cwd=tmp_path)
    assert token.returncode == 3
    assert "token" in token.stderr
    assert run_carrel("run", "x", "-p", "novalue", *at, cwd=tmp_path).returncode == 2
    assert run_carrel("run", *at, cwd=tmp_path).returncode == 2


def test_ctrl_c_cancels_the_run_and_exits_130(greeter: RunningStack, tmp_path: Path) -> None:
    command = carrel_command(
        "run", "x", "--agent", "greeter", "-p", "wait=true", "--json", "--state", state_of(greeter)
    )
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event_type"] == "agent_thinking":
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert events_in(rest)[-1]["data"]["status"] == "CANCELLED"


def test_run_without_a_stack_says_how_to_start_one(tmp_path: Path) -> None:
    done = run_carrel("run", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "carrel up" in done.stderr
    gone = run_carrel("run", "x", "--url", "http://127.0.0.1:9", "--token", "a.b.c", cwd=tmp_path)
    assert gone.returncode == 1
    assert "cannot be reached" in gone.stderr


def test_watch_of_a_run_repeats_it_from_its_first_event(shared_stack: RunningStack, tmp_path: Path) -> None:
    at = ("--state", state_of(shared_stack), "--user", "watcher")
    ran = events_in(run_carrel("run", "Profile", "--json", *at, cwd=tmp_path).stdout)
    again = run_carrel("watch", "--run", str(ran[0]["run_id"]), "--json", *at, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert events_in(again.stdout) == ran
    other = run_carrel("watch", "--run", str(ran[0]["run_id"]), *at[:2], "--user", "someone", cwd=tmp_path)
    assert other.returncode == 3
    assert ran[0]["run_id"] not in other.stdout


def test_watch_of_several_runs_says_whose_each_line_is(greeter: RunningStack, tmp_path: Path) -> None:
    at = ("--state", state_of(greeter), "--user", "several")
    runs = []
    for _ in range(2):
        done = run_carrel("run", "x", "--agent", "greeter", "--json", *at, cwd=tmp_path)
        runs.append(str(events_in(done.stdout)[0]["run_id"]))
    lines: list[str] = []
    with subprocess.Popen(
        carrel_command("watch", "--all", *at), cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if sum("the run succeeded" in line for line in lines) == 2:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    labels = [line.split()[1] for line in lines]
    assert list(dict.fromkeys(labels)) == [run[-8:] for run in runs]


def test_reconnect_attempts_that_are_no_number_are_refused(shared_stack: RunningStack, tmp_path: Path) -> None:
    for command in (["run", "x"], ["watch"]):
        done = run_carrel(
            *command,
            *("--state", state_of(shared_stack)),
            cwd=tmp_path,
            environment={"WEBSOCKET_MAX_RECONNECT_ATTEMPTS": "many"},
        )
        assert done.returncode == 78
        assert "WEBSOCKET_MAX_RECONNECT_ATTEMPTS=many is wrong" in done.stderr


def test_up_names_an_agent_that_is_loaded(greeter: RunningStack, shared_stack: RunningStack) -> None:
    assert f'carrel run "Hello" --agent greeter --state {state_of(greeter)}' in greeter.log()
    assert f'carrel run "Write a report" --state {state_of(shared_stack)}' in shared_stack.log()


def test_own_agents_run_beside_the_packaged_ones_and_json_logs_are_json(tmp_path: Path) -> None:
    agents = ["--agents", str(agents_file(tmp_path)), "--agents", "entry-points"]
    with running_stack(tmp_path, arguments=agents, environment={"CARREL_LOG_FORMAT": "json"}) as stack:
        for agent in ("greeter", "data"):
            done = run_carrel("run", "x", "--agent", agent, "--state", "state", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        shown = run_carrel("config", "--state", "state", "--json", cwd=tmp_path)
        rows = {(row["service"], row["name"]): row for row in map(json.loads, shown.stdout.splitlines())}
        assert rows["bridge", "CARREL_BRIDGE_LISTEN"]["value"] == stack.address("bridge")
        assert rows["emitter", "CARREL_EMITTER_BRIDGE"]["source"] == "stack"
    logs = [json.loads(line) for line in stack.log().splitlines()]
    assert {log["service"] for log in logs} == {*SERVICES, "carrel"}


def test_token_is_for_development_only_and_holds_no_operators_permission(
    shared_stack: RunningStack, tmp_path: Path
) -> None:
    at = ("--state", state_of(shared_stack))
    done = run_carrel("token", "--user", "carol", "--ttl", "60", *at, cwd=tmp_path)
    secret = shared_stack.state.login_secret.read_bytes().strip()
    claims = jwt.decode(done.stdout.strip(), secret, algorithms=["HS256"], audience="carrel")
    assert claims["sub"] == "carol"
    assert claims["exp"] - claims["iat"] == 60
    assert set(claims["permissions"]) == set(DEFAULT_PERMISSIONS)
    refused = run_carrel("token", *at, cwd=tmp_path, environment={"CARREL_ENVIRONMENT": "production"})
    assert refused.returncode == 3
    assert refused.stdout == ""


def test_second_stack_in_the_same_folder_is_refused(shared_stack: RunningStack, tmp_path: Path) -> None:
    done = run_carrel("up", "--state", state_of(shared_stack), "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert f"runs already in {shared_stack.state.root} at {shared_stack.url}" in done.stderr
    assert "--state" in done.stderr


def test_port_in_use_is_named_with_the_option_that_helps(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_carrel("up", "--state", "s", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


def test_start_that_fails_says_which_process_and_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('this file is broken')", encoding="utf-8")
    done = run_carrel("up", "--state", "s", "--port", "0", "--agents", "broken.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "agent_instance" in done.stderr
    assert "this file is broken" in done.stderr


def test_wrong_setting_ends_the_start_and_names_it(tmp_path: Path) -> None:
    done = run_carrel(
        "up", "--state", "s", "--port", "0", cwd=tmp_path, environment={"CARREL_BRIDGE_PROBE_INTERVALS": "1"}
    )
    assert done.returncode == 78
    assert "did you mean CARREL_BRIDGE_PROBE_INTERVAL_S?" in done.stderr


def test_wrong_settings_of_all_services_are_told_once_before_anything_starts(tmp_path: Path) -> None:
    environment = {"CARREL_FOO": "1", "CARREL_LOG_LEVEL": "loud", "MAX_ENGINES_PER_USER": "many"}
    for command in ("up", "demo"):
        done = run_carrel(command, "--state", "s", "--port", "0", cwd=tmp_path, environment=environment)
        assert done.returncode == 78
        assert [done.stderr.count(name) for name in environment] == [1, 1, 1]
        assert "3 settings are wrong" in done.stderr
        assert "│" not in done.stdout, "no process has said anything"


def test_a_data_folder_that_is_none_is_said_without_a_traceback(tmp_path: Path) -> None:
    for done in (
        run_carrel("up", "--data", "/nope", cwd=tmp_path),
        run_carrel("demo", cwd=tmp_path, environment={"LLM_COSTS_DATA_DIR": "/nope"}),
        run_carrel("up", "--no-packaged-agents", cwd=tmp_path),
    ):
        assert done.returncode == 1
        assert done.stderr.startswith("error:")
        assert "to do:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_state_folder_is_private_and_says_where_the_stack_is(shared_stack: RunningStack) -> None:
    state = shared_stack.state
    assert state.root.stat().st_mode & 0o777 == 0o700
    for path in (state.gateway_key, state.execution_key, state.login_secret):
        assert path.stat().st_mode & 0o777 == 0o600
    assert set(shared_stack.facts["processes"]) == set(SERVICES)
    assert 0 < shared_stack.ready_s < 60


async def test_killed_process_is_started_again_at_the_same_address(stack: RunningStack, eventually: Eventually) -> None:
    address = stack.address("bridge")
    pid = stack.kill("bridge")
    await eventually(lambda: stack.restarted("bridge", pid), within=15, what="the bridge runs again")
    assert stack.address("bridge") == address
    assert "died of SIGKILL" in stack.log()


async def test_children_die_with_a_supervisor_that_is_killed_and_the_folder_stays_taken_until_then(
    tmp_path: Path, eventually: Eventually
) -> None:
    with running_stack(tmp_path) as stack:
        pids = [pid for name in SERVICES if (pid := stack.pid(name))]
        assert len(pids) == len(SERVICES)
        os.kill(stack.pid("emitter") or 0, signal.SIGSTOP)  # ends late, and holds the folder meanwhile
        stack.process.kill()
        stack.process.wait()
        await eventually(lambda: sum(alive(pid) for pid in pids) == 1, within=30)
        refused = run_carrel("up", "--state", "state", "--port", "0", cwd=tmp_path)
        assert refused.returncode == 1
        assert "still ending" in refused.stderr
        [last] = [pid for pid in pids if alive(pid)]
        os.kill(last, signal.SIGCONT)
        await eventually(lambda: not alive(last), within=30)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_ends_the_processes_in_order_and_exits_0(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        pids = [pid for name in SERVICES if (pid := stack.pid(name))]
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(30) == 0
        assert not any(alive(pid) for pid in pids)
        log = stack.log()
        ends = [log.index(line) for name in SERVICES for line in log.splitlines() if stopped(name, line)]
        assert len(ends) == len(SERVICES)
        assert ends == sorted(ends)
        assert not stack.state.stack_file.exists()


def stopped(name: str, line: str) -> bool:
    return line.startswith(name) and line.endswith(" stopped")


def test_second_ctrl_c_does_not_wait_for_one_that_hangs(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        pids = [pid for name in SERVICES if (pid := stack.pid(name))]
        os.kill(stack.pid("gateway") or 0, signal.SIGSTOP)
        stack.process.send_signal(signal.SIGINT)
        stack.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 15
        while stack.process.poll() is None:
            # Two signals that arrive together count as one.
            assert time.monotonic() < deadline
            stack.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert not any(alive(pid) for pid in pids)


async def test_reload_starts_agent_instance_anew_when_the_agents_file_changes(
    tmp_path: Path, eventually: Eventually
) -> None:
    path = agents_file(tmp_path, "before")
    with running_stack(tmp_path, agents=[str(path)], arguments=["--reload"]) as stack:
        old = stack.pid("agent_instance")
        assert old is not None
        await eventually(lambda: "watching" in stack.log(), within=30, what="the watch has begun")
        agents_file(tmp_path, "after")
        await eventually(lambda: stack.restarted("agent_instance", old), within=30, what="agent_instance runs again")
        done = run_carrel("run", "x", "--agent", "greeter", "--json", "--state", "state", cwd=tmp_path)
        assert events_in(done.stdout)[-1]["data"]["result"]["answer"] == "after"


def test_reload_without_agents_is_refused(tmp_path: Path) -> None:
    done = run_carrel("up", "--reload", "--state", "s", "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert "--agents" in done.stderr


def test_demo_once_shows_both_users_and_holds_every_check(tmp_path: Path) -> None:
    done = run_carrel("demo", "--once", cwd=tmp_path, timeout_s=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert done.stdout.rstrip().endswith("All checks hold.")
    for user in ("alice", "bob"):
        folder = tmp_path / ".carrel" / "demo" / user
        assert (folder / "report.md").is_file()
        assert len(list(folder.glob("*.svg"))) >= 2
        assert f"report: {Path('.carrel') / 'demo' / user / 'report.md'}" in done.stdout
    assert done.stdout.count("✓ zero foreign events") == 2
    assert done.stdout.count("✓ offsets without a gap") == 2
    assert done.stdout.count("first event after") == 2


def test_config_shows_sources_and_masks_secrets(tmp_path: Path) -> None:
    environment = {"CARREL_LOG_LEVEL": "debug", "MAX_ENGINES_PER_USER": "3"}
    done = run_carrel("config", "execution", "--json", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    rows = {row["name"].partition(" ")[0]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["CARREL_LOG_LEVEL"]["value"] == "debug"
    assert rows["CARREL_LOG_LEVEL"]["source"] == "environment (CARREL_LOG_LEVEL)"
    assert rows["CARREL_EXECUTION_MAX_ENGINES_PER_USER"]["value"] == "3"
    assert rows["CARREL_EXECUTION_MAX_ENGINES_PER_USER"]["source"] == "environment (MAX_ENGINES_PER_USER)"
    assert rows["CARREL_EXECUTION_LISTEN"]["source"] == "default"
    everything = run_carrel("config", cwd=tmp_path)
    assert all(f"\n{name}\n" in f"\n{everything.stdout}" for name in SERVICES)
    wrong = run_carrel("config", cwd=tmp_path, environment={"CARREL_LOG_LEVEL": "loud"})
    assert wrong.returncode == 1
    assert "CARREL_LOG_LEVEL=loud" in wrong.stderr


def test_migrate_of_a_folder_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    done = run_carrel("migrate", "--state", "nope", cwd=tmp_path)
    assert done.returncode == 1
    assert "no state folder nope" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_migrate_makes_both_stores_and_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    for _ in range(2):
        done = run_carrel("migrate", "--state", "s", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "s").glob("*/*.sqlite3"))) == 1
    assert (tmp_path / "s" / "bridge" / "events.db").is_file()


def test_migrate_leaves_the_bridge_s_file_out_when_the_log_is_in_redis(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    url = "redis://me:secret@127.0.0.1:1/0"
    for arguments, environment in (
        (["--redis", url], {}),
        ([], {"CARREL_UP_REDIS": url}),
        ([], {"CARREL_BRIDGE_LOG__URL": url}),
    ):
        done = run_carrel("migrate", "--state", "s", *arguments, cwd=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr
        assert "the event log is in redis://127.0.0.1:1: nothing to migrate" in done.stdout
        assert "secret" not in done.stdout + done.stderr
    assert len(list((tmp_path / "s").glob("*/*.sqlite3"))) == 1
    assert not (tmp_path / "s" / "bridge").exists()


def test_migrate_is_refused_while_a_stack_runs(shared_stack: RunningStack, tmp_path: Path) -> None:
    done = run_carrel("migrate", "--state", state_of(shared_stack), cwd=tmp_path)
    assert done.returncode == 1
    assert "runs already" in done.stderr
    assert "stop the stack" in done.stderr
    assert "--port" not in done.stderr


def test_demo_takes_another_port_when_its_own_is_taken_and_says_so(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        # Somebody has it: this test, or whoever had it before.
        with contextlib.suppress(OSError):
            taken = held.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        with subprocess.Popen(
            carrel_command("demo"), cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Try in another terminal" in line:
                    break
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=40)
    assert process.returncode == 0, lines
    assert any(line.startswith("Port 8080 is taken") for line in lines)
    assert lines[-1].endswith('carrel run "Optimize"\n')
    explicit = run_carrel("demo", "--help", cwd=tmp_path).stdout
    assert "free one if taken" in " ".join(explicit.split())


def test_version_and_help_are_quick_and_load_nothing_heavy(tmp_path: Path) -> None:
    assert run_carrel("version", cwd=tmp_path).stdout.startswith("carrel 0.")
    code = (
        "import sys\nsys.argv = ['carrel', '--help']\nfrom carrel.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'grpc', 'aiohttp', 'google.protobuf', 'pydantic', 'sqlalchemy', 'jwt'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=clean_environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
