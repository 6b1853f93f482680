"""Starts that cannot succeed: each ends with an exit code and one block that says what was needed and what to do."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.certificates import certificate_for
from tests.support.identity import identity
from tests.support.stack import clean_environment, run_carrel

_FAILED: Final = 1
_CONFIGURATION: Final = 78
_MODULES: Final[Mapping[str, str]] = {
    "gateway": "gateway",
    "execution": "services.execution",
    "agent_instance": "services.agent_instance",
    "emitter": "services.emitter",
    "bridge": "services.bridge",
}
# What each waits for at its start: how it is called in the block, and the setting with its address.
_DOWNSTREAM: Final = (
    ("gateway", "the bridge at", "CARREL_GATEWAY_BRIDGE"),
    ("execution", "agent_instance at", "CARREL_EXECUTION_AGENT_INSTANCE"),
    ("agent_instance", "the emitter at", "CARREL_AGENT_INSTANCE_EMITTER"),
    ("emitter", "the bridge at", "CARREL_EMITTER_BRIDGE"),
)

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run one service alone until it ends, in a state folder of its own with keys in it."""
    state = tmp_path / "state"
    identity().write(state / "keys")
    secret = state / "keys" / "login.secret"
    secret.write_text("s" * 64)
    secret.chmod(0o600)

    def run(service: str, **settings: str) -> subprocess.CompletedProcess[str]:
        own = {
            "CARREL_STATE_DIR": str(state),
            f"CARREL_{service.upper()}_LISTEN": "127.0.0.1:0",
            "CARREL_DOWNSTREAM_WAIT_SECONDS": "0.3",
        }
        return subprocess.run(
            [sys.executable, "-P", "-m", _MODULES[service]],
            env=clean_environment(own | settings),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )

    return run


def _block(ended: subprocess.CompletedProcess[str], service: str, code: int) -> dict[str, str]:
    """The lines of the block by their labels."""
    assert ended.returncode == code, ended.stdout + ended.stderr
    text = ended.stderr
    assert "Traceback" not in text, text
    _, _, body = text.partition(f"{service} could not start\n")
    assert body, text
    rows: dict[str, str] = {}
    label = ""
    for line in body.splitlines():
        if line.startswith("  ") and line[2:11].strip():
            label = line[2:11].strip()
            rows[label] = line[11:]
        elif label:
            rows[label] += "\n" + line.strip()
    assert rows.keys() == {"phase", "needed", "happened", "to do"}, text
    return rows


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        yield f"127.0.0.1:{busy.getsockname()[1]}"


def _closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# Ports.


def test_a_service_s_port_in_use(taken: str, start: Start) -> None:
    block = _block(start("bridge", CARREL_BRIDGE_LISTEN=taken), "bridge", _FAILED)
    assert block["phase"] == "READINESS"
    assert taken in block["needed"] + block["happened"]
    assert "address" in block["to do"]


def test_the_stack_s_port_in_use(taken: str, tmp_path: Path) -> None:
    ended = run_carrel("up", "--state", str(tmp_path / "state"), "--port", taken.rpartition(":")[2], cwd=tmp_path)
    assert ended.returncode == _FAILED
    assert taken in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("listen", ["127.0.0.1", "nowhere.invalid:1", "127.0.0.1:99999", "192.0.2.1:50054", ":", "x:y"])
def test_an_address_that_cannot_be_listened_on(listen: str, start: Start) -> None:
    ended = start("bridge", CARREL_BRIDGE_LISTEN=listen)
    assert ended.returncode in {_FAILED, _CONFIGURATION}
    block = _block(ended, "bridge", ended.returncode)
    assert listen in block["needed"] + block["happened"]


# Services downstream.


@pytest.mark.parametrize(("service", "needed", "setting"), _DOWNSTREAM)
def test_a_downstream_service_that_is_not_there(service: str, needed: str, setting: str, start: Start) -> None:
    address = _closed_port()
    block = _block(start(service, **{setting: address}), service, _FAILED)
    assert block["phase"] == "INTEGRATION"
    assert f"{needed} {address}" in block["needed"]
    assert address in block["happened"]
    assert "0.3 s" in block["happened"]
    assert "start" in block["to do"]


def test_a_downstream_service_that_is_no_service_of_carrel(taken: str, start: Start) -> None:
    block = _block(start("emitter", CARREL_EMITTER_BRIDGE=taken), "emitter", _FAILED)
    assert block["phase"] == "INTEGRATION"
    assert taken in block["needed"]


# Settings.


def test_every_wrong_and_unknown_setting_is_told_at_once(start: Start) -> None:
    ended = start(
        "execution",
        CARREL_EXECUTION_MAX_ENGINES_PER_USER="many",
        CARREL_EXECUTION_LEASE_SECONDS="-1",
        CARREL_EXECUTION_LISTNE="127.0.0.1:0",
        CARREL_LOG_LEVEL="loud",
        CARREL_LOG_LEVLE="info",
    )
    block = _block(ended, "execution", _CONFIGURATION)
    assert block["phase"] == "CONFIGURATION"
    for name in ("MAX_ENGINES_PER_USER", "LEASE_SECONDS", "EXECUTION_LISTNE", "CARREL_LOG_LEVEL", "CARREL_LOG_LEVLE"):
        assert name in block["happened"], name
    assert "CARREL_EXECUTION_LISTEN" in block["happened"], "what was probably meant"
    assert "debug" in block["happened"], "what may be written instead"


@pytest.mark.parametrize("service", sorted(_MODULES))
def test_an_unknown_setting(service: str, start: Start) -> None:
    ended = start(service, CARREL_NO_SUCH_THING="1", **{f"CARREL_{service.upper()}_NOR_THIS": "1"})
    block = _block(ended, service, _CONFIGURATION)
    assert "CARREL_NO_SUCH_THING" in block["happened"]
    assert f"CARREL_{service.upper()}_NOR_THIS" in block["happened"]


def test_another_service_s_settings_are_left_alone(taken: str, start: Start) -> None:
    ended = start("bridge", CARREL_EXECUTION_ANYTHING="1", CARREL_BRIDGE_LISTEN=taken)
    assert _block(ended, "bridge", _FAILED)["phase"] == "READINESS", "it came as far as listening"


def test_a_secret_s_value_is_in_no_block(start: Start, tmp_path: Path) -> None:
    secret = tmp_path / "short.secret"
    secret.write_text("hunter2")
    secret.chmod(0o600)
    block = _block(start("gateway", CARREL_GATEWAY_LOGIN__SECRET_FILE=str(secret)), "gateway", _CONFIGURATION)
    assert "32" in block["happened"]
    assert "hunter2" not in str(block)


def test_a_login_secret_that_others_can_read(start: Start, tmp_path: Path) -> None:
    secret = tmp_path / "open.secret"
    secret.write_text("s" * 64)
    secret.chmod(0o644)
    block = _block(start("gateway", CARREL_GATEWAY_LOGIN__SECRET_FILE=str(secret)), "gateway", _CONFIGURATION)
    assert "chmod 600" in block["to do"]


def test_production_takes_no_development_secret(start: Start) -> None:
    block = _block(start("gateway", CARREL_ENVIRONMENT="production"), "gateway", _CONFIGURATION)
    assert "login" in block["happened"]


def test_production_needs_tls_between_the_services(start: Start) -> None:
    block = _block(start("emitter", CARREL_ENVIRONMENT="production"), "emitter", _CONFIGURATION)
    for name in ("CARREL_TLS__CERT", "CARREL_TLS__KEY", "CARREL_TLS__CA", "CARREL_TLS__MODE=mesh"):
        assert name in block["happened"]


def test_half_of_tls_and_anothers_certificate(start: Start, tmp_path: Path) -> None:
    half = _block(start("bridge", CARREL_TLS__CERT=str(tmp_path / "tls.crt")), "bridge", _CONFIGURATION)
    assert "half configured" in half["happened"]
    tls = certificate_for(tmp_path / "tls", "gateway")
    files = {f"CARREL_TLS__{name.upper()}": str(getattr(tls, name)) for name in ("cert", "key", "ca")}
    block = _block(start("emitter", **files), "emitter", _CONFIGURATION)
    assert "carries no URI spiffe://carrel.internal/emitter" in block["happened"]
    assert "carrel keys certs" in block["to do"]


@pytest.mark.parametrize("service", sorted(_MODULES))
def test_missing_keys(service: str, start: Start, tmp_path: Path) -> None:
    ended = start(service, CARREL_STATE_DIR=str(tmp_path / "elsewhere"))
    block = _block(ended, service, _CONFIGURATION)
    assert str(tmp_path / "elsewhere") in block["happened"] + block["needed"]


# Agents.

_AGENT: Final = """
from carrel import Agent

class {cls}(Agent):
    name = {name!r}
    requires = {requires!r}
    async def run(self, ctx, request):
        return {{}}
"""


def _agents(folder: Path, **requires: tuple[str, ...]) -> Path:
    path = folder / "authors_agents.py"
    path.write_text(
        "".join(_AGENT.format(cls=name.title(), name=name, requires=needs) for name, needs in requires.items())
    )
    return path


def test_agents_that_require_each_other(start: Start, tmp_path: Path) -> None:
    path = _agents(tmp_path, first=("third",), second=("first",), third=("second",))
    block = _block(start("agent_instance", CARREL_AGENT_INSTANCE_AGENTS=str(path)), "agent_instance", _CONFIGURATION)
    assert "first → third → second → first" in block["happened"]
    assert str(path) in block["happened"], "the file to mend"
    assert "requires" in block["happened"]


def test_the_stack_says_so_too(tmp_path: Path) -> None:
    path = _agents(tmp_path, first=("second",), second=("first",))
    state = str(tmp_path / "state")
    ended = run_carrel("up", "--state", state, "--port", "0", "--agents", str(path), cwd=tmp_path)
    assert ended.returncode not in {0, 2}
    said = ended.stdout + ended.stderr
    assert "first → second → first" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = (", "SyntaxError"),
        ("import no_such_package_anywhere", "no_such_package_anywhere"),
        ("raise SystemExit(3)", "SystemExit"),
        ("x = 1", "no Agent class"),
        (_AGENT.format(cls="A", name="Not A Name", requires=()), "name"),
        (_AGENT.format(cls="A", name="a", requires=("nobody",)), "'nobody'"),
        (_AGENT.format(cls="A", name="a", requires=("a",)), "requires itself"),
        (_AGENT.format(cls="A", name="a", requires=()) + _AGENT.format(cls="B", name="a", requires=()), "rename"),
    ],
)
def test_agents_that_cannot_be_loaded(source: str, said: str, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "authors_agents.py"
    path.write_text(source)
    block = _block(start("agent_instance", CARREL_AGENT_INSTANCE_AGENTS=str(path)), "agent_instance", _CONFIGURATION)
    assert said in block["happened"]
    assert "authors_agents.py" in block["happened"] + block["needed"]


def test_an_agents_file_that_is_not_there(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "missing.py")
    block = _block(start("agent_instance", CARREL_AGENT_INSTANCE_AGENTS=path), "agent_instance", _CONFIGURATION)
    assert path in block["happened"]


# Servers that are not there.


def test_a_bridge_says_at_once_that_its_redis_is_not_there_and_ends_before_those_who_wait_for_it(start: Start) -> None:
    where = _closed_port()
    ended = start("bridge", CARREL_BRIDGE_LOG__URL=f"redis://me:secret@{where}/0", CARREL_DOWNSTREAM_WAIT_SECONDS="1.2")
    block = _block(ended, "bridge", _FAILED)
    assert block["phase"] == "INTEGRATION"
    assert "Redis was not reached within 0.6 s" in block["happened"]
    assert where in block["happened"]
    assert "CARREL_BRIDGE_LOG__URL" in block["to do"]
    warnings = [line for line in ended.stderr.splitlines() if "Redis is not reached; trying again" in line]
    assert len(warnings) == 1, ended.stderr
    assert where in warnings[0]
    assert "secret" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("option", "url", "service", "what"),
    [
        ("--redis", "redis://me:secret@{}/0", "bridge", "Redis was not reached"),
        ("--postgres", "postgresql://me:secret@{}/carrel", "execution", "PostgreSQL"),
    ],
)
def test_a_stack_without_its_server_ends_with_the_word_of_who_needs_it(
    option: str, url: str, service: str, what: str, tmp_path: Path
) -> None:
    where = _closed_port()
    ended = run_carrel(
        *("up", "--state", str(tmp_path / "state"), "--port", "0", option, url.format(where)),
        cwd=tmp_path,
        environment={"CARREL_DOWNSTREAM_WAIT_SECONDS": "8"},
    )
    assert ended.returncode == _FAILED
    assert f"error: {service} ended with exit code 1" in ended.stderr
    assert what in ended.stderr
    assert where in ended.stderr
    assert "secret" not in ended.stdout + ended.stderr


# Folders.


@pytest.mark.parametrize(
    ("service", "setting"), [("bridge", "CARREL_BRIDGE_LOG__PATH"), ("execution", "CARREL_EXECUTION_DATA_DIR")]
)
def test_a_file_in_the_place_of_the_data_folder(service: str, setting: str, start: Start, tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.write_text("I was here first")
    path = place / "events.db" if service == "bridge" else place
    block = _block(start(service, **{setting: str(path)}), service, _FAILED)
    assert block["phase"] == "INTEGRATION"
    assert str(place) in block["needed"] + block["happened"]
    assert place.read_text() == "I was here first"


@pytest.mark.parametrize("service", ["bridge", "execution"])
def test_a_store_that_is_no_store_is_left_as_it_is(service: str, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / ("events.db" if service == "bridge" else "runs.sqlite3")
    path.write_bytes(b"a diary, not a database. " * 400)
    before = path.read_bytes()
    setting = (
        {"CARREL_BRIDGE_LOG__PATH": str(path)} if service == "bridge" else {"CARREL_EXECUTION_DATA_DIR": str(folder)}
    )
    block = _block(start(service, **setting), service, _FAILED)
    assert block["phase"] == "INTEGRATION"
    assert path.read_bytes() == before


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("I was here first")
    ended = run_carrel("up", "--state", str(tmp_path / "state"), "--port", "0", cwd=tmp_path)
    assert ended.returncode not in {0, 2}
    assert str(tmp_path / "state") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
