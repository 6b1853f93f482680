"""A graph that remembers: its state goes from one run of a thread to the next, within a bound."""

from __future__ import annotations

import dataclasses
import enum
import operator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import ormsgpack
import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from carrel import Agent
from carrel.adapters import langgraph
from tests.adapters.patience import bench
from tests.unit.agent_instance.support import Stage


class Talk(MessagesState):
    """Messages and a count."""

    turns: Annotated[int, operator.add]


def talker(*, asks: bool = False, bulk: int = 0) -> Any:
    """A graph that says what it has heard so far; a sub-graph in it counts."""

    def talk(state: Talk) -> dict[str, Any]:
        heard = [message.text for message in state["messages"] if message.type == "human"]
        if asks:
            heard.append(interrupt("And?"))
        return {"messages": [AIMessage(f"{'+'.join(heard)}, turn {state['turns']}" + "x" * bulk)]}

    class Count(TypedDict):
        turns: Annotated[int, operator.add]

    inner = StateGraph(Count)
    inner.add_node("count", lambda state: {"turns": 1})
    inner.add_edge(START, "count")
    builder = StateGraph(Talk)
    builder.add_node("count", lambda state: {"turns": inner.compile().invoke({"turns": 0})["turns"]})
    builder.add_node("talk", talk)
    builder.add_edge(START, "count")
    builder.add_edge("count", "talk")
    return builder.compile()


def made(**options: Any) -> type[Agent]:
    return langgraph.agent_class(lambda: talker(**options), name="talker", dependencies=(), remembers=True)


def kept(stage: Stage) -> bytes:
    assert stage.outcome is not None
    return stage.outcome.memory


async def test_the_state_goes_on_in_the_next_run_and_only_the_new_message_is_put_in() -> None:
    host = bench(made())
    first = await host.run("talker", message="one")
    assert first.result == {"answer": "one, turn 1"}
    second = await host.run("talker", message="two", memory=kept(first))
    assert second.result == {"answer": "one+two, turn 2"}
    third = await host.run("talker", message="three", memory=kept(second))
    assert third.result == {"answer": "one+two+three, turn 3"}
    assert len(kept(third)) < 3 * len(kept(first)), "the last checkpoint, not all of them"
    assert (await host.run("talker", message="two")).result == {"answer": "two, turn 1"}


@dataclasses.dataclass
class Order:
    """A graph's own."""

    number: int
    colour: Colour


class Colour(enum.Enum):
    """Of an order."""

    RED = "red"


class Basket(TypedDict):
    """A state with classes of its own in it."""

    order: Order


async def test_a_graphs_own_classes_come_back_as_they_were() -> None:
    def take(state: Basket) -> dict[str, Any]:
        assert state.get("order", Order(1, Colour.RED)) == Order(1, Colour.RED)
        return {"order": Order(1, Colour.RED)}

    builder = StateGraph(Basket)
    builder.add_node("take", take)
    builder.add_edge(START, "take")
    compiled = builder.compile()
    host = bench(
        langgraph.agent_class(
            lambda: compiled,
            name="basket",
            dependencies=(),
            remembers=True,
            input=lambda request: {},
            answer=lambda _: {},
        )
    )
    first = await host.run("basket", message="one")
    assert first.result == {}
    assert b"Order" in kept(first)
    assert (await host.run("basket", message="two", memory=kept(first))).result == {}


@pytest.mark.parametrize(
    ("module", "name", "given"),
    [("os", "system", "touch {}"), ("builtins", "exec", "open({!r}, 'w')"), ("pathlib", "os.mkdir", "{}")],
)
async def test_what_was_kept_runs_no_code(tmp_path: Path, module: str, name: str, given: str) -> None:
    trace = tmp_path / "ran"
    call = ormsgpack.Ext(0, ormsgpack.packb([module, name, given.format(str(trace))]))
    whole = ormsgpack.packb({"version": 1, "checkpoints": {"": [call, {}]}}, option=ormsgpack.OPT_NON_STR_KEYS)
    stage = await bench(made()).run("talker", message="one", memory=b"msgpack\0" + whole)
    assert not trace.exists()
    assert stage.error.code == "CORRUPT_STORE"


async def test_a_run_that_waits_goes_on_from_the_state_it_began_with() -> None:
    first = await bench(made()).run("talker", message="one")
    asked = await bench(made(asks=True), message="two", memory=kept(first)).run("talker")
    assert kept(asked) == b""
    done = await asked.again("three")
    assert done.result == {"answer": "one+two+three, turn 2"}


async def test_too_much_is_told_and_what_was_there_stays() -> None:
    stage = await bench(made(bulk=300_000)).run("talker", message="one")
    assert (stage.error.code, stage.error.details["limit"]) == ("TOO_LARGE", "memory_bytes")
    assert kept(stage) == b""


@pytest.mark.parametrize("data", [b"nonsense", b"msgpack\0\xc1", b"json\0{}", b"odd\0x"])
async def test_what_cannot_be_read_is_told(data: bytes) -> None:
    stage = await bench(made()).run("talker", message="one", memory=data)
    assert stage.error.code == "CORRUPT_STORE"
