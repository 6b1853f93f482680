"""The order desk with the OpenAI Agents SDK: one agent looks up, hands refunds over to another, which needs approval.

OPENAI_BASE_URL=… OPENAI_API_KEY=… python -m examples.adapters openai "Where is order 7?"
"""

from __future__ import annotations

from agents import Agent, Runner, function_tool, set_tracing_disabled

from examples.adapters.orders import INSTRUCTIONS, find, refund


@function_tool
def find_order(number: int) -> str:
    """Look an order up."""
    return find(number)


@function_tool(needs_approval=True)
def refund_order(number: int) -> str:
    """Refund an order. Somebody is asked first."""
    return refund(number)


cashier = Agent(name="Cashier", instructions=INSTRUCTIONS, tools=[refund_order])
desk = Agent(name="Order desk", instructions=INSTRUCTIONS, tools=[find_order], handoffs=[cashier])


async def answer(question: str) -> str:
    """The agents' answer by themselves, with every refund approved."""
    set_tracing_disabled(True)
    result = await Runner.run(desk, question)
    while result.interruptions:
        state = result.to_state()
        for item in result.interruptions:
            state.approve(item)
        result = await Runner.run(desk, state)
    return str(result.final_output)
