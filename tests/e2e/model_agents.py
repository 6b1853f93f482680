"""Agents that use a model by an SDK, as they would anywhere, and say what they find in their process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from carrel import Agent, AgentContext, Request


class SdkAgent(Agent):
    """``openai.AsyncOpenAI()`` without a word about Carrel."""

    name = "sdk"
    dependencies = ("llm",)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        """A streamed answer of the SDK's, and the variables that name a model."""
        import openai

        async with openai.AsyncOpenAI() as sdk:
            stream = await sdk.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": request.message}], stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        own = {name: value for name, value in os.environ.items() if name.startswith(("OPENAI_", "CARREL_"))}
        return {"answer": text, "environment": own, "everything": "\n".join(os.environ.values())}


agents = (SdkAgent,)
