"""The application's engine as agents: each request in a worker process of its own. Needs the library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrel import JSON, Agent, AgentContext, Request
from carrel.errors import InvalidRequestError
from examples.migration.engine import price_of

__all__ = ["agents"]


class QuoteAgent(Agent):
    """Prices what ``params.items`` lists."""

    name = "quote"
    description = "Says what a list of articles costs."

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        """The same function as before."""
        items: Any = request.params.get("items", [])
        await ctx.thinking(f"pricing {len(items)} lines")
        try:
            return price_of(items)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None


class DeliveryAgent(Agent):
    """Books a delivery for ``params.pieces``; the slot is the run's, so that repeating an attempt books none twice."""

    name = "delivery"
    description = "Books a delivery."

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        """A slot named after the run."""
        pieces = int(str(request.params.get("pieces", 0)))
        await ctx.thinking("looking for a slot")
        return {"slot": ctx.context.run_id, "vans": -(-pieces // 500)}


agents = (QuoteAgent, DeliveryAgent)
