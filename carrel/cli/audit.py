"""``carrel audit``: who did what, as execution's audit trail has it."""

from __future__ import annotations

import json
from typing import Any, Final

from carrel.cli.operators import Operator
from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.render import clean
from carrel.client import AuditRecord
from carrel.client.convert import audit_of
from carrel.v1 import execution_pb2

__all__ = ["show_audit"]

_PAGE: Final = 1000


async def show_audit(operator: Operator, *, user_id: str, run_id: str, most: int, as_json: bool) -> int:
    """Print the newest records, newest first; the exit code.

    Raises:
        CarrelError: The gateway or execution refused, or cannot be reached.
    """
    from servicekit.identity.principals import OPERATOR_READ

    printer, left = Printer(), most
    request = execution_pb2.ListAuditRecordsRequest(user_id=user_id, run_id=run_id)
    async with operator.calls(OPERATOR_READ) as calls:
        while left:
            request.page_size = min(left, _PAGE)
            page = await calls.list_audit(request)
            for found in page.records:
                record = audit_of(found)
                printer.say(_json(record) if as_json else _line(record, printer))
            left -= len(page.records)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
    return EXIT_OK


def _line(record: AuditRecord, printer: Printer) -> str:
    began = f"{record.started_at.astimezone():%Y-%m-%d %H:%M:%S}" if record.started_at else ""
    outcome = record.outcome + (f" {record.error_code}" if record.error_code else "")
    colour = "32" if record.outcome == "succeeded" else "31"
    act = f"{record.action} {record.target}".strip()
    by = f" by {record.agent_name}" if record.agent_name else ""
    text = f"{began}  {record.user_id}  {record.run_id}  {act}{by}"
    return f"{clean(text)}  {printer.paint(clean(outcome), colour)}  {record.duration_s * 1000:.0f} ms"


def _json(record: AuditRecord) -> str:
    body: dict[str, Any] = {name: getattr(record, name) for name in AuditRecord.__dataclass_fields__}
    body["started_at"] = record.started_at.isoformat() if record.started_at else None
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
