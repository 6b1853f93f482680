"""The viewer of traces for a developer's machine: what it takes, what it refuses, what it prints."""

from __future__ import annotations

import gzip
import time
import urllib.error
import urllib.request

import pytest

from servicekit.telemetry import viewer
from servicekit.telemetry.trace_tree import TraceSpan, render
from servicekit.telemetry.viewer import OtlpReceiver

SECOND = 1_000_000_000
TRACE = "a" * 32


def span(name: str, number: int, parent: int = 0, *, began: int = 0, trace: str = TRACE, **more: object) -> TraceSpan:
    return TraceSpan(
        "carrel-test",
        name,
        trace,
        f"{number:016x}",
        f"{parent:016x}" if parent else "",
        began * SECOND,
        (began + 1) * SECOND,
        **more,  # type: ignore[arg-type]  # fields of the span
    )


def test_tree_is_indented_in_the_order_in_which_things_began() -> None:
    spans = [span("late", 3, 1, began=9), span("root", 1), span("early", 2, 1, began=2, failed=True)]
    lines = render(spans, TRACE).splitlines()
    assert lines[0] == f"trace {TRACE}"
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in lines[1:]] == [
        "test: root",
        "test: early",
        "test: late",
    ]
    assert lines[2].startswith("  test: early")
    assert "2000.00 ms   1000.00 ms" in lines[2]
    assert "FAILED" in lines[2]


def test_span_whose_parent_never_came_and_one_of_another_trace_that_is_linked_are_shown() -> None:
    linked = span("batch", 5, began=3, trace="b" * 32, links=((TRACE, f"{1:016x}"),))
    text = render([span("root", 1), span("orphan", 2, 77, began=1), linked], TRACE)
    assert "\ntest: orphan" in text
    assert "\n  ~ test: batch" in text
    assert render([linked], TRACE) == f"no span of the trace {TRACE} has come"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/logs", b"", {}, 404),
        ("/v1/traces", b"\xff\xff\xff", {}, 400),
        ("/v1/traces", b"no gzip", {"Content-Encoding": "gzip"}, 400),
        ("/v1/traces", gzip.compress(b"", mtime=0), {"Content-Encoding": "gzip"}, 200),
        ("/v1/metrics", b"", {}, 200),
    ],
)
def test_what_is_no_otlp_is_refused(path: str, body: bytes, headers: dict[str, str], status: int) -> None:
    with OtlpReceiver() as receiver:
        request = urllib.request.Request(receiver.url + path, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                got = answer.status
        except urllib.error.HTTPError as error:
            got = error.code
            error.close()
    assert got == status


def test_trace_is_printed_once_when_nothing_of_it_has_come_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    shown: set[str] = set()
    now = int(time.time())
    viewer._show([span("going on", 1, began=now)], shown)
    assert capsys.readouterr().out == ""
    for _ in range(2):
        viewer._show([span("over", 1, began=now - 60)], shown)
    assert capsys.readouterr().out.count("test: over") == 1
