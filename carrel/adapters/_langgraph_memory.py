"""LangGraph's checkpoints between the runs of a thread: the last one of each namespace, as bytes of ``ctx.memory``.

Within an attempt they are in memory, as many as there are; a crash in the middle of a stage leaves what the stage began
with. So a graph's history of checkpoints does not go back beyond its present run.
"""

from __future__ import annotations

from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from carrel.agent_memory import Memory
from carrel.errors import CorruptStoreError

__all__ = ["begin", "keep"]

_VERSION: Final = 1


def begin(memory: Memory, thread_id: str) -> tuple[InMemorySaver, bool]:
    """A saver with what was kept, and whether anything was.

    Raises:
        CorruptStoreError: What was kept is nothing of ours.
    """
    saver = InMemorySaver()
    if not memory.data:
        return saver, False
    kind, _, data = memory.data.partition(b"\0")
    try:
        kept = saver.serde.loads_typed((kind.decode("ascii"), data))
        if kept["version"] != _VERSION:
            raise ValueError(kept["version"])
        for namespace, (checkpoint, metadata) in kept["checkpoints"].items():
            config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}
            saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise CorruptStoreError(
            f"what the graph kept in this thread cannot be read ({type(error).__name__})",
            advice="begin a new thread, or delete this one",
        ) from error
    return saver, True


def keep(memory: Memory, saver: InMemorySaver, thread_id: str) -> None:
    """Keep the last checkpoints when the stage completes.

    Raises:
        TooLargeError: They are over the bound of ``Memory.keep``.
    """
    last: dict[str, Any] = {}
    for item in saver.list({"configurable": {"thread_id": thread_id}}):
        namespace = item.config["configurable"].get("checkpoint_ns", "")
        # What is under a task's id belongs to a sub-graph's one call, and never comes again.
        if namespace not in last and ":" not in namespace:
            last[namespace] = [item.checkpoint, item.metadata]
    kind, data = saver.serde.dumps_typed({"version": _VERSION, "checkpoints": last})
    memory.keep(kind.encode("ascii") + b"\0" + data)
