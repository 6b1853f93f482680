"""LangGraph's checkpoints between the runs of a thread: the last one of each namespace, as bytes of ``ctx.memory``.

Within an attempt they are in memory, as many as there are; a crash in the middle of a stage leaves what the stage began
with. So a graph's history of checkpoints does not go back beyond its present run.

LangGraph's own reader calls whatever the bytes name. Who can write into the store is not to run code in a worker by
that, so only what its writer can have written is read: values, and classes of data.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from typing import Any, Final

import ormsgpack
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from carrel.agent_memory import Memory
from carrel.errors import CorruptStoreError

__all__ = ["begin", "keep"]

_VERSION: Final = 1
_KIND: Final = "msgpack"
# By these LangGraph's writer knows classes of data: models of pydantic's, named tuples, secrets.
_DATA: Final = ("model_dump", "dict", "_asdict", "get_secret_value")


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
        if kind.decode("ascii") != _KIND:
            raise ValueError(kind)
        kept = JsonPlusSerializer(allowed_msgpack_modules=_classes(data)).loads_typed((_KIND, data))
        if kept["version"] != _VERSION:
            raise ValueError(kept["version"])
        for namespace, (checkpoint, metadata) in kept["checkpoints"].items():
            config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}
            saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])
    except (AttributeError, KeyError, NotImplementedError, RecursionError, TypeError, ValueError) as error:
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


def _classes(data: bytes) -> set[tuple[str, ...]]:
    """The classes of data that the bytes name. Nothing is made of them, and nothing imported: a graph has its own."""
    named: set[tuple[str, ...]] = set()

    def look(_: int, inner: bytes) -> None:
        match ormsgpack.unpackb(inner, ext_hook=look, option=ormsgpack.OPT_NON_STR_KEYS):
            case [str(module), str(name), _, *_]:
                named.add((module, name))

    ormsgpack.unpackb(data, ext_hook=look, option=ormsgpack.OPT_NON_STR_KEYS)
    return {(module, name) for module, name in named if _is_data(getattr(sys.modules.get(module), name, None))}


def _is_data(found: object) -> bool:
    if not isinstance(found, type):
        return False
    known = dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)
    return known or any(callable(getattr(found, method, None)) for method in _DATA)
