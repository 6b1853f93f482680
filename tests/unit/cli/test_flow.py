"""When pieces of streamed texts are written, and that texts of several agents stay apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from carrel.cli.flow import HOLD_S, Flow, Piece, piece_of
from carrel.cli.show import Show
from carrel.client import Event


def event(
    kind: str, request: str = "q", *, agent: str = "poet", parent: str = "", attempt: int = 1, **data: Any
) -> Event:
    return Event(
        1,
        "ev-1",
        kind,
        user_id="alice",
        thread_id="t",
        run_id="r",
        request_id=request,
        agent_name=agent,
        parent_request_id=parent,
        attempt=attempt,
        data=data,
    )


def said(delta: str, request: str = "q", message: str = "m", **more: Any) -> Event:
    return event("agent_message", request, message_id=message, delta=delta, **more)


class Page:
    """A writer that keeps what it is given, and a clock that stands still: ``12.0| text``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.text = ""
        self.flow = Flow(self, clock=lambda: self.now)

    def begin(self, piece: Piece, at: float | None, *, named: bool) -> None:
        self.text += f"{'' if at is None else f'{at:.4g}'}|{piece.who + ': ' if named else ''}"

    def put(self, piece: Piece, text: str) -> None:
        self.text += text

    def end(self) -> None:
        self.text += "\n"

    def take(self, *events: Event, after: float = 0.05) -> str:
        """Events one after another, and time as a timer would let it pass; everything written so far."""
        for item in events:
            self.passes(after)
            piece = piece_of(item)
            if piece is not None:
                self.flow.add(piece)
            else:
                self.flow.flush()
                self.flow.other(item)
                self.text += f"[{item.event_type}]\n"
        return self.text

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.flow.due) is not None and due <= until:
            self.now = max(self.now, due)
            self.flow.tick()
        self.now = until


def test_pieces_are_held_until_a_line_is_whole() -> None:
    page = Page()
    assert page.take(said("one "), said("two")) == ""
    assert page.take(said(" three\nfo")) == "0.05|one two three\n"
    assert page.take(said("ur\n")) == "0.05|one two three\n|four\n"
    assert not page.flow.holds


def test_after_half_a_second_the_line_goes_on_where_it_ended() -> None:
    page = Page()
    page.take(*(said(f"w{n} ") for n in range(30)))
    assert page.text.startswith("0.05|w0 w1 ")
    assert "\n" not in page.text
    assert page.flow.holds
    page.passes(HOLD_S)
    assert page.text == "0.05|" + "".join(f"w{n} " for n in range(30))
    assert page.flow.due is None


def test_another_event_ends_the_line_and_comes_after_it() -> None:
    page = Page()
    page.take(said("Let me "), said("look"), event("tool_executing"), said("There"), event("agent_completed"))
    assert page.text == "0.05|Let me look\n[tool_executing]\n0.2|There\n[agent_completed]\n"


def test_two_agents_that_stream_at_once_stay_apart() -> None:
    page = Page()
    for n in range(40):
        page.take(said(f"a{n} ", "a", agent="ada"), said(f"b{n} ", "b", agent="bob"))
    page.take(said("end\n", "a", agent="ada"))
    page.passes(HOLD_S)
    ada, bob = page.text.split("\n")
    assert ada == "0.05|" + "".join(f"a{n} " for n in range(40)) + "end"
    assert bob == "0.1|bob: " + "".join(f"b{n} " for n in range(40))


def test_who_waits_goes_on_when_the_other_is_silent_and_both_are_named() -> None:
    page = Page()
    page.take(said("from a", "a", agent="ada"))
    page.passes(HOLD_S)
    page.take(said("from b", "b", agent="bob"))
    page.passes(HOLD_S)
    page.take(said(", more of a", "a", agent="ada"))
    page.passes(HOLD_S)
    lines = [line.partition("|")[2] for line in page.text.splitlines()]
    assert lines == ["from a", "bob: from b", "ada: , more of a"]


def test_who_waits_for_an_endless_line_interrupts_it_at_a_bound() -> None:
    page = Page()
    for _ in range(120):
        page.take(said("a" * 20, "a", agent="ada"), said("b" * 20, "b", agent="bob"))
    first, second, *_ = page.text.splitlines()
    assert set(first.partition("|")[2]) == {"a"}
    assert second.partition("|")[2].startswith("bob: " + "b" * 2_000)


def test_two_sub_agents_of_one_name_are_named_apart() -> None:
    page = Page()
    page.take(
        said("one\n", "q_words", agent="words", parent="q"), said("two\n", "q_words_2", agent="words", parent="q")
    )
    assert [line.partition("|")[2] for line in page.text.splitlines()] == ["one", "words_2: two"]


def test_two_texts_of_one_agent_do_not_mix() -> None:
    page = Page()
    page.take(said("first ", message="m"), said("second ", message="n"), said("still first", message="m"))
    page.flow.flush()
    assert [line.partition("|")[2] for line in page.text.splitlines()] == ["first still first", "second "]


def test_a_text_that_the_next_attempt_says_anew_goes_on_in_pieces() -> None:
    page = Page()
    begun = event("agent_message", message_id="m", text="Once upon", attempt=2)
    page.take(said("Once"), event("run_attempt", attempt=2), begun, said(" a time", attempt=2))
    page.flow.flush()
    assert page.text == "0.05|Once\n[run_attempt]\n0.15|Once upon a time\n"


@pytest.mark.parametrize(
    "whole",
    [
        event("agent_message", message_id="m", text="all of it"),
        event("agent_thinking", text="a step"),
        event("agent_thinking", text="still here", heartbeat=True),
    ],
)
def test_what_is_whole_is_no_piece(whole: Event) -> None:
    assert piece_of(whole) is None


def test_streams_whose_end_is_never_told_are_bounded() -> None:
    page = Page()
    page.take(*(said("x", f"q{n}") for n in range(500)), after=0.0)
    assert len(page.flow._streams) == 64
    page.flow.flush()
    assert page.text.count("x") == 500


async def test_a_terminal_sees_the_text_grow(
    capsys: pytest.CaptureFixture[str], eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = ""

    def seen(text: str) -> bool:
        nonlocal out
        out += capsys.readouterr().out
        return text in out

    with Show(as_json=False, labels=True) as show:
        show.item(event("agent_started"))
        show.item(event("agent_thinking", text="Which\nrhyme", delta=True))
        assert not seen("rhyme")
        await eventually(lambda: seen("rhyme"))
        show.item(event("agent_thinking", text="?\x1b[31m\n", delta=True))
        show.item(said("Roses "))
        await asyncio.sleep(0)
        show.item(said("are red"))
        assert not seen("Roses")
    assert seen("Roses")
    plain = [line.replace("\x1b[0m", "").replace("\x1b[2m", "").replace("\x1b[1m", "") for line in out.splitlines()]
    assert [line[7:] for line in plain] == [
        "  r  ▶ poet",
        "  r    · Which",
        "  r      rhyme?[31m",
        "  r  Roses are red",
    ]
    assert out.endswith("\n")


def test_json_is_one_object_a_piece(capsys: pytest.CaptureFixture[str]) -> None:
    with Show(as_json=True) as show:
        show.item(said("a"))
        show.item(said("b"))
        assert not show.holds
        assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_note_beside_the_events_ends_the_line_first(capsys: pytest.CaptureFixture[str]) -> None:
    with Show(as_json=False) as show:
        show.item(said("half a "))
        show.note("cancelling the run")
        assert capsys.readouterr().out.endswith("half a \n")
