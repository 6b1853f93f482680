"""The stack of docker-compose.yaml in containers: it comes up, works, is confined, and is restarted under load.

Two copies of everything but the gateway, whose port is one, and the stores. The oracle is the soak's: what each user
received is what the log has committed, in order and once; nobody sees another's canary; every run ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.canaries import Canaries
from tests.chaos.recovery import AGENTS
from tests.chaos.soak_user import SoakUser
from tests.conftest import Eventually
from tests.container.compose_stack import ComposeStack, open_stack
from tests.container.engine import Compose, compose_command, compose_up, need_engine, run, store_image
from tests.faults.oracle import Verdict

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900)]

COPIES = {"execution": 2, "agent-instance": 2, "emitter": 2, "bridge": 2}
ORDER = ("gateway", "execution", "agent-instance", "emitter", "bridge", "redis", "postgres")
USERS = 8
SEED = 20268
_ENDS_S = 150.0


@pytest.fixture(scope="module")
def stack(tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    need_engine()
    compose_command()
    folder = tmp_path_factory.mktemp("compose")
    agents = folder / "agents"
    agents.mkdir(mode=0o755)
    shutil.copy(AGENTS, agents / "chaos.py")
    (agents / "chaos.py").chmod(0o644)
    with socket.socket() as free:  # one that stays the same when the gateway is started again
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = {
        "TAG": tag,
        "GATEWAY_PORT": str(port),
        "REDIS_IMAGE": store_image("redis:7-bookworm"),
        "POSTGRES_IMAGE": store_image("postgres:15-bookworm"),
        "AGENTS_DIR": str(agents),
        "CARREL_AGENT_INSTANCE_AGENTS": "entry-points,/srv/agents/chaos.py",
        "CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0",
    }
    with compose_up(f"carrel-test-{secrets.token_hex(3)}", environment, COPIES) as compose:
        yield open_stack(compose, folder, port)


def command(compose: Compose, *arguments: str, service: str = "cli") -> str:
    """A command as a user of the compose file would start it."""
    return compose("run", "--rm", "-T", "--no-deps", service, *arguments)


def test_a_pipeline_of_the_packaged_agents_ends_with_a_report(stack: ComposeStack) -> None:
    printed = command(stack.compose, "carrel", "run", "--json", "Write a report: where do our costs come from?")
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    end = next(line for line in lines if line.get("event_type") == "run_completed")
    assert end["data"]["status"] == "SUCCEEDED"
    agents = {line.get("agent_name") for line in lines if line.get("event_type") == "agent_completed"}
    assert {"data", "optimization", "report"} <= agents


def test_the_doctor_finds_nothing(stack: ComposeStack) -> None:
    printed = command(stack.compose, "carrel", "doctor", "--json", service="doctor")
    report = json.loads(printed[printed.index("{") :])
    assert report["status"] == "pass"


def test_services_answer_nobody_without_a_certificate(stack: ComposeStack) -> None:
    for service in ("execution", "agent-instance", "emitter", "bridge"):
        asked = ["python", "-P", "-m", "servicekit.health_check", service.replace("-", "_")]
        container = stack.compose.containers(service)[0]
        assert run("docker", "exec", container, *asked).returncode == 0
        without = [part for name in ("CERT", "KEY", "CA") for part in ("--env", f"CARREL_TLS__{name}=")]
        assert run("docker", "exec", *without, container, *asked, check=False).returncode == 1, service


def test_an_operator_needs_a_token_of_their_own_and_is_named(stack: ComposeStack) -> None:
    def ask(*permissions: str) -> subprocess.CompletedProcess[str]:
        token = stack.token("olga", permissions=permissions)
        arguments = ("run", "--rm", "-T", "--no-deps", "operator", "carrel", "audit", "--json", "--token-file", "-")
        command = [*stack.compose.command, "-p", stack.compose.project, *arguments]
        return run(*command, check=False, input=token, env={**os.environ, **stack.compose.environment})

    refused = ask("trace:read")
    assert refused.returncode == 3
    assert "operator:read" in refused.stderr
    shown = ask("operator:read")
    assert shown.returncode == 0, shown.stderr
    acts = [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]
    assert ("ticket.service", "olga") in {(act["action"], act["user_id"]) for act in acts}


def test_the_workers_are_confined_in_a_container_too(stack: ComposeStack) -> None:
    container = stack.compose.containers("agent-instance")[0]
    seen = json.loads(run("docker", "exec", container, "python", "-P", "-c", _CONFINED).stdout)
    assert seen["init"] == "tini"
    assert seen["heir"] == [], "a worker's orphan would go past agent_instance"
    assert seen["service may be read"] is False
    assert seen["workers"], "no warm worker is there"
    for worker in seen["workers"]:
        # The engine's filter and ours.
        assert worker["filters"] >= 2
        assert worker["no new privileges"] == 1
        assert int(worker["capabilities"], 16) == 0
    host = run("python3", "-c", _LANDLOCK).stdout.strip()
    assert seen["landlock"] == int(host), "the engine's profile takes Landlock away"
    assert "lacks" not in run("docker", "logs", container).stdout


def test_a_service_reaches_no_other_than_the_chain_has_it(stack: ComposeStack) -> None:
    addresses = {
        service: [
            f"{network['IPAddress']}:{port}"
            for network in stack.compose.inspect(stack.compose.containers(service)[0])["NetworkSettings"][
                "Networks"
            ].values()
        ]
        for service, port in {"postgres": 5432, "redis": 6379, "execution": 50051, "gateway": 8080}.items()
    }
    for caller, strangers in {
        "emitter": ("postgres", "redis", "gateway"),
        "agent-instance": ("postgres", "redis"),
        "gateway": ("postgres", "redis"),
        "bridge": ("postgres",),
    }.items():
        container = stack.compose.containers(caller)[0]
        targets = [address for name in strangers for address in addresses[name]]
        reached = run("docker", "exec", container, "python", "-c", _REACHES, *targets).stdout.split()
        assert reached == [], f"{caller} reaches {reached} of {strangers}"
    callers = run(
        "docker", "exec", stack.compose.containers("gateway")[0], "python", "-c", _REACHES, *addresses["execution"]
    )
    assert callers.stdout.split(), "the way to look finds nothing at all"


@pytest.mark.chaos
async def test_every_service_is_restarted_under_load_and_nothing_is_lost(
    stack: ComposeStack, eventually: Eventually
) -> None:
    canaries, counts, stop = Canaries(f"{SEED} {secrets.token_hex(8)}".encode()), Counter[str](), asyncio.Event()
    users = [SoakUser(stack, number, SEED, canaries, counts) for number in range(USERS)]
    tasks = [asyncio.create_task(user.live(stop), name=user.name) for user in users]
    took: dict[str, list[tuple[float, float]]] = {}
    try:
        await eventually(lambda: counts["frames"] > 100, within=60)
        for service in ORDER:
            for container in stack.compose.containers(service):
                for task in tasks:
                    assert not task.done(), task
                took.setdefault(service, []).append(await asyncio.to_thread(stack.compose.restart, container, service))
        await asyncio.to_thread(stack.look_up)
        stop.set()
        _, late = await asyncio.wait(tasks, timeout=_ENDS_S)
        assert not late, [task.get_name() for task in late]
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    problems = [f"{type(error).__name__}: {error}" for error in ended if isinstance(error, Exception)]
    verdict = Verdict()
    for user in users:
        problems += [*user.problems, *(f"{user.name}: {run_id} has no end" for run_id in user.unended)]
        verdict += await user.verdict()
    print("seconds of end and start:", took)
    print(verdict.counts(), dict(verdict.ends), dict(counts))
    problems += [*verdict.problems, *canaries.foreign]
    if problems:
        kept = Path(tempfile.gettempdir()) / "carrel-container-stack.log"
        kept.write_text(stack.log(), encoding="utf-8")
        problems.append(f"the containers' log: {kept}")
    assert not problems, "\n".join(problems[-20:])
    assert verdict.committed > 50 * USERS
    assert counts["reconnects"] >= USERS, "nobody has noticed that the gateway was restarted"


_LANDLOCK = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))"

_CONFINED = """
import json, os, pathlib
from services.agent_instance.workers import kernel
def fields(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
found = {int(path.name): fields(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")}
own = os.getpid()
service = next(pid for pid, each in found.items() if each["PPid"] == "1" and pid != own)
zygote = next(pid for pid, each in found.items() if each["PPid"] == str(service))
workers = [each for each in found.values() if each["PPid"] == str(zygote)]
try:
    pathlib.Path(f"/proc/{service}/environ").read_bytes()
    readable = True
except PermissionError:
    readable = False
print(json.dumps({
    "init": found[1]["Name"],
    "heir": [pid for pid, each in found.items() if each["PPid"] == "1" and pid not in (service, own)],
    "service may be read": readable,
    "landlock": kernel.landlock_abi(),
    "workers": [{"filters": int(each["Seccomp_filters"]), "no new privileges": int(each["NoNewPrivs"]),
                 "capabilities": each["CapEff"]} for each in workers],
}))
"""

_REACHES = """
import socket, sys
for target in sys.argv[1:]:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=0.5).close()
    except OSError:
        continue
    print(target)
"""
