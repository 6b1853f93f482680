"""What every check is given: the gateways, the two users, the services within reach, and how long it may take."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from carrel.cli.doctor.http import Answer, User, from_answer
from carrel.cli.doctor.services import Services
from carrel.cli.doctor.users import Pair
from carrel.doctor_names import DOCTOR_AGENT

__all__ = ["RUN_S", "World", "canary"]

RUN_S: Final = 15.0
"""How long a run that does next to nothing may take, on a machine that is busy with other things."""


@dataclass(frozen=True, slots=True)
class World:
    """Args:
    urls: Gateways.
    version: This command's.
    pair: The users.
    services: Calls past the gateways.
    max_engines: The users' limit of engines.
    operator_headers: Log an operator in at a gateway; empty where there is none.
    """

    urls: Sequence[str]
    version: str
    pair: Pair
    services: Services
    max_engines: int
    operator_headers: Mapping[str, str]

    async def run(self, user: User, words: str = "hello", *, thread: str = "", **params: Any) -> Answer:
        """A run of the doctor's agent, waited for."""
        return await user.execute(DOCTOR_AGENT, words, params, thread=thread)

    async def begin(self, user: User, words: str = "hello", *, thread: str = "", **params: Any) -> str:
        """The same, not waited for: its id.

        Raises:
            CarrelError: It was refused.
        """
        answer = await user.execute(DOCTOR_AGENT, words, params, thread=thread, wait=False)
        if answer.status not in {200, 202}:
            raise from_answer(answer)
        return str(answer.json["run_id"])

    async def cancel(self, user: User, *run_ids: str) -> None:
        """Cancel runs and wait for their end."""
        for run_id in run_ids:
            _ = await user.call("POST", f"/api/runs/{run_id}/cancel", {})
        for run_id in run_ids:
            _ = await user.ended(run_id, RUN_S)


def canary() -> str:
    """Words that stand in no other text, and that look like no secret which the emitter would remove."""
    return "canary " + "-".join(secrets.choice(_SYLLABLES) + secrets.choice(_SYLLABLES) for _ in range(6))


_SYLLABLES: Final = tuple(a + b for a in "bdfgklmnprstvz" for b in "aeiou")
