"""Where the doctor finds services: a name stands for all its copies, and where TLS comes from."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from carrel.cli.doctor.access import find_access
from carrel.cli.doctor.services import Services
from carrel.cli.doctor.settings import DoctorSettings
from carrel.errors import StartupError


async def no_ticket() -> str:
    raise AssertionError("nothing is asked here")


async def test_name_is_all_its_copies_and_one_that_nobody_knows_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        numbers = {"execution": ["10.0.0.2", "10.0.0.1", "fd00::1"], "127.0.0.1": ["127.0.0.1"]}
        if host not in numbers:
            raise socket.gaierror(-2, "unknown")
        return [(0, 0, 0, "", (number, port)) for number in numbers[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    named = {"execution": ["execution:50051"], "emitter": ["127.0.0.1:1"], "bridge": ["nowhere:50054"]}
    async with Services(named, no_ticket) as services:
        assert services.addresses == {
            "execution": ["10.0.0.1:50051", "10.0.0.2:50051"],
            "agent_instance": [],
            "emitter": ["127.0.0.1:1"],
            "bridge": ["nowhere:50054"],
        }


def test_services_of_the_state_folder_are_not_those_of_another_gateway(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(
        '{"url": "http://h:1", "urls": ["http://h:1"], "addresses": {"a": "h:2"}, "copies": {"execution": ["a"],'
        ' "agent_instance": ["a"], "emitter": ["a"], "bridge": ["a"]}, "settings": {}}'
    )
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "login.secret").write_text("s" * 64)
    mine = find_access(DoctorSettings(), "", (), tmp_path)
    assert (mine.urls, mine.addresses["execution"]) == (["http://h:1"], ["h:2"])
    other = find_access(DoctorSettings(), "gateway.example:8080,http://two", (), tmp_path)
    assert (other.urls, other.addresses["execution"]) == (["http://gateway.example:8080", "http://two"], [])


def test_certificate_of_a_stack_with_tls_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    cert = tmp_path / "certificates" / "execution" / "tls.crt"
    (tmp_path / "stack.json").write_text(
        '{"url": "http://h:1", "urls": ["http://h:1"], "addresses": {"a": "h:2"}, "copies": {"execution": ["a"],'
        ' "agent_instance": ["a"], "emitter": ["a"], "bridge": ["a"]},'
        f' "settings": {{"execution": {{"CARREL_TLS__CERT": "{cert}"}}}}}}'
    )
    with pytest.raises(StartupError, match="TLS between the services cannot be read"):
        find_access(DoctorSettings(), "", (), tmp_path)
