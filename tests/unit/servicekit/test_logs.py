"""Log lines: their form, their fields, and what never gets into one."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from servicekit import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    text = io.StringIO()
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_has_time_level_service_event_and_fields(stream: io.StringIO) -> None:
    logs.configure("bridge", "info", "json", stream)
    logs.get_logger("bridge.store").info("log opened", users=3, path="/tmp/x")
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "service": "bridge",
        "logger": "bridge.store",
        "event": "log opened",
        "users": 3,
        "path": "/tmp/x",
    }


def test_bound_fields_are_on_every_line_until_the_block_ends(stream: io.StringIO) -> None:
    logs.configure("bridge", stream=stream)
    log = logs.get_logger("x")
    with logs.bind(run_id="run-1", user=logs.hash_user("alice")):
        with logs.bind(stage=2):
            log.info("inner")
        log.info("outer")
    log.info("after")
    inner, outer, after = lines(stream)
    assert (inner["run_id"], inner["stage"]) == ("run-1", 2)
    assert "stage" not in outer
    assert "run_id" not in after
    assert inner["user"].startswith("u-")
    assert "alice" not in stream.getvalue()


def test_payloads_tickets_and_texts_are_withheld(stream: io.StringIO) -> None:
    logs.configure("bridge", stream=stream)
    logs.get_logger("x").info("refused", ticket="abc", data={"a": 1}, nested={"token": "abc", "size": 3})
    (line,) = lines(stream)
    assert line["ticket"] == line["data"] == "[withheld]"
    assert line["nested"] == {"token": "[withheld]", "size": 3}


def test_level_below_the_configured_one_is_not_written(stream: io.StringIO) -> None:
    logs.configure("bridge", "warning", stream=stream)
    logs.get_logger("x").info("quiet")
    logs.get_logger("x").warning("heard")
    assert [line["event"] for line in lines(stream)] == ["heard"]


def test_error_brings_its_traceback(stream: io.StringIO) -> None:
    logs.configure("bridge", stream=stream)
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        logs.get_logger("x").error("call failed", error=error, method="m")
    (line,) = lines(stream)
    assert line["error_type"] == "ZeroDivisionError"
    assert "test_logs.py" in line["traceback"]
    assert line["method"] == "m"


def test_libraries_that_use_logging_directly_come_in_the_same_form(stream: io.StringIO) -> None:
    logs.configure("bridge", stream=stream)
    logging.getLogger("sqlalchemy").warning("pool of %d is full", 5)
    (line,) = lines(stream)
    assert (line["event"], line["logger"]) == ("pool of 5 is full", "sqlalchemy")


def test_fields_of_the_standard_librarys_loggers_are_fields(stream: io.StringIO) -> None:
    logs.configure("bridge", stream=stream)
    with logs.bind(run_id="run-1", stage=2):
        extra = {"agent_name": "data", "run_id": "run-2", "ticket": "abc", "fields": 3}
        logging.getLogger("carrel.x").warning("agent %s", "failed", extra=extra)
        logs.get_logger("x").info("plain")
    told, plain = lines(stream)
    told.pop("time")
    assert told == {
        "level": "warning",
        "service": "bridge",
        "logger": "carrel.x",
        "event": "agent failed",
        "run_id": "run-2",
        "stage": 2,
        "agent_name": "data",
        "ticket": "[withheld]",
        "fields": 3,
    }
    assert set(plain) == {"time", "level", "service", "logger", "event", "run_id", "stage"}


@pytest.mark.parametrize(
    "value", ["\ud800", object(), b"\xff", {1: 2}, "x" * 10_000, {"a", "b"}, float("nan"), 2**70, ["\udfff"]]
)
def test_any_value_makes_a_line(stream: io.StringIO, value: object) -> None:
    logs.configure("bridge", stream=stream)
    logs.get_logger("x").info("odd", value=value)
    logs.get_logger("x").info("event", event="mine", level="mine")
    first, second = lines(stream)
    assert first["event"] == "odd"
    assert len(json.dumps(first)) < 2000
    assert (second["event"], second["_event"], second["_level"]) == ("event", "mine", "mine")


def test_console_lines_are_for_reading(stream: io.StringIO) -> None:
    logs.configure("bridge", "info", "console", stream)
    logs.get_logger("x").warning("store is away", attempt=2, reason="no route", items=["a"])
    try:
        raise ValueError("odd")
    except ValueError as error:
        logs.get_logger("x").error("failed", error=error)
    first, second, *trace = stream.getvalue().splitlines()
    assert first.endswith("warning store is away  attempt=2 reason='no route' items=[\"a\"]")
    assert second.endswith("error   failed  error_type=ValueError")
    assert trace[-1] == "ValueError: odd"


def test_same_user_has_the_same_pseudonym_everywhere() -> None:
    assert logs.hash_user("alice") == "u-5f94084ace62"
    assert logs.hash_user("alice") != logs.hash_user("bob")
