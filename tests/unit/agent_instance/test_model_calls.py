"""Calls of a model through the host: streamed, counted, bounded, journaled, cancelled; over real HTTP."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest

from carrel import tool
from carrel.errors import (
    ModelBudgetError,
    ModelBusyError,
    ModelRefusedError,
    ModelUnavailableError,
    StartupError,
)
from carrel.events import EVENTS
from services.agent_instance.client_model import OpenAiEndpoint
from services.agent_instance.models import AuditOutcome, BudgetGrant, BudgetUse, JournalItem
from tests.conftest import Eventually
from tests.support.model_server import CallTools, Fail, Hang, Raw, Say
from tests.unit.agent_instance.model_support import KEY, Asked, bench, model_settings


@tool(permission="sum:use")
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(name="math.twice")
async def twice(a: int) -> int:
    """Double a number."""
    return 2 * a


async def test_the_text_is_said_as_it_comes_and_the_answer_counted_journaled_and_audited() -> None:
    async with bench(Say("Hello, world", pieces=3)) as b:
        turn = b.turn()
        asked = await turn.ask("say hello", speak="message", deltas=True, temperature=0.5)
        answer = await asked.answer()
        assert answer["message"] == {"role": "assistant", "content": "Hello, world"}
        assert answer["finish_reason"] == "stop"
        assert answer["model"] == "small"
        assert answer["usage"] == {"input_tokens": 2, "output_tokens": 2, "total_tokens": 4}
        assert "".join(asked.deltas) == "Hello, world"
        assert turn.said == "Hello, world"
        assert len({event.data["message_id"] for event in turn.producer.seen}) == 1
        assert turn.uplink.used == [BudgetUse("small", 2, 2)]
        (entry,) = turn.uplink.journaled
        assert (entry.kind, entry.name, entry.number) == ("model", "small", 1)
        assert orjson.loads(entry.result) == answer
        (record,) = turn.uplink.audited
        assert (record.action, record.target, record.outcome) == ("model.call", "small", AuditOutcome.SUCCEEDED)
        body = b.server.requests[0].body
        assert body["temperature"] == 0.5
        assert body["stream"] is True
        assert body["max_completion_tokens"] == 4096


async def test_fast_text_is_joined_into_few_events_within_their_bound() -> None:
    text = "\u0001" * 9000  # six bytes of JSON each
    async with bench(Say(text, pieces=900)) as b:
        turn = b.turn()
        await (await turn.ask(speak="message")).answer()
        events = turn.producer.seen
        assert "".join(event.data["delta"] for event in events) == text
        assert len(events) < 60
        assert all(len(orjson.dumps(e.data)) < EVENTS["agent_thinking"].max_bytes for e in events)


async def test_thinking_is_said_as_thinking_and_silence_is_silent() -> None:
    async with bench(Say("hm"), Say("nothing")) as b:
        turn = b.turn()
        await (await turn.ask(speak="thinking")).answer()
        await (await turn.ask("other")).answer()
        assert {event.kind for event in turn.producer.seen} == {"agent_thinking"}
        assert "".join(event.data["text"] for event in turn.producer.seen) == "hm"


async def test_a_repeated_attempt_answers_from_the_journal_and_says_it_again_under_the_same_name() -> None:
    async with bench(Say("first"), Say("second"), Say("third")) as b:
        first = b.turn()
        await (await first.ask("one", speak="message")).answer()
        await (await first.ask("one", speak="message")).answer()
        again = b.turn(journal=first.uplink.journaled, attempt=2, caller=first.caller)
        asked = [await again.ask("one", speak="message", deltas=True) for _ in range(2)]
        answers = [await item.answer() for item in asked]
        assert [answer["message"]["content"] for answer in answers] == ["first", "second"]
        assert all(answer["replayed"] for answer in answers)
        assert [item.deltas for item in asked] == [["first"], ["second"]]
        assert not again.uplink.used
        assert not again.uplink.journaled
        assert not again.uplink.audited
        names = [[e.data["message_id"] for e in turn.producer.seen] for turn in (first, again)]
        assert set(names[0]) == set(names[1])
        # What the earlier attempt said is replaced, not doubled.
        assert [e.data.get("text") for e in again.producer.seen] == ["first", "second"]
        fresh = await (await again.ask("one")).answer()
        assert fresh["message"]["content"] == "third"
        assert "replayed" not in fresh
        assert again.uplink.journaled[0].number == 3


async def test_tools_are_described_from_the_context_and_those_not_permitted_left_out() -> None:
    async with bench(CallTools(("math_twice", {"a": 2})), Say("x"), Say("y")) as b:
        wanted = [{"type": "carrel_tool", "name": "add"}, {"type": "carrel_tool", "name": "math.twice"}]
        turn = b.turn(tools=(add, twice))
        answer = await (await turn.ask(tools=wanted)).answer()
        (call,) = answer["message"]["tool_calls"]
        assert call["function"] == {"name": "math_twice", "arguments": '{"a": 2}'}
        (described,) = b.server.requests[0].body["tools"]
        assert described["function"]["name"] == "math_twice"
        assert described["function"]["description"] == "Double a number."
        assert described["function"]["parameters"]["required"] == ["a"]
        allowed = b.turn(tools=(add, twice), permissions=frozenset({"sum:use"}))
        await (await allowed.ask(tools=wanted)).answer()
        assert [t["function"]["name"] for t in b.server.requests[1].body["tools"]] == ["add", "math_twice"]
        none = b.turn(tools=(add,))
        await (await none.ask(tools=wanted[:1], tool_choice="auto")).answer()
        assert not b.server.requests[2].body.keys() & {"tools", "tool_choice"}


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "secret-model"}, "secret-model"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 3}, "n must be 1"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "carrel_tool", "name": "rm"}]}, "rm"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "bytes"),
    ],
)
async def test_a_wrong_request_is_refused_before_it_is_sent(request_: dict[str, Any], problem: str) -> None:
    async with bench(policy={"max_request_bytes": 1500}) as b:
        turn = b.turn()
        error = await (await turn.send(request_, Asked(1))).error()
        assert isinstance(error, ModelRefusedError)
        assert problem in error.message
        assert b.server.requests == []
        assert {record.outcome for record in turn.uplink.audited} == {AuditOutcome.FAILED}


@pytest.mark.parametrize(
    ("step", "kind", "sent"),
    [
        (Fail(400, "context too long"), ModelRefusedError, False),
        (Fail(404), ModelRefusedError, False),
        (Fail(429, headers={"Retry-After": "7"}), ModelUnavailableError, False),
        (Fail(500), ModelUnavailableError, False),
        (Say("half an answer", pieces=4, cut=2), ModelUnavailableError, True),
        (Raw(b"<html>no</html>", "text/html"), ModelRefusedError, True),
        (Raw(b"data: {nonsense\n\n"), ModelRefusedError, True),
        (Raw(b'data: {"choices": [{"delta": 5}]}\n\n'), ModelRefusedError, True),
        (Raw(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'), ModelUnavailableError, True),
        (Raw(b'data: {"error": {"message": "overloaded"}}\n\n'), ModelUnavailableError, True),
        (Raw(b"data: [DONE]\n\n"), ModelRefusedError, True),
    ],
)
async def test_a_failing_endpoint_is_a_typed_error(step: Any, kind: type[Exception], sent: bool) -> None:
    async with bench(step) as b:
        turn = b.turn()
        error = await (await turn.ask("hi", speak="message")).error()
        assert type(error) is kind, error
        assert len(turn.uplink.used) == sent
        assert [record.outcome for record in turn.uplink.audited] == [AuditOutcome.FAILED]
        # What the endpoint refuses is final; what failed is asked again by a later attempt.
        assert [entry.error is not None for entry in turn.uplink.journaled] == [True] * (kind is ModelRefusedError)
        if isinstance(step, Fail) and step.status == 429:
            assert error.retry_after_s == 7
        if isinstance(step, Fail) and step.status == 400:
            assert error.details["endpoint_says"] == "context too long"


async def test_a_refusal_is_answered_from_the_journal_too() -> None:
    async with bench(Fail(400), Say("never asked")) as b:
        first = b.turn()
        await (await first.ask("hi")).error()
        again = b.turn(journal=first.uplink.journaled, attempt=2, caller=first.caller)
        assert isinstance(await (await again.ask("hi")).error(), ModelRefusedError)
        assert len(b.server.requests) == 1


async def test_a_wrong_key_is_the_operators_matter_and_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with bench(key="another") as b:
        turn = b.turn()
        error = await (await turn.ask("my secret words")).error()
        assert isinstance(error, ModelRefusedError)
        assert "operator" in error.advice
        assert KEY not in repr(error.to_dict())
        assert turn.uplink.journaled == []
    assert KEY not in caplog.text
    assert "my secret words" not in caplog.text


async def test_an_endpoint_that_is_away_is_asked_again_and_then_unavailable() -> None:
    async with bench(Fail(500), Say("at last"), retries=1) as b:
        assert (await (await b.turn().ask("hi")).answer())["message"]["content"] == "at last"
        assert len(b.server.requests) == 2
    async with bench(base_url="http://127.0.0.1:9/v1") as b:
        assert isinstance(await (await b.turn().ask("hi")).error(), ModelUnavailableError)


async def test_a_silent_endpoint_is_given_up(eventually: Eventually) -> None:
    async with bench(Hang(), silence=0.1) as b:
        assert isinstance(await (await b.turn().ask("hi")).error(), ModelUnavailableError)
        await eventually(lambda: b.server.aborted == 1)
    async with bench(Hang(), policy={"timeout_s": 0.1}) as b:
        error = await (await b.turn().ask("hi")).error()
        assert "took longer" in error.message


async def test_cancelling_the_caller_aborts_the_request_at_once(eventually: Eventually) -> None:
    async with bench(Say("a long answer " * 50, pieces=100, delay_s=0.05)) as b:
        turn = b.turn()
        asked = await turn.ask("hi", deltas=True)
        await eventually(lambda: len(asked.deltas) >= 2)
        assert turn.clock.idle_s == 0
        await turn.models.give_up(asked.number)
        await eventually(lambda: b.server.aborted == 1)
        assert not asked.done.is_set()
        (use,) = turn.uplink.used  # what had come is counted, by estimate
        assert use.input_tokens > 0
        assert [record.error_code for record in turn.uplink.audited] == ["CANCELLED_RUN"]
        assert turn.uplink.journaled == []
        assert b.desk.gates.running == 0
        await turn.models.give_up(99)


async def test_the_end_of_the_turn_ends_its_calls(eventually: Eventually) -> None:
    async with bench(Hang()) as b:
        turn = b.turn()
        await turn.ask("hi")
        await eventually(lambda: b.server.open == 1)
        await turn.models.aclose()
        await eventually(lambda: b.server.aborted == 1)
        await turn.models.aclose()


async def test_an_endpoint_that_counts_nothing_is_estimated_and_said_so() -> None:
    async with bench(Say("four letters", usage=False)) as b:
        turn = b.turn()
        usage = (await (await turn.ask("hi")).answer())["usage"]
        assert usage["estimated"] is True
        assert usage["output_tokens"] == 3
        assert turn.uplink.used[0].output_tokens == 3


async def test_an_answer_over_its_bound_is_refused() -> None:
    async with bench(Say("x" * 5000, pieces=50), policy={"max_answer_bytes": 1000}) as b:
        error = await (await b.turn().ask("hi")).error()
        assert isinstance(error, ModelRefusedError)
        assert error.details["limit"] == "max_answer_bytes"


async def test_without_tokens_no_call_is_made() -> None:
    async with bench(Say("one two three"), Say("never")) as b:
        turn = b.turn(grant=BudgetGrant(4, 2, renews_at=4e9))
        await (await turn.ask("a b")).answer()
        assert b.server.requests[0].body["max_completion_tokens"] == 4
        assert turn.budget.left == 0
        error = await (await turn.ask("c")).error()
        assert isinstance(error, ModelBudgetError)
        assert error.details["limit_value"] == 4
        assert error.details["use"] == 5
        assert error.retry_after_s is not None
        assert len(b.server.requests) == 1
        assert turn.uplink.audited[-1].outcome is AuditOutcome.DENIED
        turn.budget.renew(BudgetGrant(100, 2))
        await (await turn.ask("c")).answer()


async def test_a_users_calls_wait_for_each_other_and_for_nobody_else(eventually: Eventually) -> None:
    script = [Say(f"answer {n}", delay_s=0.05) for n in range(6)]
    async with bench(*script, policy={"concurrency_per_user": 2}) as b:
        one, two = b.turn(user="alice"), b.turn(user="alice")
        asked = [await turn.ask(f"q{n}") for n, turn in enumerate((one, two, one, two))]
        other = await b.turn(user="bob").ask("mine")
        await other.answer()
        for item in asked:
            await item.answer()
        assert b.server.most_open == 3
        order = [seen.body["messages"][0]["content"] for seen in b.server.requests]
        assert [name for name in order if name != "mine"] == ["q0", "q1", "q2", "q3"]
        assert b.desk.gates.running == b.desk.gates.waiting == 0


async def test_the_grant_may_allow_fewer_at_once() -> None:
    async with bench(Say("a", delay_s=0.05), Say("b", delay_s=0.05)) as b:
        turn = b.turn(grant=BudgetGrant(1000, 1))
        for item in [await turn.ask("x"), await turn.ask("y")]:
            await item.answer()
        assert b.server.most_open == 1


async def test_waiting_for_a_turn_is_bounded(eventually: Eventually) -> None:
    policy = {"concurrency_per_user": 1, "max_waiting_per_user": 1, "wait_s": 0.2}
    async with bench(Hang(), policy=policy) as b:
        turn = b.turn()
        held = await turn.ask("held")
        await eventually(lambda: b.server.open == 1)
        waits, refused = await turn.ask("waits"), await turn.ask("too many")
        errors = [await refused.error(), await waits.error()]
        assert all(isinstance(error, ModelBusyError) for error in errors)
        assert [error.details["limit"] for error in errors] == ["max_waiting_per_user", "concurrency_per_user"]
        await turn.models.give_up(held.number)
        assert b.desk.gates.waiting == b.desk.gates.running == 0


async def test_who_leaves_the_queue_gives_up_the_place(eventually: Eventually) -> None:
    async with bench(Hang(), Say("next"), policy={"concurrency_per_user": 1}) as b:
        turn = b.turn()
        held, leaves, stays = await turn.ask("a"), await turn.ask("b"), await turn.ask("c")
        await eventually(lambda: b.desk.gates.waiting == 2 and b.server.open == 1)
        await turn.models.give_up(leaves.number)
        await turn.models.give_up(held.number)
        assert (await stays.answer())["message"]["content"] == "next"


async def test_a_dead_producer_ends_the_call() -> None:
    async with bench(Say("words")) as b:
        turn = b.turn()
        turn.producer.dead.set_result(ModelUnavailableError("gone"))
        error = await (await turn.ask("hi", speak="message")).error()
        assert error.message == "gone"


async def test_a_log_that_is_behind_slows_the_reading_down_and_loses_nothing(eventually: Eventually) -> None:
    async with bench(Say("abcdefgh" * 200, pieces=200)) as b:
        turn = b.turn()
        turn.producer.limit = 0
        turn.producer.open.clear()
        asked = await turn.ask("hi", speak="message")
        await eventually(lambda: b.server.open == 0)
        assert not asked.done.is_set()
        turn.producer.limit = None
        turn.producer.open.set()
        await asked.answer()
        assert turn.said == "abcdefgh" * 200


async def test_the_key_may_be_in_a_file(tmp_path: Any) -> None:
    path = tmp_path / "key"
    with pytest.raises(StartupError, match="cannot be read"):
        OpenAiEndpoint(model_settings("http://x/v1", api_key=None, api_key_file=path))
    path.write_text(" \n")
    with pytest.raises(StartupError, match="is empty"):
        OpenAiEndpoint(model_settings("http://x/v1", api_key=None, api_key_file=path))
    path.write_text(f"{KEY}\n")
    async with bench(Say("hi"), api_key=None, api_key_file=path) as b:
        await (await b.turn().ask("hello")).answer()
        assert b.server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_many_open_calls_are_refused() -> None:
    async with bench(policy={"max_waiting_per_user": 200, "concurrency_per_user": 1}, key=None) as b:
        b.server.script = [Hang()]
        turn = b.turn()
        asked = [await turn.ask(str(n)) for n in range(101)]
        error = await asked[-1].error()
        assert error.details["limit"] == "open_model_calls"
        await asyncio.sleep(0)


def test_journal_items_of_other_kinds_answer_nothing() -> None:
    from services.agent_instance.domain.calls import CallLedger

    ledger = CallLedger(0, journal=[JournalItem(3, "tool:small:abc:1", "tool", "small", "abc")])
    assert ledger.recall("model", "small", "abc") == ("model:small:abc:1", None)
