"""Addresses in settings: what each kind takes, and that a wrong one is told with everything else that is wrong."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from carrel.errors import StartupError, UnavailableError
from gateway.config import GatewaySettings
from servicekit.addresses import addresses_of, has_copies, split_addresses
from servicekit.settings import ListenAddress, PeerAddress, SharedSettings, TcpListenAddress, load_settings
from services.agent_instance.config import AgentInstanceSettings
from services.bridge.config import BridgeSettings
from services.emitter.config import EmitterSettings
from services.execution.config import ExecutionSettings

LISTEN: TypeAdapter[str] = TypeAdapter(ListenAddress)
TCP: TypeAdapter[str] = TypeAdapter(TcpListenAddress)
PEER: TypeAdapter[str] = TypeAdapter(PeerAddress)

HOST_AND_PORT = ["127.0.0.1:50051", "0.0.0.0:1", "[::1]:65535", "[::]:8080", "localhost:80", "a_b-c.d.svc.local.:443"]
UNIX = ["unix:/run/carrel.sock", "unix:relative.sock", "unix:///run/carrel.sock"]
NO_ADDRESS = [
    "", "bad", ":50051", "host:", "host", "::1:50051", "[::1]", "[::1:50051", "[127.0.0.1]:1", "host:65536", "host:-1",
    "host:+1", "host:\u0663", "host:000001", "http://host:80", "ho st:80", "host/x:80", "-host:1", "300.1.1.1:80",
    "1.2.3:80", "unix:", "unix://run/x", "unix:" + "x" * 108, "x" * 254 + ":1", "*:80", "host:80/",
]  # fmt: skip


def takes(kind: TypeAdapter[str], address: str) -> bool:
    try:
        return kind.validate_python(address) == address
    except ValidationError:
        return False


@pytest.mark.parametrize("address", HOST_AND_PORT)
def test_host_and_port_are_taken_everywhere(address: str) -> None:
    assert takes(LISTEN, address)
    assert takes(TCP, address)
    assert takes(PEER, address)


@pytest.mark.parametrize("address", UNIX)
def test_unix_socket_is_taken_where_grpc_speaks(address: str) -> None:
    assert takes(LISTEN, address)
    assert takes(PEER, address)
    assert not takes(TCP, address)


def test_port_0_is_listened_on_and_not_dialled_and_a_name_service_is_dialled_and_not_listened_on() -> None:
    assert [takes(kind, "localhost:0") for kind in (LISTEN, TCP, PEER)] == [True, True, False]
    assert [takes(kind, "dns:///bridge:50054") for kind in (LISTEN, TCP, PEER)] == [False, False, True]
    assert not takes(PEER, "dns:///bridge")


@pytest.mark.parametrize("address", NO_ADDRESS)
def test_what_is_no_address_is_taken_nowhere(address: str) -> None:
    assert not any(takes(kind, address) for kind in (LISTEN, TCP, PEER))


COPIES = ["127.0.0.1:1,127.0.0.1:2", "[::1]:1,127.0.0.1:2", "a:1,b:1,c:1"]
NO_COPIES = [
    "a:1,", ",a:1", "a:1,,b:1", "a:1,b", "a:1,b:0", "a:1,a:1", "dns:///a:1,b:1", "a:1,dns:///b:1", "a:1,unix:/b",
    ",".join(f"a:{port}" for port in range(1, 258)),
]  # fmt: skip


@pytest.mark.parametrize("address", COPIES)
def test_a_list_of_copies_is_dialled_and_not_listened_on(address: str) -> None:
    assert [takes(kind, address) for kind in (LISTEN, TCP, PEER)] == [False, False, True]
    assert has_copies(address)
    assert split_addresses(PEER.validate_python(address.replace(",", " , "))) == address.split(",")


@pytest.mark.parametrize("address", NO_COPIES)
def test_what_is_no_list_of_copies_is_taken_nowhere(address: str) -> None:
    assert not any(takes(kind, address) for kind in (LISTEN, TCP, PEER))


def test_a_comma_in_a_sockets_path_makes_no_list() -> None:
    assert takes(PEER, "unix:/run/a,b.sock")
    assert split_addresses("unix:/run/a,b.sock") == ["unix:/run/a,b.sock"]
    assert not has_copies("unix:/run/a,b.sock")


async def test_single_addresses_of_each_kind_of_target() -> None:
    assert await addresses_of("a:1") == ["a:1"]
    assert await addresses_of("a:1,b:2") == ["a:1", "b:2"]
    assert "127.0.0.1:7" in await addresses_of("dns:///localhost:7")
    assert has_copies("dns:///localhost:7")
    with pytest.raises(UnavailableError, match="no-such-host"):
        await addresses_of("dns:///no-such-host.invalid:7")


@pytest.mark.parametrize(
    ("cls", "service", "peers"),
    [
        (ExecutionSettings, "execution", ["agent_instance", "emitter"]),
        (AgentInstanceSettings, "agent_instance", ["emitter"]),
        (EmitterSettings, "emitter", ["bridge"]),
        (BridgeSettings, "bridge", []),
        (GatewaySettings, "gateway", ["execution", "agent_instance", "bridge"]),
    ],
)
def test_every_wrong_address_of_a_service_is_told_at_once_with_what_to_write(
    cls: type[SharedSettings], service: str, peers: list[str]
) -> None:
    names = [f"CARREL_{service}_{field}".upper() for field in ["listen", *peers]]
    with pytest.raises(StartupError) as caught:
        load_settings(cls, service, {**dict.fromkeys(names, "xx"), "CARREL_DRAIN_SECONDS": "-1"})
    problems: list[Any] = caught.value.details["problems"]
    told = {problem.partition("=")[0]: problem for problem in problems}
    assert set(told) == {*names, "CARREL_DRAIN_SECONDS"}
    for name in names:
        assert "xx is wrong: write host:port or [IPv6 address]:port, the port from " in told[name]
        assert ", for example 127.0.0.1:" in told[name]
