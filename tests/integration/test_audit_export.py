"""``carrel audit export`` against a real execution: all records once, also over several exports."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from carrel.cli import audit_export, operators
from carrel.cli.audit_export import export_audit, verify_file
from carrel.cli.state import StateFolder
from carrel.errors import InvalidRequestError, PermissionDeniedError
from carrel.v1 import execution_pb2 as pb
from servicekit.identity.principals import AUDIT_WRITE, OPERATOR_READ
from tests.support.execution import World, running_execution
from tests.support.identity import identity, service_context


async def record(world: World, first: int, count: int, user: str = "alice") -> None:
    context = service_context(permissions=(AUDIT_WRITE,))
    for number in range(first, first + count):
        request = pb.RecordAuditRequest(context=context, user_id=user, action="test.act", target=f"löschen {number}")
        await world.stub.RecordAudit(request, timeout=5)


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An operator's state folder, as far as an export looks at it."""
    monkeypatch.setattr(audit_export, "_PAGE", 7)
    monkeypatch.setattr(
        audit_export,
        "operator_ticket",
        lambda state, permissions, lifetime_s: identity().minter.mint_service("operator", permissions, lifetime_s),
    )

    def at(address: str) -> None:
        for module in (audit_export, operators):
            monkeypatch.setattr(module, "execution_address", lambda state: address)

    return at


def targets(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    acts = [line["record"] for line in lines if "record" in line]
    return [act["target"].removeprefix("löschen ") for act in acts if act["action"] == "test.act"]


async def test_every_record_is_exported_once_over_several_exports(tmp_path: Path, operator: Any) -> None:
    output, state = tmp_path / "audit.jsonl", StateFolder(tmp_path)
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    async with running_execution(tmp_path / "one") as world:
        operator(world.address)
        await record(world, 0, 20)
        assert await export_audit(state, output, since=None, until=until, user_id="") == 0
        assert output.stat().st_mode & 0o077 == 0
        await record(world, 20, 5)
        since = dt.datetime.now(dt.UTC)
        await record(world, 25, 3, "bob")
        with output.open("a", encoding="utf-8") as file:
            file.write('{"record":{"torn')
        await export_audit(state, output, since=None, until=until, user_id="")
        assert targets(output) == [str(number) for number in range(28)]
        assert verify_file(output) == 0
        before = output.read_bytes()
        await export_audit(state, output, since=None, until=until, user_id="")
        assert output.read_bytes() == before
        assert b"audit.export" in before, "that it was exported is on record, too"
        with pytest.raises(InvalidRequestError, match="another selection"):
            await export_audit(state, output, since=None, until=until, user_id="bob")
        bobs = tmp_path / "bob.jsonl"
        await export_audit(state, bobs, since=since, until=None, user_id="bob")
        assert targets(bobs) == [], "what began so lately may still be joined by others"
        await export_audit(state, bobs, since=since, until=until, user_id="bob")
        assert targets(bobs) == ["25", "26", "27"]


async def test_an_export_needs_the_permission(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:
        may, may_not = (service_context(permissions=permissions) for permissions in ((OPERATOR_READ,), ("x",)))
        await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=may, oldest_first=True), timeout=5)
        with pytest.raises(PermissionDeniedError):
            await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=may_not, oldest_first=True), timeout=5)
