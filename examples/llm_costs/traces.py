"""Reads a trace of requests from CSV: when each came, how many tokens went in and how many came out.

The schema is that of the Azure LLM inference traces: ``TIMESTAMP, ContextTokens, GeneratedTokens``. Needs no numpy;
what the numbers say is ``profile``'s part.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from carrel.errors import TooLargeError
from examples.llm_costs.errors import MalformedCsvError
from examples.llm_costs.sources import read_text

__all__ = ["COLUMNS", "MAX_ROWS", "MAX_TOKENS", "Trace", "csv_rows", "iso", "load", "parse"]

COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_ROWS: Final = 1_000_000
MAX_TOKENS: Final = 10_000_000
"""The most tokens of one request: ten times the largest context window in the price table."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in columns, ordered by time: microseconds since 1970 (UTC), tokens in, tokens out."""

    name: str
    timestamps: array[int]
    context: array[int]
    generated: array[int]

    def __len__(self) -> int:
        return len(self.timestamps)


def iso(microseconds: int) -> str:
    """A time of a trace as ISO 8601 in UTC, to the second."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def load(path: str) -> Trace:
    """Read the trace at ``path`` (see ``sources.read_text``).

    Raises:
        DataPathError: The path is not one that may be read.
        MalformedCsvError: A line is not what it should be.
        TooLargeError: More than MAX_ROWS requests, or too large a file.
    """
    return parse(path, read_text(path))


def parse(name: str, text: str) -> Trace:
    """The trace in ``text``; ``name`` is what errors call it. Rows out of order in time are put in order."""
    columns = array("q"), array("q"), array("q")
    for line, (when, context, generated) in csv_rows(name, text, COLUMNS):
        if len(columns[0]) >= MAX_ROWS:
            raise TooLargeError(
                f"{name} has more than {MAX_ROWS:,} requests",
                advice="split the file, or take a sample of its rows",
                limit="max_rows",
                limit_value=MAX_ROWS,
                use=MAX_ROWS + 1,
            )
        columns[0].append(_timestamp(name, line, when))
        columns[1].append(_tokens(name, line, COLUMNS[1], context))
        columns[2].append(_tokens(name, line, COLUMNS[2], generated))
    if not columns[0]:
        raise MalformedCsvError(name, 2, COLUMNS[0], "at least one request below the header", "")
    return _in_order(Trace(name, *columns))


def csv_rows(name: str, text: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and the values of ``columns``, in that order, of each row of a CSV file with a header.

    Other columns are passed over, blank lines too.

    Raises:
        MalformedCsvError: The header lacks a column, or a row has more or fewer fields than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [field.strip() for field in next(reader, [])]
        for column in columns:
            if header.count(column) != 1:
                raise MalformedCsvError(name, 1, column, f"a header with {', '.join(columns)}", ", ".join(header))
        places = [header.index(column) for column in columns]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                # Named by the first column that is missing, or by the last one known.
                column = header[min(len(row), len(header) - 1)]
                raise MalformedCsvError(
                    name, reader.line_num, column, f"{len(header)} fields as in the header", f"{len(row)} fields"
                )
            yield reader.line_num, [row[place].strip() for place in places]
    except csv.Error as error:
        raise MalformedCsvError(name, reader.line_num, columns[0], "a row of CSV", str(error)) from error


def _timestamp(name: str, line: int, value: str) -> int:
    try:
        # Digits past the microsecond are dropped by fromisoformat (the Azure traces have seven).
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise MalformedCsvError(name, line, COLUMNS[0], "a time such as 2023-11-16 18:17:03.98", value) from None
    microseconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    if microseconds < 0:
        raise MalformedCsvError(name, line, COLUMNS[0], "a time from 1970 on", value)
    return microseconds


def _tokens(name: str, line: int, column: str, value: str) -> int:
    # Not int() alone, which takes "1_000", " 7" and digits of other scripts.
    if value.isascii() and value.isdigit() and len(value) <= 8 and (count := int(value)) <= MAX_TOKENS:
        return count
    raise MalformedCsvError(name, line, column, f"a whole number of tokens from 0 to {MAX_TOKENS:,}", value)


def _in_order(trace: Trace) -> Trace:
    times = trace.timestamps
    if all(times[i] <= times[i + 1] for i in range(len(times) - 1)):
        return trace
    order = sorted(range(len(times)), key=times.__getitem__)
    return Trace(trace.name, *(array("q", [c[i] for i in order]) for c in (times, trace.context, trace.generated)))
