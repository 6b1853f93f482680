"""Canaries: words that name one user's run and cannot be made up, and where they are found again.

``Canaries.find`` tells whose a text's canaries are; the scans below look through what the services keep and write.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from services.bridge.tables import OFFSET_BITS

_CANARY: Final = re.compile(rb"cnry-[0-9a-f]{32}")
_OWNER_COLUMNS: Final = ("user_id", "user")
_SQLITE: Final = b"SQLite format 3\0"
_CHUNK: Final = 1 << 20


@dataclass
class Canaries:
    """Makes canaries with a key of its own and remembers whose they are."""

    key: bytes
    owners: dict[bytes, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    seen: int = 0

    def make(self, user: str, run: str) -> str:
        """A new one for this user's run."""
        word = f"cnry-{hmac.new(self.key, f'{user}/{run}'.encode(), hashlib.sha256).hexdigest()[:32]}"
        self.owners[word.encode()] = user
        return word

    def find(self, data: bytes) -> set[str]:
        """Whose canaries are in there; one that was never made has the owner "?"."""
        return {self.owners.get(word, "?") for word in _CANARY.findall(data)}

    def check(self, data: bytes, user: str, where: str) -> None:
        """Count the canaries in what ``user`` got to see; remember each that is somebody else's."""
        owners = self.find(data)
        self.seen += bool(owners)
        self.foreign += [f"{where}: {owner}'s canary before {user}" for owner in sorted(owners - {user})]


def scan_databases(canaries: Canaries, folder: Path) -> tuple[int, list[str]]:
    """(rows with canaries, what is wrong) of every SQLite file below ``folder``: a row of one user's with another's."""
    rows, wrong = 0, []
    for path in _databases(folder):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for place, owner, data in _rows(database):
                owners = canaries.find(data)
                if not owners:
                    continue
                rows += 1
                if owner is None and len(owners) > 1:
                    wrong.append(f"{path.name}, {place}: canaries of {sorted(owners)} in one row of nobody's")
                elif owner is not None and owners != {owner}:
                    wrong.append(f"{path.name}, {place}: canaries of {sorted(owners)} in a row of {owner}")
    return rows, wrong


def _users_by_number(database: sqlite3.Connection) -> dict[int, str]:
    """The event log's users by the number it gives them; empty for other files."""
    try:
        return dict(database.execute("SELECT uid, user FROM users"))
    except sqlite3.OperationalError:
        return {}


def _owner(row: dict[str, Any], by_number: dict[int, str]) -> str | None:
    if (name := next((row[column] for column in _OWNER_COLUMNS if column in row), None)) is not None:
        return _text(name)
    if by_number and "uid" in row:
        return by_number.get(row["uid"], "?")
    # An entry's key is its user's number and its offset.
    return by_number.get(row["key"] >> OFFSET_BITS, "?") if by_number and "key" in row else None


def _rows(database: sqlite3.Connection) -> Iterator[tuple[str, str | None, bytes]]:
    """(where, whose or None, everything in it) of every row of every table."""
    by_number = _users_by_number(database)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for name in tables:
        cursor = database.execute(
            f'SELECT rowid, * FROM "{name}"' if _has_rowid(database, name) else f'SELECT 0, * FROM "{name}"'
        )
        columns = [column[0] for column in cursor.description]
        for row in cursor:
            owner = _owner(dict(zip(columns, row, strict=True)), by_number)
            yield f"table {name}, row {row[0]}", owner, b"\0".join(map(_bytes, row))


def _has_rowid(database: sqlite3.Connection, table: str) -> bool:
    try:
        database.execute(f'SELECT rowid FROM "{table}" LIMIT 1')
    except sqlite3.OperationalError:
        return False
    return True


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def scan_files(canaries: Canaries, folder: Path) -> tuple[int, list[str]]:
    """(files with canaries, what is wrong) of all other files below ``folder``: canaries of two users in one."""
    files, wrong = 0, []
    # Their write-ahead logs, too, which have many users' pages.
    databases = tuple(map(str, _databases(folder)))
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or str(path).startswith(databases):
            continue
        owners = _owners_in(canaries, path)
        files += bool(owners)
        if len(owners) > 1:
            wrong.append(f"{path.name}: canaries of {sorted(owners)} in one file")
    return files, wrong


def scan_log(canaries: Canaries, path: Path) -> list[str]:
    """What is wrong with a log: any canary in it."""
    with path.open("rb") as log:
        return [
            f"{path.name}, line {number}: canaries of {sorted(owners)}: {line[:300]!r}"
            for number, line in enumerate(log, 1)
            if (owners := canaries.find(line))
        ]


def _databases(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and _begins(path, _SQLITE))


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _owners_in(canaries: Canaries, path: Path) -> set[str]:
    owners: set[str] = set()
    rest = b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                owners |= canaries.find(rest + chunk)
                rest = chunk[-64:]
    except OSError:
        return owners
    return owners
