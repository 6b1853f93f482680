"""What `run` and `watch` print of a run: its result, once and bounded; whose line it is; how often they reconnect."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from carrel.cli.app import app
from carrel.cli.output import JsonPrinter
from carrel.cli.result import result_text
from carrel.cli.run import Show, Wish, run_message
from carrel.cli.target import Target
from carrel.cli.watch import watch_events
from carrel.client import Event
from carrel.errors import UnavailableError
from tests.support.fake_gateway import TOKEN, event, fake_gateway


def make_event(kind: str, run_id: str = "r", **data: Any) -> Event:
    return Event(1, "ev-1", kind, thread_id="t", run_id=run_id, request_id="q", user_id="alice", data=data)


def ended(result: object, run_id: str = "r") -> Event:
    return make_event("run_completed", run_id, status="SUCCEEDED", result=result)


def printed(capsys: pytest.CaptureFixture[str], *events: Event, labels: bool = False) -> list[str]:
    show = Show(as_json=False, labels=labels)
    for item in events:
        show.item(item)
    return [line[9:] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["answer", "message", "summary", "text"])
def test_a_results_text_is_shown_as_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, ended({name: "two\nlines\x1b[31m", "more": [1]}))
    assert lines == ["✓ the run succeeded", "two", "lines[31m"]


def test_another_result_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, ended({"n": 1, "text": ""}))
    assert json.loads("".join(lines[1:])) == {"n": 1, "text": ""}
    assert printed(capsys, ended({})) == printed(capsys, ended(None)) == ["✓ the run succeeded"]
    assert "big.json" in result_text({"artifact": {"name": "big.json"}})


@pytest.mark.parametrize("result", [{"n": list(range(500))}, {"answer": "x" * 9000}, {"answer": "x\n" * 500}])
def test_a_long_result_is_cut_with_the_option_that_shows_it_whole(result: dict[str, Any]) -> None:
    text = result_text({"result": result})
    assert len(text) < 4100
    assert text.count("\n") <= 40
    assert text.endswith("--json shows the whole result)")


def test_a_result_that_was_just_said_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    whole = make_event("agent_message", message_id="m", text="the answer")
    pieces = [make_event("agent_message", message_id="m", delta=delta) for delta in ("the ", "answer")]
    for said in ([whole], pieces):
        lines = printed(capsys, *said, ended({"summary": "the answer"}))
        assert lines[-1] == "✓ the run succeeded"
    for said in ([whole, make_event("agent_message", message_id="n", text="and more")], [], pieces[1:]):
        lines = printed(capsys, *said, ended({"summary": "the answer"}))
        assert lines[-2:] == ["✓ the run succeeded", "the answer"]
    other = make_event("agent_message", "other", message_id="m", text="the answer")
    assert printed(capsys, other, ended({"summary": "the answer"}))[-1] == "the answer"


def test_lines_are_labelled_with_the_end_of_the_runs_id(capsys: pytest.CaptureFixture[str]) -> None:
    events = [ended({"answer": "a\nb"}, "run-0001aaaaaaaa"), ended({}, "run-0001bbbbbbbb")]
    lines = printed(capsys, *events, labels=True)
    assert [line.split("  ")[0] for line in lines] == ["aaaaaaaa", "aaaaaaaa", "aaaaaaaa", "bbbbbbbb"]
    assert printed(capsys, *events)[-1] == "✓ the run succeeded"


def test_json_logs_stay_json_and_everything_else_becomes_it() -> None:
    stream = io.StringIO()
    JsonPrinter(stream).line("bridge", '{"event":"x"}')
    JsonPrinter(stream).line("bridge", 'Traceback "of"\n[1]')
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines == [{"event": "x"}, *({"service": "bridge", "event": text} for text in ('Traceback "of"', "[1]"))]


async def test_run_and_watch_reconnect_as_often_as_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSOCKET_MAX_RECONNECT_ATTEMPTS", "1")

    async def tries(watch: bool) -> int:
        async with fake_gateway(
            log=[event(1)], cut_after=[0], close_code=4000, refuse=lambda n: 503 if n > 1 else 0
        ) as gateway:
            target = Target(gateway.url, TOKEN, "alice", tmp_path)
            if watch:
                command = watch_events(target, run_id="", thread_id="", everything=False, as_json=True)
            else:
                command = run_message(Wish("x", {}), target, as_json=True)
            with pytest.raises(UnavailableError, match="503"):
                await command
            return gateway.attempts

    assert [await tries(watch) for watch in (False, True)] == [2, 2]


def test_help_claims_an_instance_of_their_own_for_users_and_no_process() -> None:
    text = str(app.info.help)
    assert "instance" in text
    assert "process" not in text
