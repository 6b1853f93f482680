"""The emitter's settings: ``CARREL_EMITTER_<FIELD>``; some have a WEBSOCKET_* name of the documents besides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from servicekit.settings import ListenAddress, PeerAddress, Section, SharedSettings, alias_env
from services.emitter.domain.sanitize import DEFAULT_WITHHELD
from services.emitter.models import Limits

__all__ = ["EmitterSettings", "QueueSettings"]


class QueueSettings(Section):
    """What is held until the log has it, beside each user's bound of events."""

    user_bytes: int = Field(4 << 20, ge=64 << 10, description="held for one user")
    total_bytes: int = Field(64 << 20, ge=1 << 20, description="held for all users")
    turn_events: int = Field(100, ge=1, le=10_000, description="sent for one user before it is another's turn")
    user_window: int = Field(256, ge=1, description="sent for one user and not yet acknowledged")
    total_window: int = Field(4096, ge=1, description="sent for all users and not yet acknowledged")


class EmitterSettings(SharedSettings):
    """What the emitter is told at its start. Durations are seconds.

    Timeouts and retries never drop an event: past them the emitter says that it is not ready, logs it and counts it.
    """

    listen: ListenAddress = Field("127.0.0.1:50053", description="host:port to listen on; port 0 is any free one")
    bridge: PeerAddress = Field("127.0.0.1:50054", description="address of the bridge")
    queue: QueueSettings = Field(default_factory=QueueSettings)
    max_events_per_user: Annotated[
        int, Field(ge=100, description="events held for one user"), alias_env("WEBSOCKET_MAX_EVENTS_PER_USER")
    ] = 1000
    event_timeout: Annotated[
        float,
        Field(gt=0, description="age of an unacknowledged event at which the emitter is not ready"),
        alias_env("WEBSOCKET_EVENT_TIMEOUT"),
    ] = 30.0
    delivery_retries: Annotated[
        int,
        Field(ge=1, description="failed connections to the bridge in a row that are an error, past the timeout below"),
        alias_env("WEBSOCKET_DELIVERY_RETRIES"),
    ] = 3
    delivery_timeout: Annotated[
        float,
        Field(gt=0, description="age of an unacknowledged event at which that is logged and counted"),
        alias_env("WEBSOCKET_DELIVERY_TIMEOUT"),
    ] = 5.0
    enable_batching: Annotated[
        bool,
        Field(description="several users' items in one message to the bridge"),
        alias_env("WEBSOCKET_ENABLE_BATCHING"),
    ] = True
    withheld_fields: tuple[str, ...] = Field(
        DEFAULT_WITHHELD, description="names of fields whose values users never see (prompts and other internals)"
    )

    def limits(self) -> Limits:
        """The bounds of what is held."""
        return Limits(user_events=self.max_events_per_user, **self.queue.model_dump())
