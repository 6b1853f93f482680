"""``carrel audit export`` and ``verify``: the audit trail as a file that can go on, and that shows tampering."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from pathlib import Path
from typing import Any, Final, TextIO

from google.protobuf.timestamp_pb2 import Timestamp

from carrel.cli.audit_chain import Chain, chain_of
from carrel.cli.operators import Operator
from carrel.cli.output import EXIT_OK, Printer
from carrel.errors import InvalidRequestError, StartupError
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2

__all__ = ["export_audit", "moment", "verify_file"]

_PAGE: Final = 1000
# An act is recorded when it has ended, under the time when it began: what began so lately may still come.
_SETTLED: Final = dt.timedelta(minutes=15)


def moment(text: str) -> dt.datetime | None:
    """A time that was written on the command line, in UTC where it does not say; None for the empty text.

    Raises:
        typer.BadParameter: It is none.
    """
    if not text:
        return None
    import typer

    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: write 2026-11-28 or 2026-11-28T12:00:00+00:00") from None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


async def export_audit(
    operator: Operator, output: Path, *, since: dt.datetime | None, until: dt.datetime | None, user_id: str
) -> int:
    """Write records into the file, or those that have come since into one that is there; the exit code.

    Args:
        operator: Whom execution lets read.
        output: The file.
        since: Records of acts that began from then on.
        until: Records of acts that began before then; a quarter of an hour ago when None.
        user_id: Of this user only; of everybody when empty.

    Raises:
        StartupError: The file cannot be written, or another export writes it.
        InvalidRequestError: The file is an export of something else, or ``until`` is still to come.
        CorruptStoreError: The file is not as it was written.
        CarrelError: Execution refused or cannot be reached. What was written is good, and goes on the next time.
    """
    now = dt.datetime.now(dt.UTC)
    if until is not None and until > now:
        raise InvalidRequestError(
            f"--until {until.isoformat()} is still to come: nobody knows yet what will be in it",
            advice="leave --until out, which takes what is settled, or name a time that is over",
        )
    newest = until or now - _SETTLED
    selection = {"since": since.isoformat() if since else "", "user": user_id}
    try:
        # Nobody else's to read: who did what with which tool.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            # Before it is read: two exports would go on from the same line, one over the other's.
            _lock(file, output)
            chain = _resume(output, selection)
            file.seek(chain.size)
            file.truncate()
            if chain.selection is None:
                chain = chain.write(file, {"selection": selection})
            before = chain.records
            chain = await _export(operator, file, chain, _request(since, newest, user_id))
    except OSError as error:
        raise StartupError(
            f"the file {output} cannot be used: {error.strerror or error}", advice="name a file that you may write"
        ) from None
    printer = Printer()
    printer.say(
        f"{output}: {chain.records - before} records more, {chain.records} in all, of acts that began before"
        f" {newest.isoformat(timespec='seconds')}. Last hash: {chain.head}"
    )
    if newest > now - _SETTLED:
        printer.say(
            "Acts of the last quarter of an hour are recorded when they end: one that comes later than this export may"
            " be missing in the file for good. Leave --until out for a file that goes on."
        )
    return EXIT_OK


def verify_file(path: Path) -> int:
    """Check a file's chain; the exit code.

    Raises:
        CorruptStoreError: It is not as it was written.
        StartupError: It cannot be read.
    """
    try:
        chain, _ = chain_of(path)
    except (OSError, UnicodeError) as error:
        raise StartupError(f"the file {path} cannot be read: {error}", advice="name an exported file") from None
    Printer().say(
        f"{path}: {chain.records} records, unchanged. Last hash: {chain.head} (compare it with the one that the export "
        "has printed: lines that were cut off at the end show nowhere else)"
    )
    return EXIT_OK


def _lock(file: TextIO, output: Path) -> None:
    """Hold the file until it is closed; the kernel lets go of it for a process that is killed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartupError(
            f"another export writes {output} at this moment",
            advice="wait for its end, then export again: it goes on from there; or name another file",
        ) from None


def _resume(output: Path, selection: dict[str, str]) -> Chain:
    if not output.exists() or not output.stat().st_size:
        return Chain()
    _, chain = chain_of(output, torn=True)
    if chain.selection is not None and chain.selection != selection:
        raise InvalidRequestError(
            f"{output} is an export of another selection: {chain.selection}",
            advice="give the same --since and --user, or another file",
        )
    return chain


def _request(since: dt.datetime | None, until: dt.datetime, user_id: str) -> execution_pb2.ListAuditRecordsRequest:
    request = execution_pb2.ListAuditRecordsRequest(user_id=user_id, page_size=_PAGE, oldest_first=True)
    if since is not None:
        request.since.FromDatetime(since)
    request.until.FromDatetime(until)
    return request


async def _export(
    operator: Operator, file: TextIO, chain: Chain, request: execution_pb2.ListAuditRecordsRequest
) -> Chain:
    from servicekit.identity.principals import OPERATOR_READ

    async with operator.calls(OPERATOR_READ) as calls:
        while True:
            request.page_token = chain.cursor
            page = await calls.list_audit(request)
            if not page.records:
                return chain
            for record in page.records:
                chain = chain.write(file, {"record": _record(record)})
            chain = chain.write(file, {"cursor": page.next_page_token})
            file.flush()
            os.fsync(file.fileno())


def _record(record: ai.AuditRecord) -> dict[str, Any]:
    names = (
        "record_id", "user_id", "thread_id", "run_id", "request_id", "action", "target", "error_code",
        "arguments_hash", "agent_name",
    )  # fmt: skip
    body: dict[str, Any] = {name: getattr(record, name) for name in names if getattr(record, name)}
    body["outcome"] = ai.AuditOutcome.Name(record.outcome).removeprefix("AUDIT_OUTCOME_").lower()
    body["started_at"] = _iso(record.started_at)
    body["duration_s"] = record.duration.seconds + record.duration.nanos / 1e9
    return body


def _iso(time: Timestamp) -> str:
    return time.ToDatetime(dt.UTC).isoformat(timespec="microseconds")
