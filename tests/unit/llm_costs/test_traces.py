"""Reading traces from CSV: every wrong line is named."""

from __future__ import annotations

import pytest

from carrel.errors import TooLargeError
from examples.llm_costs import traces
from examples.llm_costs.errors import MalformedCsvError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_azure_form_is_read() -> None:
    trace = traces.parse("t", "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n")
    assert (list(trace.timestamps), list(trace.context), list(trace.generated)) == ([1700158623979960], [4808], [10])
    assert traces.iso(trace.timestamps[0]) == "2023-11-16T18:17:03Z"


def test_columns_may_come_in_any_order_among_others() -> None:
    trace = traces.parse("t", "x,GeneratedTokens,TIMESTAMP,ContextTokens\nq,3,2024-01-01T00:00:00+01:00,2\n\n")
    assert (list(trace.context), list(trace.generated)) == ([2], [3])
    assert traces.iso(trace.timestamps[0]) == "2023-12-31T23:00:00Z"


def test_rows_out_of_order_are_put_in_order() -> None:
    trace = traces.parse("t", HEADER + "2024-01-01 00:00:02,2,20\n2024-01-01 00:00:01,1,10\n")
    assert (list(trace.context), list(trace.generated)) == ([1, 2], [10, 20])
    assert trace.timestamps[0] < trace.timestamps[1]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("yesterday,1,1", "TIMESTAMP"),
        ("1969-12-31 23:59:59,1,1", "TIMESTAMP"),
        ("2024-01-01 00:00:00,-1,1", "ContextTokens"),
        ("2024-01-01 00:00:00,1.5,1", "ContextTokens"),
        ("2024-01-01 00:00:00,1_000,1", "ContextTokens"),
        ("2024-01-01 00:00:00,\u0663,1", "ContextTokens"),
        ("2024-01-01 00:00:00,1,", "GeneratedTokens"),
        ("2024-01-01 00:00:00,1,10000001", "GeneratedTokens"),
        ("2024-01-01 00:00:00,1", "GeneratedTokens"),
        ("2024-01-01 00:00:00,1,1,1", "GeneratedTokens"),
        ('2024-01-01 00:00:00,1,"1"x', "TIMESTAMP"),
    ],
)
def test_wrong_row_names_line_column_and_expectation(row: str, column: str) -> None:
    with pytest.raises(MalformedCsvError) as caught:
        traces.parse("my.csv", f"{HEADER}2024-01-01 00:00:00,1,1\n\n{row}\n")
    details = caught.value.details
    assert (details["file"], details["line"], details["column"]) == ("my.csv", 4, column)
    assert details["expected"]
    assert "my.csv, line 4" in caught.value.message


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", "TIMESTAMP"),
        ("TIMESTAMP,ContextTokens\n", "GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n", "ContextTokens"),
    ],
)
def test_wrong_header_names_the_column(text: str, column: str) -> None:
    with pytest.raises(MalformedCsvError) as caught:
        traces.parse("t", text)
    assert (caught.value.details["line"], caught.value.details["column"]) == (1, column)


def test_header_alone_is_refused() -> None:
    with pytest.raises(MalformedCsvError, match="at least one request"):
        traces.parse("t", HEADER)


def test_field_of_any_size_is_shown_short() -> None:
    with pytest.raises(MalformedCsvError) as caught:
        traces.parse("t", HEADER + "x" * 100_000 + ",1,1\n")
    assert len(caught.value.message) < 200


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_ROWS", 2)
    with pytest.raises(TooLargeError, match="more than 2 requests"):
        traces.parse("t", HEADER + "2024-01-01 00:00:00,1,1\n" * 3)
