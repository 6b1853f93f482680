"""Whether what an agent class depends on is there: ``llm``, ``tools``, ``database``. Checked before an instance is.

The checks themselves are the deployment's, given by ``app``; here is what is asked, and how a refusal reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from carrel.errors import AgentDependencyError
from services.agent_instance.domain.registry import AgentEntry

__all__ = ["DependencyCheck", "DependencyChecker"]

# Empty when the dependency is there, else what is missing, in a few words for a person.
DependencyCheck = Callable[[AgentEntry], Awaitable[str]]

_ADVICE: Final[Mapping[str, str]] = {
    "llm": "configure a model endpoint for agent_instance",
    "tools": "give the agent tools, or remove 'tools' from its `dependencies`",
    "database": "set up the database that the agent needs",
}


class DependencyChecker:
    """Answers for an agent's declared dependencies. An unknown one counts as missing.

    Args:
        checks: By dependency.
        timeout_s: A check that takes longer counts as missing.
    """

    def __init__(self, checks: Mapping[str, DependencyCheck], *, timeout_s: float = 2.0) -> None:
        self._checks = dict(checks)
        self._timeout_s = timeout_s

    async def missing(self, entry: AgentEntry) -> dict[str, str]:
        """Each dependency that is not there, with the reason."""
        reasons = {name: await self._reason(name, entry) for name in entry.dependencies}
        return {name: reason for name, reason in reasons.items() if reason}

    async def require(self, entry: AgentEntry) -> None:
        """Do nothing when all are there (``_validate_agent_dependencies`` of the documents).

        Raises:
            AgentDependencyError: Some are missing; the message names each.
        """
        missing = await self.missing(entry)
        if missing:
            raise AgentDependencyError(
                f"agent {entry.name} cannot run: " + "; ".join(f"{n}: {reason}" for n, reason in missing.items()),
                advice="; ".join(_ADVICE.get(name, f"provide {name}") for name in missing),
                agent_name=entry.name,
                missing=list(missing),
            )

    async def _reason(self, name: str, entry: AgentEntry) -> str:
        check = self._checks.get(name)
        if check is None:
            return "this deployment has none"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await check(entry)
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
