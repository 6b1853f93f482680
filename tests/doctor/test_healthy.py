"""``carrel doctor`` on stacks that are well: what it prints, how it gets in, what it leaves behind, who may use it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import jsonschema
import jwt
import pytest

from carrel.cli.doctor.command import CHECKS
from carrel.cli.doctor.users import SLOTS
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError, PermissionDeniedError
from tests.conftest import Eventually
from tests.doctor.conftest import Examine
from tests.support.postgres import PostgresServer, run_apart
from tests.support.redis_servers import single_server
from tests.support.stack import RunningStack, carrel_command, clean_environment, run_carrel, running_stack

pytestmark = pytest.mark.slow

_SCHEMA: Final = json.loads(
    (Path(__file__).parents[2] / "docs" / "doctor.md").read_text().partition("```json schema\n")[2].partition("```")[0]
)
_PERMISSION: Final = ["carrel:doctor"]


def _doctor(stack: RunningStack, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = () if "--url" in arguments else ("--state", str(stack.state.root))
    return run_carrel("doctor", *options, *arguments, cwd=stack.folder, environment=environment)


def _report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(report, _SCHEMA)
    return report


def _token_file(stack: RunningStack, user: str, permissions: list[str]) -> Path:
    path = stack.folder / f"{user}.token"
    path.write_text(stack.token(user, permissions=permissions))
    return path


async def _threads(stack: RunningStack, user: str) -> list[str]:
    token = stack.token(user, permissions=_PERMISSION)
    async with GatewayHttp(stack.url, token) as http:
        return [thread["thread_id"] for thread in (await http.get("/api/threads"))["threads"]]


async def test_whole_examination_passes_while_others_work_and_leaves_nothing(stack: RunningStack) -> None:
    over = asyncio.Event()

    async def works(user: str) -> int:
        runs = 0
        async with GatewayHttp(stack.url, stack.token(user)) as http:
            while not over.is_set():
                run = await http.execute("Which instance costs least?", pipeline=["data"], wait_s=20)
                runs += run["status"] in {"SUCCEEDED", "FAILED"}
        return runs

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(works(user)) for user in ("ann", "ben")]
        done = await asyncio.to_thread(_doctor, stack, "--json", "--strict")
        over.set()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    report = _report(done)
    assert [(check["name"], check["status"]) for check in report["checks"]] == [(name, "pass") for name in CHECKS]
    assert report["threads_removed"] > 10
    assert [await _threads(stack, user) for user in report["users"]] == [[], []]
    assert all(task.result() > 0 for task in others)


def test_table_is_for_people(stack: RunningStack) -> None:
    done = _doctor(stack, "--check", "factories_configured", "-v")
    assert done.returncode == 0
    assert done.stdout.startswith("pass     factories_configured")
    assert "pass: the integration state of" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"pass: {stack.url} in ")


def test_service_token_of_a_production_job_is_enough(stack: RunningStack) -> None:
    file = _token_file(stack, "the-job", ["carrel:doctor", "operator:read"])
    settings = {f"CARREL_DOCTOR_{name.upper()}": stack.address(name) for name in ("execution", "agent_instance")}
    done = _doctor(
        stack,
        "--json",
        "--url",
        stack.url,
        CARREL_ENVIRONMENT="production",
        CARREL_TLS__MODE="mesh",
        CARREL_DOCTOR_TOKEN_FILE=str(file),
        **settings,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in _report(done)["checks"]}
    assert {check["status"] for check in checks.values()} == {"pass"}
    skipped = [step["evidence"] for step in checks["factories_configured"]["steps"] if step["status"] == "skipped"]
    assert skipped == [
        f"the address of {name} is not known: set CARREL_DOCTOR_{name.upper()} where it may be reached"
        for name in ("emitter", "bridge")
    ]
    assert any("workers are given back" in step["what"] for step in checks["resource_cleanup"]["steps"])


def test_two_users_tokens_are_enough_and_their_own_threads_stay(stack: RunningStack) -> None:
    files = [_token_file(stack, user, _PERMISSION) for user in ("tester-one", "tester-two")]

    async def talk() -> str:
        async with GatewayHttp(stack.url, files[0].read_text()) as http:
            return str((await http.execute("hello", pipeline=["carrel_doctor"], wait_s=20))["thread_id"])

    own = asyncio.run(talk())
    options = [part for file in files for part in ("--token-file", str(file))]
    names = ("user_isolation", "concurrent_execution", "backward_compatibility")
    chosen = [part for name in names for part in ("--check", name)]
    done = _doctor(stack, "--json", "--url", stack.url, *options, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _report(done)["users"] == ["tester-one", "tester-two"]
    assert asyncio.run(_threads(stack, "tester-one")) == [own]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "nothing"], "is none of"),
        (["--token-file", "one"], "give it twice"),
        (["--url", "http://127.0.0.1:1"], "cannot be reached"),
        (["--token-file", "/no/such", "--token-file", "/no/such"], "cannot be read"),
    ],
)
def test_what_cannot_be_examined_ends_with_2(stack: RunningStack, arguments: list[str], said: str) -> None:
    done = run_carrel("doctor", "--state", str(stack.state.root), *arguments, cwd=stack.folder)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_production_makes_no_tokens_of_its_own(stack: RunningStack) -> None:
    done = _doctor(stack, "--json", CARREL_ENVIRONMENT="production")
    assert done.returncode == 2
    report = _report(done)
    assert (report["status"], report["error"]["code"]) == ("error", "PERMISSION_DENIED")
    assert "CARREL_DOCTOR_TOKEN_FILE" in report["error"]["advice"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_examination_cleans_up(stack: RunningStack, eventually: Eventually, number: int) -> None:
    process = await _begun(stack, eventually)
    process.send_signal(number)
    assert await asyncio.to_thread(process.wait, 40) == 130
    assert not await _all_threads(stack)


async def test_what_a_killed_examination_left_is_removed_by_a_later_one(
    stack: RunningStack, eventually: Eventually, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await _begun(stack, eventually)
    process.kill()
    await asyncio.to_thread(process.wait, 10)
    left = await _all_threads(stack)
    assert left
    # While the killed one might still go on, its users are left alone.
    done = await asyncio.to_thread(_doctor, stack, "--json", "--check", "factories_configured")
    assert _report(done)["leftovers_removed"] == 0
    assert set(left) <= set(await _all_threads(stack))
    later = time.time() + 3600
    monkeypatch.setattr("carrel.cli.doctor.users.time", SimpleNamespace(time=lambda: later))
    slot = left[next(iter(left))].removeprefix("carrel-doctor-").rpartition("-")[0]
    report = await examined(slot, checks=("factories_configured",))
    assert (report.leftovers > 0, report.exit_code) == (True, 0)
    assert not await _all_threads(stack)


async def _begun(stack: RunningStack, eventually: Eventually) -> subprocess.Popen[bytes]:
    """An examination in the middle of a check that holds runs."""
    command = carrel_command("doctor", "--state", str(stack.state.root), "--check", "resource_cleanup")
    # A shell has its background jobs ignore SIGINT, and what they start inherits that.
    command = ["env", "--default-signal=INT", *command]
    process = subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
        command, cwd=stack.folder, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    await eventually(lambda: _all_threads(stack), within=20, what="threads of the examination")
    return process


async def _all_threads(stack: RunningStack) -> dict[str, str]:
    """Every thread of every user of the doctor's, with its user."""
    users = [f"carrel-doctor-{slot}-{half}" for slot in range(SLOTS) for half in "ab"]
    found = await asyncio.gather(*(_threads(stack, user) for user in users))
    return {thread: user for user, threads in zip(users, found, strict=True) for thread in threads}


async def test_agent_is_shown_to_nobody_else_and_does_nothing_for_them(stack: RunningStack) -> None:
    async with GatewayHttp(stack.url, stack.token("mallory")) as http:
        names = [agent["name"] for agent in (await http.get("/api/agents"))["agents"]]
        assert "data" in names
        assert "carrel_doctor" not in names
        run = await http.execute("hello", pipeline=["carrel_doctor"], params={"hold": 20}, wait_s=20)
        assert (run["status"], run["execution_time"] < 5) == ("FAILED", True)
        assert run["error"]["status"] == "PERMISSION_DENIED"
        with pytest.raises(CarrelError) as refused:
            await http.execute("hello", pipeline=["no_such_agent"])
        assert "carrel_doctor" not in refused.value.advice


@pytest.mark.timeout(180)
def test_copies_of_every_service_pass(tmp_path: Path, postgres: PostgresServer) -> None:
    copies = dict.fromkeys(("gateway", "execution", "agent_instance", "bridge", "emitter"), 2)
    database = postgres.url(run_apart(postgres.create()))
    with (
        single_server(tmp_path) as redis,
        running_stack(tmp_path, replicas=copies, redis=redis.url, postgres=database) as stack,
    ):
        done = _doctor(stack, "--json", "--strict")
        assert done.returncode == 0, done.stdout + done.stderr
        report = _report(done)
        assert len(report["gateways"]) == 2
        steps = [step["what"] for step in report["checks"][0]["steps"]]
        assert sum(what.startswith("execution at ") for what in steps) == 2


@pytest.mark.parametrize(
    ("permissions", "user", "status"),
    [(["act_as", "operator:read"], "carrel-doctor-1-a", 403), (["carrel:doctor", "act_as"], "alice", 400)],
)
async def test_header_of_the_doctor_is_refused_at_every_door(
    stack: RunningStack, permissions: list[str], user: str, status: int
) -> None:
    token = stack.token("somebody", permissions=permissions)
    headers = {"Authorization": f"Bearer {token}", "Carrel-Doctor-User": user}
    async with aiohttp.ClientSession(stack.url, headers=headers) as http:
        for method, path in (("GET", "/api/runs"), ("GET", "/api/events"), ("POST", "/api/socket-tokens")):
            async with http.request(method, path) as response:
                assert response.status == status, path
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect("/ws")
        assert refused.value.status == status


async def test_service_ticket_of_the_doctor_holds_nothing_but_reading(stack: RunningStack) -> None:
    token = stack.token("job", permissions=["carrel:doctor", "operator:read", "operator:revoke"])
    async with GatewayHttp(stack.url, token) as http:
        answer = await http.post("/api/tickets", {"scope": "service"})
        assert _permissions(answer["ticket"]) == ["operator:read"]
        for body in (
            {"scope": "service", "permissions": ["operator:revoke"]},
            {"scope": "session", "user_id": "alice"},
            {"scope": "run", "user_id": "carrel-doctor-1-a"},
        ):
            with pytest.raises(PermissionDeniedError):
                await http.post("/api/tickets", body)


def _permissions(ticket: str) -> list[str]:
    claims: dict[str, Any] = jwt.decode(ticket, options={"verify_signature": False})
    return list(claims["perms"])
