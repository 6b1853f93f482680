"""What commands read and print: parameters, events as lines, errors as exit codes, tokens, targets, checks."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.cli.checks import check_events
from carrel.cli.output import Printer, exit_code_of
from carrel.cli.params import parse_params
from carrel.cli.render import clean, describe
from carrel.cli.state import StateFolder
from carrel.cli.target import find_target
from carrel.cli.tokens import DEFAULT_PERMISSIONS, development_token
from carrel.client import Event
from carrel.client.http import file_name
from carrel.errors import (
    EnginesLimitError,
    InternalError,
    InvalidIdError,
    PermissionDeniedError,
    RateLimitError,
    StartupError,
    TokenError,
    UnavailableError,
)
from carrel.events import EVENTS


@pytest.mark.parametrize(
    ("given_params", "expected"),
    [
        ([], {}),
        (["a=1", "b=two", "c=null", "d=[1]"], {"a": 1, "b": "two", "c": None, "d": [1]}),
        (["a.b=1", "a.c=x=y"], {"a": {"b": 1, "c": "x=y"}}),
        (["a=", 'b="1"', "c=NaN", "d=007"], {"a": "", "b": "1", "c": "NaN", "d": "007"}),
    ],
)
def test_params(given_params: list[str], expected: dict[str, Any]) -> None:
    assert parse_params(given_params) == expected


@pytest.mark.parametrize("wrong", [["a"], ["=1"], ["a=1", "a=2"], ["a=1", "a.b=2"], ["a.=1"], ["a.b=1", "a=2"]])
def test_wrong_params_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="a"):
        parse_params(wrong)


def make_event(kind: str, offset: int = 1, **changes: Any) -> Event:
    fields = {"thread_id": "t", "run_id": "r", "request_id": "q", "user_id": "alice"} | changes
    return Event(offset, f"ev-{offset}", kind, **fields)


@pytest.mark.parametrize("kind", [*EVENTS, "unheard_of"])
@given(
    data=st.dictionaries(st.sampled_from(["text", "tool_name", "arguments", "error", "message"]), st.text() | st.none())
)
def test_every_kind_is_told_without_control_characters(kind: str, data: dict[str, Any]) -> None:
    line = describe(make_event(kind, data=data, agent_name="\x1b[31mdata"))
    assert not any((ord(c) < 32 and c not in "\n\t") or ord(c) in range(127, 160) for c in line.text)


def test_escape_sequences_of_agents_do_not_reach_the_terminal() -> None:
    line = describe(make_event("agent_message", data={"text": "a\x1b]0;title\x07b\r\nc\u202e"}))
    assert line.text == "a]0;titleb\nc"
    assert clean("x" * 20, 5) == "xxxx…"


def test_events_name_what_matters() -> None:
    tool = make_event(
        "tool_completed", data={"tool_name": "load", "status": "error", "duration_ms": 3.2, "error": {"message": "no"}}
    )
    assert describe(tool).text.strip() == "✗ load: no (3 ms)"
    end = make_event("run_completed", data={"status": "FAILED", "error": {"message": "no", "advice": "try again"}})
    assert describe(end).text == "✗ the run ended as FAILED: no (try again)"
    assert "succeeded" in describe(make_event("run_completed", data={"status": "SUCCEEDED"})).text


def test_exit_codes_tell_refusals_from_failures() -> None:
    assert exit_code_of(StartupError("x")) == 1
    assert exit_code_of(UnavailableError("x")) == 1
    assert exit_code_of(InternalError("x")) == 1
    assert exit_code_of(EnginesLimitError("x")) == 3
    assert exit_code_of(TokenError("x")) == 3
    assert exit_code_of(PermissionDeniedError("x")) == 3


def test_printer_prefixes_every_line_and_colours_nothing_in_a_file() -> None:
    stream = io.StringIO()
    Printer(stream, width=3).line("bob", "one\ntwo")
    assert stream.getvalue() == "bob │ one\nbob │ two\n"


@given(st.text())
def test_file_names_stay_in_their_folder(name: str) -> None:
    path = Path("/folder") / file_name(name)
    assert path.parent == Path("/folder")
    assert path.name not in {"", ".", ".."}
    assert "\0" not in path.name


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "login.secret"
    path.parent.mkdir()
    path.write_text("s" * 64)
    return path


def test_token_has_what_the_gateway_wants(secret: Path) -> None:
    environ = {"CARREL_GATEWAY_LOGIN__ISSUER": "me", "CARREL_GATEWAY_LOGIN__AUDIENCE": "you"}
    token = development_token(secret, "alice", limits={"max_engines_per_user": 9}, environ=environ)
    claims = jwt.decode(token, "s" * 64, algorithms=["HS256"], audience="you", issuer="me")
    assert claims["sub"] == "alice"
    assert claims["limits"] == {"max_engines_per_user": 9}
    assert set(claims["permissions"]) == set(DEFAULT_PERMISSIONS)
    assert not any(name.startswith("operator") or name == "act_as" for name in DEFAULT_PERMISSIONS)


def test_token_is_refused_in_production_for_bad_users_and_without_a_secret(secret: Path) -> None:
    with pytest.raises(PermissionDeniedError):
        development_token(secret, "alice", environ={"CARREL_ENVIRONMENT": "production"})
    with pytest.raises(InvalidIdError):
        development_token(secret, "a/b", environ={})
    with pytest.raises(StartupError, match="carrel up"):
        development_token(secret.with_name("none"), "alice", environ={})


def test_target_takes_what_is_given_over_what_it_finds(tmp_path: Path, secret: Path) -> None:
    target = find_target("host:1", "tok", "alice", tmp_path, {})
    assert (target.url, target.token) == ("http://host:1", "tok")
    assert "tok" not in repr(target)
    assert find_target("", "tok", "alice", tmp_path, {"CARREL_CLI_URL": "https://x"}).url == "https://x"
    with pytest.raises(StartupError, match="no stack runs"):
        find_target("", "tok", "alice", tmp_path, {})


def test_target_waits_for_a_stack_that_is_starting(
    tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StateFolder(tmp_path)
    facts = {"url": "http://127.0.0.1:1", "supervisor": os.getpid(), "ready_s": 0.0}
    folder.write_stack(facts)
    ready = threading.Timer(0.2, folder.write_stack, [{**facts, "ready_s": 1.5}])
    ready.start()
    assert find_target("", "tok", "alice", tmp_path, {}).url == "http://127.0.0.1:1"
    ready.join()
    assert "is starting; waiting for it" in capsys.readouterr().err
    assert find_target("", "tok", "alice", tmp_path, {}).token == "tok"
    assert capsys.readouterr().err == ""
    # One that ends instead is none.
    folder.write_stack(facts)
    gone = threading.Timer(0.2, folder.stack_file.unlink)
    gone.start()
    with pytest.raises(StartupError, match="no stack runs"):
        find_target("", "tok", "alice", tmp_path, {})
    gone.join()


def good_events() -> list[Event]:
    kinds: list[tuple[str, str, str]] = [("run_accepted", "", "q")]
    for stage in ("data", "optimization", "report"):
        kinds += [("agent_started", stage, "q"), ("agent_thinking", stage, "q"), ("tool_executing", stage, "q_child")]
        kinds += [("tool_completed", stage, "q_child"), ("agent_completed", stage, "q")]
    kinds.append(("run_completed", "", "q"))
    return [
        make_event(
            kind,
            offset,
            agent_name=agent,
            request_id=request,
            parent_request_id="q" if request != "q" else "",
            data={"status": "SUCCEEDED"} if kind == "run_completed" else {},
        )
        for offset, (kind, agent, request) in enumerate(kinds, 5)
    ]


def failing(events: list[Event]) -> set[str]:
    return {check.name for check in check_events(events, "alice", "r", "t") if not check.holds}


def test_checks_hold_for_a_run_as_it_should_be() -> None:
    assert failing(good_events()) == set()


def test_every_check_fails_for_what_it_is_there_for() -> None:
    events = good_events()
    stages = "stages in order, each framed by started and completed"
    end = "one run_completed, last, SUCCEEDED"
    assert failing([*events[:3], replace(events[3], user_id="bob"), *events[4:]]) == {"zero foreign events"}
    assert failing([*events[:3], replace(events[3], run_id="other"), *events[4:]]) == {"zero foreign events"}
    assert "offsets without a gap" in failing([*events[:4], *events[5:]])
    assert "every event once" in failing([*events, events[3]])
    assert "run_accepted first" in failing(events[1:])
    assert end in failing(events[:-1])
    assert end in failing([*events[:-1], replace(events[-1], data={"status": "FAILED"})])
    assert stages in failing([event for event in events if event.agent_name != "optimization"])
    swapped = [
        replace(e, agent_name={"data": "report", "report": "data"}.get(e.agent_name, e.agent_name)) for e in events
    ]
    assert failing(swapped) == {stages}
    assert failing([*events[:3], *[replace(e, event_type="agent_thinking") for e in events[3:5]], *events[5:]]) == {
        stages
    }
    strange = [replace(e, request_id="z_child", parent_request_id="z") if e.parent_request_id else e for e in events]
    assert failing(strange) == {"children's events under their own request_id"}
    assert failing([])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_onto_a_full_disk_is_lost_and_ends_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8", write_through=True)
    try:
        Printer(stream).line("gateway", "serving")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["agent_started", "tool_executing", "tool_completed"])
def test_what_was_not_done_again_is_said_to_be_of_the_attempt_before(kind: str) -> None:
    data = {"agent_name": "data", "tool_name": "load", "tool_call_id": "c", "status": "ok", "duration_ms": 1}
    assert "attempt before" in describe(make_event(kind, data={**data, "replayed": True})).text
    assert "attempt before" not in describe(make_event(kind, data=data)).text


def test_a_queued_run_and_another_attempt_are_told() -> None:
    assert "queued" in describe(make_event("run_accepted", data={"status": "QUEUED"})).text
    assert "queued" not in describe(make_event("run_accepted", data={})).text
    again = describe(make_event("run_attempt", data={"attempt": 2, "agent_name": "data", "reason": "WORKER_LOST"}))
    assert again.text == "↻ attempt 2 of data: WORKER_LOST"


def test_a_limit_is_told_with_its_size_its_use_and_when_to_come_again(capsys: pytest.CaptureFixture[str]) -> None:
    error = RateLimitError("too quick", limit="runs_per_minute", limit_value=60, use=60, retry_after_s=2.2)
    Printer(io.StringIO()).error(error)
    said = capsys.readouterr().err
    assert "limit: runs_per_minute is 60, in use: 60" in said
    assert "try again in 3 s" in said
