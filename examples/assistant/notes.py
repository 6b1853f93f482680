"""The tool ``keep_note``: a note as a file of the run, kept only when its user agrees."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from carrel import JSON, AgentContext, ToolError, tool

__all__ = ["keep_note", "note_name"]

_MAX_TITLE: Final = 80
_MAX_TEXT: Final = 20_000


class NoteError(ToolError):
    """A note that cannot be kept."""

    default_advice = "give the note a title and a text, and shorten what is too long"


@tool(approval="user")
async def keep_note(ctx: AgentContext, title: str, text: str) -> Mapping[str, JSON]:
    """Keep a note for the user, with a short title and its text. The user is asked before it is kept."""
    title = " ".join(title.split())
    if not title or len(title) > _MAX_TITLE or not text.strip() or len(text) > _MAX_TEXT:
        raise NoteError(f"a note has a title of 1 to {_MAX_TITLE} characters and a text of 1 to {_MAX_TEXT}")
    stored = await ctx.artifacts.put(note_name(title, text), f"# {title}\n\n{text.strip()}\n", "text/markdown")
    return {"name": stored.name, "url": stored.url}


def note_name(title: str, text: str) -> str:
    """A file name made of the title; the same note always gets the same, another one another."""
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "note"
    digest = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()
    return f"{words}-{digest[:8]}.md"
