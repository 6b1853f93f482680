"""`carrel up --replicas`: how many copies, what they are called, who is told of whom, and which stores bear copies."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from carrel.cli.ports import Ports
from carrel.cli.replicas import LOG_URL, STORE_URL, check_shared_stores, parse_replicas, process_names, without_password
from carrel.cli.stack import _choose_addresses, _own_environments, open_stack, stack_options
from carrel.cli.state import StateFolder, address_in
from carrel.errors import StartupError
from servicekit.addresses import split_addresses

REDIS, POSTGRES = "redis://:secret@127.0.0.1:6379/0", "postgresql://carrel:secret@127.0.0.1:5432/carrel"


def test_copies_are_numbered_and_a_single_process_is_called_after_its_service() -> None:
    names = process_names(parse_replicas("execution=2, bridge=1,"))
    assert names["execution"] == ["execution-1", "execution-2"]
    assert names["bridge"] == ["bridge"]
    assert list(names) == ["gateway", "execution", "agent_instance", "emitter", "bridge"]
    assert parse_replicas("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("execution", "not of the form"),
        ("execution=", "not of the form"),
        ("execution=-1", "not of the form"),
        ("execution=0", "0 copies"),
        ("emitter=33", "33 copies"),
        ("worker=2", "no service is called worker"),
        ("emitter=2,emitter=3", "twice"),
    ],
)
def test_wrong_replicas_are_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(StartupError, match=said) as caught:
        parse_replicas(text)
    assert caught.value.advice


@pytest.mark.parametrize(("service", "option"), [("bridge", "--redis"), ("execution", "--postgres")])
async def test_a_store_of_one_process_refuses_a_second_copy_before_anything_starts(
    service: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOG_URL, raising=False)
    monkeypatch.delenv(STORE_URL, raising=False)
    said: list[str] = []
    with pytest.raises(StartupError, match=f"2 copies of {service} can't share") as caught:
        async with open_stack(stack_options(tmp_path, replicas=f"{service}=2"), lambda _, line: said.append(line)):
            pass
    assert option in caught.value.advice
    assert caught.value.phase == "CONFIGURATION"
    assert said == []
    assert not list(tmp_path.iterdir())


def test_copies_without_a_store_of_their_own_and_those_with_a_shared_one_are_taken() -> None:
    check_shared_stores({"gateway": 3, "agent_instance": 2, "emitter": 2}, {})
    check_shared_stores({"bridge": 2, "execution": 2}, {LOG_URL: REDIS, STORE_URL: POSTGRES})
    with pytest.raises(StartupError):
        check_shared_stores({"bridge": 2}, {LOG_URL: " ", STORE_URL: POSTGRES})


def test_each_copy_listens_for_itself_and_is_known_to_those_who_ask(tmp_path: Path) -> None:
    options = stack_options(
        tmp_path,
        port=0,
        replicas="execution=2,agent_instance=2,emitter=2,bridge=2,gateway=2",
        redis=REDIS,
        postgres=POSTGRES,
    )
    addresses = _choose_addresses(options)
    assert len(set(addresses.values())) == 10
    own = _own_environments(options, StateFolder(tmp_path), addresses)
    for name, service in (("bridge-2", "BRIDGE"), ("gateway-1", "GATEWAY"), ("agent_instance-2", "AGENT_INSTANCE")):
        assert own[name][f"CARREL_{service}_LISTEN"] == addresses[name]
    bridges = [addresses["bridge-1"], addresses["bridge-2"]]
    assert split_addresses(own["gateway-2"]["CARREL_GATEWAY_BRIDGE"]) == bridges
    assert split_addresses(own["emitter-1"]["CARREL_EMITTER_BRIDGE"]) == bridges
    assert own["bridge-1"][LOG_URL] == own["bridge-2"][LOG_URL] == REDIS
    assert own["execution-1"][STORE_URL] == POSTGRES
    assert STORE_URL not in own["bridge-1"]
    assert LOG_URL not in own["execution-1"]


def test_with_telemetry_on_each_process_has_metrics_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = stack_options(tmp_path, port=0, replicas="gateway=2")
    monkeypatch.setenv("CARREL_TELEMETRY__ENABLED", "true")
    addresses = _choose_addresses(options)
    own = _own_environments(options, StateFolder(tmp_path), addresses)
    metrics = [environment["CARREL_TELEMETRY__METRICS_LISTEN"] for environment in own.values()]
    assert len(set(metrics)) == 6
    assert not set(metrics) & {environment.get("CARREL_GATEWAY_LISTEN") for environment in own.values()}
    # What is given, "off" among it, is left as it is.
    monkeypatch.setenv("CARREL_TELEMETRY__METRICS_LISTEN", "off")
    own = _own_environments(options, StateFolder(tmp_path), _choose_addresses(options))
    assert not [name for name, environment in own.items() if "CARREL_TELEMETRY__METRICS_LISTEN" in environment]


def test_further_gateways_get_the_next_free_ports() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
    with Ports() as ports:
        found = ports.public("127.0.0.1", port, 3, yields=False)
    numbers = [int(address.rpartition(":")[2]) for address in found]
    assert numbers[0] == port
    assert sorted(set(numbers)) == numbers


def test_a_taken_port_between_is_passed_over() -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        try:
            second.bind(("127.0.0.1", port + 1))
        except OSError:
            pytest.skip("another program has the next port")
        second.listen()
        first.close()
        with Ports() as ports:
            found = ports.public("127.0.0.1", port, 2, yields=False)
    assert found[0] == f"127.0.0.1:{port}"
    assert int(found[1].rpartition(":")[2]) > port + 1


def test_passwords_in_urls_are_not_shown() -> None:
    assert without_password(REDIS) == "redis://:********@127.0.0.1:6379/0"
    assert without_password(POSTGRES) == "postgresql://carrel:********@127.0.0.1:5432/carrel"
    assert without_password("redis+sentinel://u:p@h1:1,h2:2/main/0") == "redis+sentinel://u:********@h1:1,h2:2/main/0"
    assert without_password("127.0.0.1:50054,127.0.0.1:50055") == "127.0.0.1:50054,127.0.0.1:50055"


def test_other_commands_find_the_first_copy() -> None:
    facts = {
        "copies": {"execution": ["execution-1", "execution-2"]},
        "addresses": {"execution-1": "a:1", "bridge": "b"},
    }
    assert address_in(facts, "execution") == "a:1"
    assert address_in(facts, "bridge") == "b"
