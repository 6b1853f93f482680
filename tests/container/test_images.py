"""What the images are and hold, each started as a deployment would: read-only root, no capability, not root."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer

from tests.container.engine import IMAGES, run, wait_for
from tools.image_requirements import deployables

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

MODULES = {each.name: each.packages for each in deployables()}
SERVES = {"gateway": "8080", "execution": "50051", "agent-instance": "50052", "emitter": "50053", "bridge": "50054"}
# Some of what the others need, by the module's name.
FOREIGN = {
    "gateway": ("sqlalchemy", "alembic", "asyncpg", "hiredis", "duckdb", "typer", "services", "carrel.cli"),
    "execution": ("hiredis", "duckdb", "numpy", "typer", "gateway", "services.bridge", "carrel.cli"),
    "agent-instance": ("sqlalchemy", "alembic", "asyncpg", "hiredis", "typer", "gateway", "services.execution"),
    "emitter": ("aiohttp", "sqlalchemy", "hiredis", "duckdb", "typer", "gateway", "services.bridge"),
    "bridge": ("aiohttp", "sqlalchemy", "asyncpg", "duckdb", "typer", "gateway", "services.emitter"),
    "cli": ("duckdb", "numpy", "matplotlib", "mcp", "openai", "examples"),
}

LOOK = Path(__file__).with_name("look.py").read_text(encoding="utf-8")


def confined(image: str, *command: str, timeout_s: float = 120.0) -> str:
    """Run a command in a container that is confined as a deployment's; what it printed."""
    held = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"]
    held += ["--tmpfs", "/tmp:size=64m,mode=1777", "--pids-limit", "64"]
    return run("docker", "run", "--rm", *held, image, *command, timeout_s=timeout_s).stdout


@pytest.mark.parametrize("name", IMAGES)
def test_configuration_names_a_user_an_init_a_health_check_and_where_it_comes_from(tag: str, name: str) -> None:
    image = json.loads(run("docker", "image", "inspect", f"carrel-{name}:{tag}").stdout)[0]
    config: dict[str, Any] = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert config["StopSignal"] == "SIGTERM"
    assert "CARREL_STATE_DIR=/var/lib/carrel" in config["Env"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == f"carrel-{name}"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    for label in ("version", "revision", "source"):
        assert labels[f"org.opencontainers.image.{label}"] not in {"", "0"}
    if name == "cli":
        assert config["Healthcheck"]["Test"] == ["NONE"]
        return
    assert config["Healthcheck"]["Test"][:5] == ["CMD", "python", "-P", "-m", "servicekit.health_check"]
    assert f"{SERVES[name]}/tcp" in config["ExposedPorts"]
    assert f"CARREL_{name.upper().replace('-', '_')}_LISTEN=0.0.0.0:{SERVES[name]}" in config["Env"]


@pytest.mark.parametrize("name", IMAGES)
def test_every_module_loads_and_nothing_else_is_there(tag: str, name: str) -> None:
    question = json.dumps([MODULES[name], FOREIGN[name]])
    seen = json.loads(confined(f"carrel-{name}:{tag}", "python", "-P", "-c", LOOK, question))
    assert seen["user"] == [10001, 10001]
    assert seen["modules"] > 5
    assert seen["programs"] == []
    assert seen["pip"] == []
    assert seen["foreign"] == []
    assert seen["caches"] == []
    assert seen["compiled"] > 500
    assert seen["looks at times"] == []
    assert seen["not compiled"] == []
    assert seen["writable"] == []


@pytest.fixture
def bridge(tag: str, tmp_path: Path) -> Iterator[DockerContainer]:
    """A bridge by itself, on its embedded log, whose health is asked for every second."""
    keys = tmp_path / "keys"
    keys.mkdir()
    from carrel.cli.keys import make_keys

    make_keys(keys)
    (keys / "tickets.jwks.json").chmod(0o444)
    second = 1_000_000_000
    container = DockerContainer(f"carrel-bridge:{tag}").with_volume_mapping(str(keys), "/run/carrel/keys", "ro")
    container = container.with_kwargs(
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        pids_limit=64,
        mem_limit="256m",
        healthcheck={"interval": second, "timeout": 2 * second, "retries": 2, "start_period": 20 * second},
    )
    container.tmpfs.update({"/tmp": "size=16m,mode=1777", "/var/lib/carrel": "size=64m,uid=10001,gid=10001,mode=0700"})
    keys.chmod(0o755)
    container.start()
    yield container
    with suppress(Exception):
        container.stop()


def test_health_check_turns_with_the_service_that_it_asks(bridge: DockerContainer) -> None:
    wrapped = bridge.get_wrapped_container()

    def status() -> str:
        wrapped.reload()
        return str(wrapped.attrs["State"]["Health"]["Status"])

    def signal(name: str) -> None:
        # To the service, and not to the init, from inside, as its own user.
        code, output = wrapped.exec_run(
            ["python", "-c", f"import os, signal; os.kill({pid}, signal.{name})"], user="10001"
        )
        assert code == 0, output

    took = wait_for(lambda: status() == "healthy", "healthy", 40)
    assert took < 30
    code, output = wrapped.exec_run(["python", "-c", _CHILD_OF_INIT])
    assert code == 0, output
    pid = int(output)
    signal("SIGSTOP")
    wait_for(lambda: status() == "unhealthy", "unhealthy while the service stands still", 30)
    signal("SIGCONT")
    wait_for(lambda: status() == "healthy", "healthy again", 20)
    code, output = wrapped.exec_run(["python", "-P", "-m", "servicekit.health_check", "emitter"])
    assert code == 1
    assert b"UNAVAILABLE" in output
    began = time.monotonic()
    wrapped.stop(timeout=20)
    wrapped.reload()
    assert wrapped.attrs["State"]["ExitCode"] == 0, wrapped.logs()[-2000:]
    assert time.monotonic() - began < 15


_CHILD_OF_INIT = """
import pathlib
for status in pathlib.Path("/proc").glob("[0-9]*/status"):
    fields = dict(line.split(":\\t", 1) for line in status.read_text().splitlines() if ":\\t" in line)
    if fields["PPid"] == "1" and fields["Name"].startswith("python"):
        print(fields["Pid"])
"""


def test_an_orphan_is_buried(bridge: DockerContainer) -> None:
    wrapped = bridge.get_wrapped_container()
    orphan = "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(0.5)\n    os._exit(0)\nos._exit(0)"
    code, output = wrapped.exec_run(["python", "-c", orphan])
    assert code == 0, output
    time.sleep(1.0)
    _, states = wrapped.exec_run(["sh", "-c", "grep -h ^State /proc/[0-9]*/status"])
    assert b"zombie" not in states
    assert b"sleeping" in states


def test_make_images_says_what_is_missing_without_an_engine(tmp_path: Path) -> None:
    done = run("images/build.sh", check=False, env={"PATH": "/usr/bin:/bin", "DOCKER": "no-such-engine"})
    assert done.returncode == 2
    assert "no command no-such-engine" in done.stderr
    silent = tmp_path / "docker"
    silent.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    silent.chmod(0o755)
    done = run("images/build.sh", check=False, env={"PATH": "/usr/bin:/bin", "DOCKER": str(silent)})
    assert done.returncode == 2
    assert "no container engine answers" in done.stderr
