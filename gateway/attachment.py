"""Which bridge this gateway's stream goes to: one with few gateways, and another when that one ends or is crowded.

Any bridge serves any user, from the one log behind them all. What goes over the stream is the upstream's.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from carrel.errors import CarrelError, UnavailableError
from carrel.v1 import bridge_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from gateway.tickets import TicketDesk
from servicekit.logs import get_logger
from servicekit.rpc.copies import Copies, Copy

__all__ = ["Attachment"]

_log: Final = get_logger("gateway.attachment")
_REACH_S: Final = 2.0
_ASK_S: Final = 1.0
# How often it is looked whether another bridge has fewer; a new one has its share well within half a minute.
_LOOK_S: Final = 15.0
_ASKED: Final = 4


class Attachment:
    """Chooses a bridge, and says when it is time to choose again.

    Args:
        copies: The bridges.
        desk: Tickets to ask them with.
        look_s: Seconds between looks at the others.
    """

    def __init__(self, copies: Copies, desk: TicketDesk, look_s: float = _LOOK_S) -> None:
        self._copies = copies
        self._desk = desk
        self._look_s = look_s

    @property
    def several(self) -> bool:
        """Whether there may be another bridge to go to."""
        return self._copies.several

    async def choose(self) -> Copy:
        """The bridge with the fewest gateways, of those that are ready; the only one, once it can be reached.

        Raises:
            UnavailableError: None can be reached.
        """
        if not self.several:
            only = self._copies.known()[0]
            try:
                async with asyncio.timeout(_REACH_S):
                    await only.channel.channel_ready()
            except TimeoutError:
                raise UnavailableError("the bridge does not answer") from None
            return only
        ready = await self._copies.wait_ready(_REACH_S)
        counts = await self._gateways(ready)
        least = min(counts.values(), default=0)
        return random.choice([copy for copy in ready if counts.get(copy, least) == least])  # noqa: S311

    async def crowded(self, mine: Copy) -> None:
        """Return when another bridge has so many gateways fewer than mine that moving there evens it out."""
        while True:
            # Spread, so that of several gateways that would move one does, and the others see it.
            await asyncio.sleep(self._look_s * random.uniform(0.3, 1.0))  # noqa: S311
            if not self.several:
                continue
            counts = await self._gateways(self._copies.ready())
            others = [count for copy, count in counts.items() if copy is not mine]
            if mine in counts and others and counts[mine] > min(others) + 1:
                _log.info("moving to another bridge", gateways=counts[mine], there=min(others))
                return

    async def _gateways(self, ready: list[Copy]) -> dict[Copy, int]:
        """How many gateways each has, of those that answer."""
        asked = ready if len(ready) <= _ASKED else random.sample(ready, _ASKED)
        counts = await asyncio.gather(*(self._ask(copy) for copy in asked))
        return {copy: count for copy, count in zip(asked, counts, strict=True) if count is not None}

    async def _ask(self, copy: Copy) -> int | None:
        request = bridge_pb2.GetStateRequest(context=self._desk.own())
        try:
            state = await BridgeServiceStub(copy.channel).GetState(request, timeout=_ASK_S)
        except CarrelError:
            return None
        return state.gateways
