"""Agents for pages to show: one counts for as long as told, one floods, one asks, one answers with mischief."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from carrel import Agent, AgentContext, Request, tool


@tool(approval="user", description="Sends a mail.")
async def send_mail(to: str) -> dict[str, Any]:
    """Give back whom it went to."""
    return {"sent": to}


@tool(description="Counts one step.")
async def step(number: int) -> dict[str, int]:
    """Give the number back."""
    return {"number": number}


class CountAgent(Agent):
    """Says ``params.mark`` and a number ``params.steps`` times, with ``params.pause`` seconds in between."""

    name = "count"
    tools = (step,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Count; every tenth step is a tool's, too."""
        mark, steps = str(request.params.get("mark", "step")), int(request.params.get("steps", 10))
        for number in range(1, steps + 1):
            await ctx.thinking(f"{mark} {number}")
            if number % 10 == 0:
                await ctx.call_tool("step", number=number)
            await asyncio.sleep(float(request.params.get("pause", 0.02)))
        return {"answer": f"{mark} counted to {steps}"}


class FloodAgent(Agent):
    """A thousand events as fast as they go: words of one long answer, and steps between them."""

    name = "flood"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """500 pieces of an answer, 495 thoughts."""
        said = ""
        for number in range(1, 501):
            text = f"Word {number} of a long answer{'.' if number % 9 else chr(10) * 2} "
            if said:
                await ctx.message(delta=text, message_id=said)
            else:
                said = await ctx.message(delta=text)
            if number <= 495:
                await ctx.thinking(f"thought {number}")
            if number % 25 == 0:
                # So that it lasts for many frames.
                await asyncio.sleep(0.05)
        return {}


class MailAgent(Agent):
    """Sends a mail, if it may, and asks how it looked."""

    name = "mail"
    tools = (send_mail,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One call that its user has to approve, one question."""
        mail = await ctx.call_tool("send_mail", to="bob@example.com")
        colour = await ctx.ask("Which colour was it?", choices=["red", "green"])
        return {"answer": f"mailed {mail['sent']} in {colour}"}


_MISCHIEF = """<img src=x onerror="window.pwned = 1"><script>window.pwned = 2</script>

[click](javascript:window.pwned=3) [data](data:text/html,x) ![](https://elsewhere.example/x.png) **bold <b>not</b>**

| a | b |
|---|---|
| <svg onload="window.pwned=4"> | `code` |
"""


class MischiefAgent(Agent):
    """Answers with what must stay text."""

    name = "mischief"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Everywhere that an agent's words are shown."""
        await ctx.thinking('<img src=x onerror="window.pwned = 5">')
        await ctx.artifacts.put("report.md", _MISCHIEF, "text/markdown")
        await ctx.artifacts.put("page.html", "<script>window.pwned = 6</script>", "text/html")
        svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>parent.pwned = 7</script></svg>'
        await ctx.artifacts.put("picture.svg", svg, "image/svg+xml")
        await ctx.message(_MISCHIEF)
        return {"answer": "<b>done</b>", "x": "<i>"}


# One white pixel.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="
)


class GalleryAgent(Agent):
    """Reports with one picture, 200 times over."""

    name = "gallery"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Write it."""
        await ctx.artifacts.put("a.png", _PIXEL, "image/png")
        await ctx.artifacts.put("report.md", "# All of it\n\n" + "![](a.png)\n" * 200, "text/markdown")
        return {"answer": "Here it is."}


@tool(description="Looks something up.")
async def look_up(query: str, api_key: str) -> dict[str, str]:
    """Give back what it was given, as careless tools do."""
    return {"found": f"nothing about {query}", "used": api_key}


class CarelessAgent(Agent):
    """Hands a secret to a tool, and writes it down."""

    name = "careless"
    tools = (look_up,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """With the key that it was given in its parameters."""
        key = str(request.params["key"])
        await ctx.thinking(f"with the key {key}")
        await ctx.call_tool("look_up", query="weather", api_key=key)
        return {"answer": "looked it up"}


class WordsAgent(Agent):
    """Calls a tool twice for each word, so that others of its kind get between."""

    name = "words"
    tools = (step,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Three steps."""
        for number in range(3):
            await ctx.call_tool("step", number=number)
            await asyncio.sleep(0.03)
        return {"answer": request.message}


class CompareAgent(Agent):
    """Runs two of one kind at once."""

    name = "compare"
    tools = (step,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Both of them, together."""
        await asyncio.gather(ctx.run_agent("words", "one"), ctx.run_agent("words", "two"))
        return {"answer": "compared"}


agents = (
    CountAgent,
    FloodAgent,
    MailAgent,
    MischiefAgent,
    GalleryAgent,
    CarelessAgent,
    WordsAgent,
    CompareAgent,
)
