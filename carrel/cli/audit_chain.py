"""The file of an audit export: one JSON object a line, each with the hash of itself and of the line before.

A line that is taken out, put in, changed or moved is found; so is a torn last line. Lines cut off at the end are found
only by whoever has kept the last hash elsewhere. Nothing here says what was in the store before the export.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TextIO

from carrel.errors import CorruptStoreError

__all__ = ["Chain", "chain_of"]

# The first line, whose names are in their order.
_BEGINS: Final = b'{"hash":"'
_START: Final = hashlib.sha256(b"carrel-audit-1").hexdigest()


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a file's chain stands.

    Args:
        head: The hash of its last line.
        records: How many records it has.
        cursor: Where the export goes on; empty at the beginning.
        selection: What was exported (since, user); another selection is another file's.
        size: Bytes up to the last cursor: what follows it is of a page that did not come whole.
    """

    head: str = _START
    records: int = 0
    cursor: str = ""
    selection: Mapping[str, Any] | None = None
    size: int = 0

    def write(self, file: TextIO, body: Mapping[str, Any]) -> Chain:
        """Add a line; the chain with it."""
        text = _canonical({**body, "prev": self.head})
        head = hashlib.sha256(text.encode()).hexdigest()
        file.write(_canonical({**json.loads(text), "hash": head}) + "\n")
        return self._after(body, head)

    def _after(self, body: Mapping[str, Any], head: str) -> Chain:
        if "cursor" in body:
            return replace(self, head=head, cursor=body["cursor"])
        if "selection" in body:
            return replace(self, head=head, selection=body["selection"])
        return replace(self, head=head, records=self.records + 1)

    def read(self, line: str, number: int) -> Chain:
        """Take a line of the file; the chain with it.

        Raises:
            CorruptStoreError: It is not what was written there.
        """
        body: dict[str, Any] = {}
        head = ""
        try:
            body = json.loads(line)
            head = body.pop("hash")
            right = head == hashlib.sha256(_canonical(body).encode()).hexdigest() and body.pop("prev") == self.head
        except (ValueError, KeyError, AttributeError, TypeError):
            right = False
        if not right:
            raise CorruptStoreError(
                f"line {number} is not what was written after line {number - 1}: lines were changed or taken out here",
                advice="export again into another file, and find out who could write to this one",
                line=number,
            )
        return self._after(body, head)


def chain_of(path: Path, *, torn: bool = False) -> tuple[Chain, Chain]:
    """The chain of a file at its end, and at its last cursor.

    Args:
        path: The file.
        torn: Pass over a last line without its end, which an export that was killed leaves behind.

    Raises:
        CorruptStoreError: A line is not what was written there, or the file is something else.
        OSError: The file cannot be read.
    """
    try:
        return _chain_of(path, torn=torn)
    except UnicodeError:
        raise _foreign(path) from None


def _chain_of(path: Path, *, torn: bool) -> tuple[Chain, Chain]:
    chain = at_cursor = Chain()
    size = 0
    for number, line in enumerate(_lines(path, torn=torn), 1):
        before = chain.cursor
        chain = chain.read(line, number)
        size += len(line.encode())
        if chain.cursor != before or (chain.selection is not None and at_cursor.selection is None):
            at_cursor = replace(chain, size=size)
    return replace(chain, size=size), at_cursor


def _lines(path: Path, *, torn: bool) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            # Before it is read as text: it may end within a letter.
            if torn and not line.endswith(b"\n"):
                # Whatever is torn is thrown away: somebody's one-line file must not be.
                if number == 0 and line[: len(_BEGINS)] != _BEGINS[: len(line)]:
                    raise _foreign(path)
                return
            yield line.decode()


def _foreign(path: Path) -> CorruptStoreError:
    return CorruptStoreError(f"{path} is no export of the audit trail", advice="name another file; it is left as it is")


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
