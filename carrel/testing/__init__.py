"""For authors' tests: agents in an in-memory chain, a scripted model, assertions over events. See docs/testing.md.

One test::

    async def test_it_greets() -> None:
        async with in_memory_chain(Greeter, model=ScriptedModel("Hello, Ada.")) as chain:
            run = await chain.run("I am Ada")
        assert run.result == {"answer": "Hello, Ada."}
        run.events.assert_order("agent_started", "agent_message", "agent_completed", "run_completed")

It starts services, so nothing else of the library imports it. It needs no pytest: any runner of coroutines will do.
"""

from carrel.testing.chain import Chain, in_memory_chain, run_agent
from carrel.testing.events import Events, assert_no_secret
from carrel.testing.model import ScriptedModel, Seen
from carrel.testing.model_wire import CallTools, Fail, Hang, Raw, Say
from carrel.testing.options import ChainOptions
from carrel.testing.run import ChainRun

__all__ = [
    "CallTools",
    "Chain",
    "ChainOptions",
    "ChainRun",
    "Events",
    "Fail",
    "Hang",
    "Raw",
    "Say",
    "ScriptedModel",
    "Seen",
    "assert_no_secret",
    "in_memory_chain",
    "run_agent",
]
