"""The order desk with pydantic-ai: a tool that looks up, and one that needs approval.

OPENAI_BASE_URL=… OPENAI_API_KEY=… python -m examples.adapters pydantic "Where is order 7?"
"""

from __future__ import annotations

from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults

from examples.adapters.orders import INSTRUCTIONS, find, refund

# With `defer_model_check` the client is made when the agent runs, so that this module loads where there is no key.
agent = Agent("openai:gpt-4o-mini", instructions=INSTRUCTIONS, defer_model_check=True)


@agent.tool_plain
def find_order(number: int) -> str:
    """Look an order up."""
    return find(number)


@agent.tool_plain(requires_approval=True)
def refund_order(number: int) -> str:
    """Refund an order. Somebody is asked first."""
    return refund(number)


async def answer(question: str) -> str:
    """The agent's answer by itself, with every refund approved."""

    def approve(_: RunContext[object], requests: DeferredToolRequests) -> DeferredToolResults:
        return requests.build_results(approve_all=True)

    result = await agent.run(question, capabilities=[HandleDeferredToolCalls(approve)])
    return result.output
