"""LangGraph's graphs as Carrel's agents.

    from carrel.adapters.langgraph import agent_class

    Desk = agent_class("my_graphs:graph", name="desk", description="Answers at the order desk.")

The compiled graph is run as it is. Its models' text and its tools' calls become events, each ``interrupt()`` a question
to the user, whose answer resumes the graph. docs/adapters.md says what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from carrel.adapters._declare import Declarations, Source, declare, need
from carrel.adapters._dispatch import at_work, named
from carrel.adapters._values import conversation
from carrel.adapters._voice import voice_of
from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.frozen import JSON
from carrel.tools import Tool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from carrel.adapters._langgraph import Graph

__all__ = ["agent_class", "tools"]


def agent_class(  # noqa: PLR0913  (by keyword, each of them)
    graph: Graph | str | Callable[[], Graph],
    *,
    name: str,
    description: str = "",
    input: Callable[[Request], Any] | None = None,  # noqa: A002  (LangGraph's own word for it)
    context: Callable[[AgentContext, Request], Any] | None = None,
    answer: Callable[[Any], Mapping[str, JSON]] | None = None,
    config: Mapping[str, Any] | None = None,
    remembers: bool = False,
    **declarations: Unpack[Declarations],
) -> type[Agent]:
    """An agent class that runs this compiled graph.

    Args:
        graph: The graph; ``"module:attribute"`` or a function that makes it, to be looked up in the worker. A graph
            with ``ChatOpenAI()`` at its module's top needs the name: where classes are loaded there is no
            ``OPENAI_API_KEY`` yet.
        name: The class's name in the registry.
        description: For people and planners.
        input: Makes the graph's input; ``{"messages": […]}``, the thread's conversation, by default.
        context: Makes the graph's runtime context.
        answer: Makes the result of the final state; by default ``structured_response``, else the last message's text
            as ``answer``, else the state.
        config: More of the graph's config, such as ``recursion_limit``.
        remembers: Keep the graph's state from one run of a thread to the next, apart for each user: it gets a
            checkpointer that begins with the last run's state, in the place of its own. At most 256 KiB. The input
            is then the new message alone where the state is known.
        declarations: What else an agent class declares; ``tools`` must name those of Carrel's that the graph has.

    Raises:
        InvalidConfigurationError: What is given is no graph, or a declaration is wrong.
    """
    need("langgraph", "langgraph", "langchain_core")
    source: Source[Graph] = Source(graph, "LangGraph", _kind)
    offered = named(declarations.get("tools", ()))

    async def run(ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        from carrel.adapters import _langgraph, _langgraph_memory

        found, thread_id, saver, known = source.get(), ctx.context.thread_id, None, False
        if remembers:
            saver, known = _langgraph_memory.begin(ctx.memory, thread_id)
            found = found.copy({"checkpointer": saver})
        said = conversation(request)
        given = {"messages": said[-1:] if known else said} if input is None else input(request)
        runtime = None if context is None else context(ctx, request)
        async with voice_of(ctx, offered) as voice:
            with at_work(ctx):
                state = await _langgraph.run(ctx, voice, found, given, config or {}, runtime)
        if saver is not None and ctx.memory.available:
            _langgraph_memory.keep(ctx.memory, saver, thread_id)
        return _langgraph.answer_of_state(state) if answer is None else answer(state)

    return declare(run, name, description, declarations, "carrel.adapters._langgraph", "langchain_openai")


def tools(*carrels: Tool) -> list[BaseTool]:
    """Carrel's tools as LangChain's, for ``bind_tools`` and ``ToolNode``: in a run every call goes through the
    dispatcher, outside it is made directly. The class must declare them too (``tools=``).

    Raises:
        InvalidConfigurationError: One is no tool of Carrel's.
    """
    need("langgraph", "langgraph", "langchain_core")
    from carrel.adapters import _langgraph

    return _langgraph.tools(*carrels)


def _kind() -> type[Graph]:
    from langgraph.pregel import Pregel

    return Pregel
