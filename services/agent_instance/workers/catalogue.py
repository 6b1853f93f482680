"""The agent classes that a zygote has loaded, and those that a worker loads itself, by name.

No judging of them: the service's registry has done that before a worker is asked for any.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from carrel.agents import Agent
from carrel.errors import CarrelError, InvalidConfigurationError, UnknownAgentError
from services.agent_instance.domain.loading import load_classes

__all__ = ["Catalogue"]


class Catalogue:
    """Finds a class by its agent's name.

    Args:
        lazy: Sources that only a worker loads, when it does not know the name otherwise.
    """

    def __init__(self, lazy: Sequence[str] = ()) -> None:
        self._lazy = list(lazy)
        self._classes: dict[str, type[Agent]] = {}

    def load(self, source: str) -> None:
        """Import a source and keep what it defines.

        Raises:
            InvalidConfigurationError: It cannot be loaded here.
        """
        found = load_classes([source])
        for item in found.classes:
            self._classes.setdefault(item.cls.name, item.cls)
            for tool in item.cls.tools:
                # Made here once, with the library that makes it: in each worker it would cost a call 80 ms.
                with suppress(CarrelError):
                    _ = tool.input_schema
        if found.problems:
            raise InvalidConfigurationError(found.problems[0].text, advice=found.problems[0].advice)

    def leave(self, source: str) -> None:
        """Leave a source to the worker."""
        self._lazy.append(source)

    def agent(self, name: str) -> type[Agent]:
        """The class, loaded now if it has to be.

        Raises:
            UnknownAgentError: No source has it.
            InvalidConfigurationError: A source that might have it cannot be loaded here.
        """
        while name not in self._classes and self._lazy:
            self.load(self._lazy.pop(0))
        if name not in self._classes:
            raise UnknownAgentError(f"the worker does not know the agent {name}", agent_name=name)
        return self._classes[name]
