"""Agents of each library that never come to an end: a tool that blocks its thread."""

from __future__ import annotations

import time
from typing import Any

import agents as openai_sdk
import pydantic_ai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


def find_order(number: int) -> str:
    """Look an order up, for ever."""
    time.sleep(600)
    return ""


agent = pydantic_ai.Agent("openai-chat:any", tools=[find_order])
desk = openai_sdk.Agent[Any](name="slow", tools=[openai_sdk.function_tool(find_order)])
model = ChatOpenAI().bind_tools([tool(find_order)])


async def talk(state: MessagesState) -> dict[str, Any]:
    """Let the model speak."""
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("talk", talk)
builder.add_node("tools", ToolNode([tool(find_order)]))
builder.add_edge(START, "talk")
builder.add_conditional_edges("talk", tools_condition)
graph = builder.compile()
