"""``carrel audit export`` against a real execution: all records once, also over several exports."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from carrel.cli import audit_export, operators
from carrel.cli.audit_export import export_audit, verify_file
from carrel.cli.operators import Operator
from carrel.cli.state import StateFolder
from carrel.errors import InvalidRequestError, PermissionDeniedError, StartupError
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
def operator(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Operator]:
    """An operator who reaches an execution by its address."""
    monkeypatch.setattr(audit_export, "_PAGE", 7)
    monkeypatch.setattr(
        operators,
        "operator_ticket",
        lambda state, permissions, lifetime_s: identity().minter.mint_service("operator", permissions, lifetime_s),
    )
    return lambda address: Operator(address, None, "", None, StateFolder(Path("none")))


def targets(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    acts = [line["record"] for line in lines if "record" in line]
    return [act["target"].removeprefix("löschen ") for act in acts if act["action"] == "test.act"]


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


async def test_every_record_is_exported_once_over_several_exports(
    tmp_path: Path, operator: Callable[[str], Operator], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "audit.jsonl"
    async with running_execution(tmp_path / "one") as world:
        olga = operator(world.address)
        await record(world, 0, 20)
        assert await export_audit(olga, output, since=None, until=now(), user_id="") == 0
        assert output.stat().st_mode & 0o077 == 0
        await record(world, 20, 5)
        since = now()
        await record(world, 25, 3, "bob")
        with output.open("a", encoding="utf-8") as file:
            file.write('{"record":{"torn')
        await export_audit(olga, output, since=None, until=now(), user_id="")
        assert targets(output) == [str(number) for number in range(28)]
        assert verify_file(output) == 0
        assert "may be missing in the file for good" in capsys.readouterr().out
        with pytest.raises(InvalidRequestError, match="still to come"):
            await export_audit(olga, output, since=None, until=now() + dt.timedelta(seconds=20), user_id="")
        before = output.read_bytes()
        await export_audit(olga, output, since=None, until=now(), user_id="")
        assert output.read_bytes() == before
        assert b"audit.export" in before, "that it was exported is on record, too"
        with pytest.raises(InvalidRequestError, match="another selection"):
            await export_audit(olga, output, since=None, until=now(), user_id="bob")
        bobs = tmp_path / "bob.jsonl"
        await export_audit(olga, bobs, since=since, until=None, user_id="bob")
        assert targets(bobs) == [], "what began so lately may still be joined by others"
        await export_audit(olga, bobs, since=since, until=now(), user_id="bob")
        assert targets(bobs) == ["25", "26", "27"]


async def test_two_exports_at_once_do_not_write_over_each_other(
    tmp_path: Path, operator: Callable[[str], Operator]
) -> None:
    output = tmp_path / "audit.jsonl"
    async with running_execution(tmp_path / "one") as world:
        olga = operator(world.address)
        await record(world, 0, 20)
        exports = [export_audit(olga, output, since=None, until=now(), user_id="") for _ in range(2)]
        ended = await asyncio.gather(*exports, return_exceptions=True)
        assert ended[0] == 0
        assert isinstance(ended[1], StartupError)
        assert "another export writes" in ended[1].message
        assert targets(output) == [str(number) for number in range(20)]
        # One that has ended, or was killed, holds nothing.
        assert await export_audit(olga, output, since=None, until=now(), user_id="") == 0
        assert verify_file(output) == 0


async def test_an_export_needs_the_permission(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:
        may, may_not = (service_context(permissions=permissions) for permissions in ((OPERATOR_READ,), ("x",)))
        await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=may, oldest_first=True), timeout=5)
        with pytest.raises(PermissionDeniedError):
            await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=may_not, oldest_first=True), timeout=5)
