"""The container engine, the images and the compose stack as tests see them: found, built once, started, cleaned up.

Only here is it known which commands there are (``docker compose`` or ``docker-compose``). Nothing starts an engine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.needs import unavailable

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGES: Final = ("gateway", "execution", "agent-instance", "emitter", "bridge", "cli")
# Names the tag of images that are built already: `make images TAG=…`. Not one of ours, whose leftovers tests are kept
# from.
BUILT: Final = "IMAGES_TAG"
_TAG: Final = "test"
_BUILD_S: Final = 900.0
_HEALTH_S: Final = 90.0


def run(
    *command: str, timeout_s: float = 120.0, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with what it printed in the failure."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False, **options)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done


def compose_command() -> list[str]:
    """How compose is called here.

    Raises:
        Skipped: There is none.
    """
    if shutil.which("docker") and run("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise unavailable("docker", "neither `docker compose` nor docker-compose is here")


def need_engine() -> None:
    """Raises:
    Skipped: No engine answers.
    """
    if not shutil.which("docker"):
        raise unavailable("docker", "there is no command docker")
    if run("docker", "info", check=False).returncode:
        raise unavailable("docker", "no container engine answers to `docker info`")


def built_images(stamp: str) -> str:
    """Builds what tests need, once for all processes that give the same ``stamp``; the images' tag.

    Raises:
        Skipped: No engine answers.
        AssertionError: The build failed.
    """
    need_engine()
    folder = Path(tempfile.gettempdir())
    tag = os.environ.get(BUILT, "").strip()
    with (folder / "carrel-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "carrel-images.built"
        if not done.exists() or done.read_text(encoding="utf-8") != stamp:
            if not tag:
                environment = {**os.environ, "TAG": _TAG, "BUILD_ARGS": "--network host"}
                run("images/build.sh", timeout_s=_BUILD_S, env=environment)
            for base in ("redis:7-bookworm", "postgres:15-bookworm"):
                _build_store(base)
            done.write_text(stamp, encoding="utf-8")
    return tag or _TAG


def store_image(base: str) -> str:
    """The name of what is built from a store's public image."""
    return f"carrel-test-{base.partition(':')[0]}:{_TAG}"


def _build_store(base: str) -> None:
    dockerfile = (Path(__file__).with_name("stores.Dockerfile")).read_text(encoding="utf-8")
    run("docker", "build", "--quiet", "--build-arg", f"BASE={base}", "--tag", store_image(base), "-", input=dockerfile)


def wait_for(condition: Callable[[], object], what: str, within_s: float) -> float:
    """Wait until it is true; the seconds that it took.

    Raises:
        AssertionError: It was not in time.
    """
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


@dataclass
class Compose:
    """docker-compose.yaml itself, started as a project of its own."""

    project: str
    environment: Mapping[str, str]
    command: list[str] = field(default_factory=compose_command)

    def __call__(self, *arguments: str, timeout_s: float = 180.0, check: bool = True) -> str:
        """Run a compose command; what it printed."""
        command = [*self.command, "-p", self.project, *arguments]
        return run(*command, timeout_s=timeout_s, check=check, env={**os.environ, **self.environment}).stdout

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, in the order of their numbers."""
        labels = [f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={service}"]
        filters = [argument for label in labels for argument in ("--filter", label)]
        listed = run("docker", "ps", "--all", "--no-trunc", "--format", "{{.Names}} {{.ID}}", *filters).stdout
        return [line.split()[1] for line in sorted(listed.splitlines()) if "_run_" not in line and "-run-" not in line]

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine says of it."""
        found: list[dict[str, Any]] = json.loads(run("docker", "inspect", container).stdout)
        return found[0]

    def healthy(self, container: str) -> bool:
        """Whether its health check says so now."""
        state = self.inspect(container)["State"]
        return bool(state["Running"]) and state["Health"]["Status"] == "healthy"

    def wait_healthy(self, services: Sequence[str]) -> None:
        """Wait until every container of the services is."""
        for service in services:
            for container in self.containers(service):
                wait_for(lambda container=container: self.healthy(container), f"{service} healthy", _HEALTH_S)  # type: ignore[misc]

    def restart(self, container: str, service: str) -> tuple[float, float]:
        """Stop in order, start, and wait until it is well; the seconds that the end and the start took."""
        began = time.monotonic()
        run("docker", "stop", "--time", "30", container)
        state = self.inspect(container)["State"]
        assert not state["OOMKilled"], f"{service} was out of memory"
        assert state["ExitCode"] != 137, f"{service} did not end within 30 s"
        ended = time.monotonic()
        run("docker", "start", container)
        wait_for(lambda: self.healthy(container), f"{service} healthy again", _HEALTH_S)
        return round(ended - began, 1), round(time.monotonic() - ended, 1)

    def logs(self) -> str:
        """Everything that the containers have written."""
        return self("logs", "--no-color", check=False)


@contextmanager
def compose_up(
    project: str, environment: Mapping[str, str], scale: Mapping[str, int] | None = None
) -> Iterator[Compose]:
    """The stack of docker-compose.yaml for the length of the block, with volumes of its own."""
    compose = Compose(project, environment)
    copies = [argument for name, count in (scale or {}).items() for argument in ("--scale", f"{name}={count}")]
    try:
        try:
            compose("up", "--detach", *copies)
            compose.wait_healthy(["redis", "postgres", *(name for name in IMAGES if name != "cli")])
        except AssertionError as error:
            raise AssertionError(f"{error}\n{compose.logs()[-8000:]}") from None
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "2", "--remove-orphans", check=False)
