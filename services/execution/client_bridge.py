"""The events of one run, read from the bridge for whoever watches it, under their own context, through restarts.

Not a copy of the log, and not a way to write to it: events get there through the emitter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import Final

from grpc import aio

from carrel.errors import CarrelError, NotFoundError
from carrel.v1 import bridge_pb2, context_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from servicekit.logs import get_logger
from servicekit.rpc.channel import responses

__all__ = ["BridgeRunLog", "RunReading"]

_log = get_logger("services.execution.watch")
_TERMINAL: Final = "run_completed"
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0
# The terminal event is there before the state is, so mostly it has come by then.
_GRACE_S: Final = 1.0


class BridgeRunLog:
    """Reads from the bridge.

    Args:
        channel: To the bridge.
        patience_s: How long a reader is kept while the bridge is away, in seconds; the same as a gateway's.
    """

    def __init__(self, channel: aio.Channel, patience_s: float = 60.0) -> None:
        self._stub = BridgeServiceStub(channel)
        self._patience_s = patience_s

    def read(
        self, context: context_pb2.UserExecutionContext, run_id: str, position: events_pb2.Position | None
    ) -> RunReading:
        """A reading of a run's events.

        Args:
            context: The watcher's, with their ticket.
            run_id: The run, which exists.
            position: What the watcher has seen; None for nothing.
        """
        request = bridge_pb2.ReadEventsRequest(context=context, run_id=run_id, position=position)
        return RunReading(self._stub, request, self._patience_s)


class RunReading:
    """Where one watcher is, so that a stream that breaks is taken up again."""

    def __init__(self, stub: BridgeServiceStub, request: bridge_pb2.ReadEventsRequest, patience_s: float) -> None:
        self._stub = stub
        self._request = request
        self._patience_s = patience_s
        self._call: aio.UnaryStreamCall[bridge_pb2.ReadEventsRequest, bridge_pb2.ReadEventsResponse] | None = None
        self._ended = False
        self._over = False

    def finish(self) -> None:
        """The run's state is terminal: what the log has of it now is all that there will be.

        Without this, a log that has lost the terminal event would be followed for ever.
        """
        self._over = True
        if self._call is not None:
            # Read again from where it is, to the top and no further.
            asyncio.get_running_loop().call_later(_GRACE_S, self._call.cancel)

    async def responses(self) -> AsyncGenerator[bridge_pb2.ReadEventsResponse]:
        """The run's events after the position, to its terminal one; resets and positions between them.

        Raises:
            CarrelError: The bridge refused, or was away for longer than the patience.
        """
        loop = asyncio.get_running_loop()
        heard, wait = loop.time(), _FIRST_WAIT_S
        while True:
            # Decided before the log is asked: whatever ended the run is then in what is read.
            over = self._over
            try:
                async for response in self._stream(follow=not over):
                    heard, wait = loop.time(), _FIRST_WAIT_S
                    yield response
                if self._ended or over:
                    return
            except NotFoundError:
                if over:
                    return
                # Admitted, and not in the log yet.
                heard = loop.time()
            except CarrelError as error:
                if not error.retryable or loop.time() - heard > self._patience_s:
                    raise
                _log.info("a run's events cannot be read now", code=error.code, run=self._request.run_id)
            await asyncio.sleep(random.uniform(0.5, 1) * wait)  # noqa: S311 -- jitter
            wait = min(_LONGEST_WAIT_S, 2 * wait)

    async def _stream(self, *, follow: bool) -> AsyncGenerator[bridge_pb2.ReadEventsResponse]:
        self._request.follow = follow
        self._call = call = self._stub.ReadEvents(self._request)
        try:
            async for response in responses(call):
                self._note(response)
                yield response
        finally:
            self._call = None
            call.cancel()

    def _note(self, response: bridge_pb2.ReadEventsResponse) -> None:
        request = self._request
        match response.WhichOneof("item"):
            case "entries":
                last = response.entries.entries[-1]
                self._ended = last.event_type == _TERMINAL
                request.position.epoch = response.entries.epoch
                request.position.offset, request.position.event_id = last.offset, last.event_id
            case "reset":
                # What is kept follows; until an entry of it has come there may be nothing to compare.
                request.ClearField("position")
                if response.reset.position.event_id:
                    request.position.CopyFrom(response.reset.position)
            case "through":
                if response.through.event_id:
                    request.position.CopyFrom(response.through)
