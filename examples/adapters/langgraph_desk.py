"""The order desk with LangGraph: a model, a node of tools, and an interrupt before a refund.

    OPENAI_BASE_URL=… OPENAI_API_KEY=… python -m examples.adapters langgraph "Where is order 7?"

``ChatOpenAI()`` looks for its key when it is made, so this module loads only where there is one.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt

from examples.adapters.orders import INSTRUCTIONS, find, refund


@tool
def find_order(number: int) -> str:
    """Look an order up."""
    return find(number)


@tool
def refund_order(number: int) -> str:
    """Refund an order. Somebody is asked first."""
    said = interrupt({"question": f"Refund order {number}?", "choices": ["yes", "no"]})
    return refund(number) if said == "yes" else f"order {number} is not refunded: {said}"


tools = [find_order, refund_order]
model = ChatOpenAI().bind_tools(tools)


async def talk(state: MessagesState) -> dict[str, Any]:
    """Let the model speak, or call tools."""
    return {"messages": [await model.ainvoke([SystemMessage(INSTRUCTIONS), *state["messages"]])]}


builder = StateGraph(MessagesState)
builder.add_node("talk", talk)
builder.add_node("tools", ToolNode(tools))
builder.add_edge(START, "talk")
builder.add_conditional_edges("talk", tools_condition)
builder.add_edge("tools", "talk")
graph = builder.compile()


async def answer(question: str) -> str:
    """The graph's answer by itself, with every refund approved."""
    kept = builder.compile(checkpointer=InMemorySaver())
    step: Any = {"messages": [{"role": "user", "content": question}]}
    state: Any = {}
    while step is not None:
        state = await kept.ainvoke(step, {"configurable": {"thread_id": "one"}})
        step = Command(resume="yes") if "__interrupt__" in state else None
    return str(state["messages"][-1].content)
