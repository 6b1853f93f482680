"""``carrel audit``: who did what on this machine's stack, for whoever may read its keys."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from carrel.cli.operators import execution_address, operator_credentials, operator_ticket
from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.render import clean
from carrel.cli.state import StateFolder
from carrel.client import AuditRecord, Endpoints, InternalClient, Ticket
from carrel.errors import PermissionDeniedError

__all__ = ["OperatorTickets", "show_audit"]

_LIFETIME_S: Final = 600.0


class OperatorTickets:
    """Service tickets with ``operator:read``, made with the key in the state folder. Nothing in a user's name."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    async def service(self) -> Ticket:
        """A service ticket.

        Raises:
            StartupError: The key cannot be read.
        """
        from servicekit.identity.principals import OPERATOR_READ

        text = operator_ticket(self._state, (OPERATOR_READ,), _LIFETIME_S)
        return Ticket("service", text, time.time() + _LIFETIME_S)

    async def session(self) -> Ticket:
        """There is none."""
        raise _no_user()

    async def run(self, *, run_id: str = "", thread_id: str = "") -> Ticket:
        """There is none."""
        raise _no_user()


async def show_audit(state: StateFolder, *, user_id: str, run_id: str, most: int, as_json: bool) -> int:
    """Print the newest records, newest first; the exit code.

    Raises:
        StartupError: No stack runs in the state folder.
        CarrelError: Execution refused or cannot be reached.
    """
    execution = execution_address(state)
    printer, left = Printer(), most
    tls = operator_credentials(state)
    async with InternalClient(Endpoints(execution=execution), OperatorTickets(state), tls=tls) as client:
        page_size = min(most, 1000)
        async for record in client.list_audit(run_id=run_id, user_id=user_id, everyone=True, page_size=page_size):
            printer.say(_json(record) if as_json else _line(record, printer))
            left -= 1
            if not left:
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


def _no_user() -> PermissionDeniedError:
    return PermissionDeniedError("an operator's tickets stand for no user", advice="log in as the user")
