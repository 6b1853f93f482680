"""What `run` and `watch` print of a run: its result, once and bounded; whose line it is; how often they reconnect."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carrel.cli.app import app
from carrel.cli.output import JsonPrinter
from carrel.cli.result import result_text
from carrel.cli.run import Wish, run_message
from carrel.cli.show import Show
from carrel.cli.target import Target
from carrel.cli.watch import PositionFile, Watched, save_place, watch_events
from carrel.client import ConnectionState, Event, Phase, Position, SocketClient
from carrel.client.notices import notice_of
from carrel.errors import CarrelError, InvalidPositionError, UnavailableError
from tests.support.fake_gateway import TOKEN, FakeGateway, event, fake_gateway


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
                command = watch_events(target, Watched(), as_json=True)
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


def test_notices_are_told_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(as_json=False)
    for reason in ("trimmed", "epoch_changed", "beyond_top", "event_mismatch", "something\x1b[31m new"):
        show.item(notice_of({"type": "reset", "reason": reason, "epoch": "e2", "offset": 4}))
    show.item(notice_of({"type": "gap", "from": 3, "to": 3}))
    show.item(notice_of({"type": "gap", "from": 3, "to": 5, "announced": False}))
    show.item(notice_of({"type": "bye", "code": 4000}))
    lines = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 7
    assert "older than what the event log keeps" in lines[0]
    assert "made anew" in lines[1]
    assert all("lost its newest events" in line for line in lines[2:4])
    assert lines[4] == "… the event log begins anew here (something[31m new)"
    assert lines[5:] == ["… event 3 is missing", "… events 3 to 5 are missing; the gateway does not say why"]


async def test_lost_connection_is_told_beside_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = [event(1), event(2, "run_completed", data={"status": "SUCCEEDED"})]
    async with fake_gateway(log=log, cut_after=[1]) as gateway:
        async with SocketClient(
            gateway.url, TOKEN, resume=Position(), on_state=Show(as_json=False).connection
        ) as socket:
            assert [item.offset async for item in socket.run_events("r")] == [1, 2]
        text = capsys.readouterr()
        assert text.out == ""
        first, second = text.err.splitlines()
        assert first.startswith(
            "carrel: connection lost: the gateway closed the connection (code 4000); trying again in "
        )
        assert second == "carrel: connected again"
    Show(as_json=True).connection(ConnectionState(Phase.WAITING, "gone", 1.5, 2))
    body = {"type": "connection", "phase": "waiting", "reason": "gone", "retry_s": 1.5, "failures": 2}
    assert json.loads(capsys.readouterr().out) == body


async def watch_until(gateway: FakeGateway, tmp_path: Path, watched: Watched, offset: int) -> None:
    """Watch until the gateway has sent so much and the command has shown it, then stop it as Ctrl-C does."""
    gateway.acked = 0
    command = asyncio.create_task(
        watch_events(Target(gateway.url, TOKEN, "alice", tmp_path), watched, as_json=True), name="watch"
    )
    while gateway.acked < offset:
        await asyncio.sleep(0.01)
        assert not command.done()
    os.kill(os.getpid(), signal.SIGINT)
    assert await command == 0


def shown(capsys: pytest.CaptureFixture[str]) -> list[int]:
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [row["offset"] for row in rows if "event_type" in row]


async def test_watch_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "place"
    async with fake_gateway(log=[event(n) for n in range(1, 6)], window=100) as gateway:
        await watch_until(gateway, tmp_path, Watched(start="e1:2:ev-2", save=file), 5)
        assert shown(capsys) == [3, 4, 5]
        assert file.read_text() == "e1:5:ev-5\n"
        await gateway.append(event(6), event(7))
        await watch_until(gateway, tmp_path, Watched(save=file), 7)
        assert shown(capsys) == [6, 7]
        await watch_until(gateway, tmp_path, Watched(start="oldest"), 7)
        assert shown(capsys) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_place_is_not_kept_while_its_text_is_held_back(tmp_path: Path) -> None:
    file, show = tmp_path / "place", Show(as_json=False)
    piece = replace(make_event("agent_message", message_id="m", delta="half a"), epoch="e1")
    show.item(piece)
    await save_place(PositionFile(file), piece, show)
    assert not file.exists()
    show.flush()
    await save_place(PositionFile(file), piece, show)
    assert file.read_text() == "e1:1:ev-1\n"


async def test_wrong_positions_are_told_with_what_to_write(tmp_path: Path) -> None:
    target = Target("http://127.0.0.1:1", TOKEN, "alice", tmp_path)
    file = tmp_path / "place"
    file.write_text("nonsense")
    with pytest.raises(InvalidPositionError, match="write oldest"):
        await watch_events(target, Watched(start="nonsense"), as_json=True)
    with pytest.raises(InvalidPositionError):
        await watch_events(target, Watched(save=file), as_json=True)
    with pytest.raises(CarrelError, match="cannot be read"):
        await watch_events(target, Watched(save=tmp_path), as_json=True)
    with pytest.raises(CarrelError, match="cannot be saved"):
        await PositionFile(tmp_path / "missing" / "place").save(Position("e1", 1, "x"))
