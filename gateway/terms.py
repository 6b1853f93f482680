"""What a client may have of what its ``connect`` asks for: batches, compression, a send window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.frames import Connect
from gateway.outflow import Flow
from gateway.window import Window
from servicekit.features import COMPRESSED_BATCHES, PERMESSAGE_DEFLATE, Features

__all__ = ["Terms"]


@dataclass(frozen=True, slots=True)
class Terms:
    """The deployment's terms.

    Args:
        flow: How connections are written to that ask for nothing.
        batches: Whether a client that asks for batches gets them.
        compression: Whether one that asks for compression gets it, of either kind.
        ack_events: The send window of a client that names none, and the most that one may have.
        ack_bytes: The bound of the window in bytes.
        features: Switches that may take compression away again.
    """

    flow: Flow = field(default_factory=Flow)
    batches: bool = True
    compression: bool = True
    ack_events: int = 1000
    ack_bytes: int = 1 << 20
    features: Features = field(default_factory=Features)
    _flows: dict[tuple[bool, bool, int], Flow] = field(default_factory=dict)

    @property
    def deflates(self) -> bool:
        """Whether a new connection that offers permessage-deflate gets it."""
        return self.compression and self.features.on(PERMESSAGE_DEFLATE)

    def flow_for(self, asked: Connect, deflate_bits: int, user_id: str = "") -> Flow:
        """How to write to this client; one object for all that are alike."""
        compress = asked.compress and self.compression and self.features.on(COMPRESSED_BATCHES, user_id)
        key = (asked.batch and self.batches, compress, deflate_bits)
        found = self._flows.get(key)
        if found is None:
            batch, compress, bits = key
            found = self._flows[key] = Flow(
                batch, self.flow.stall_s, self.flow.full_bytes, self.flow.ack_s, compress, bits
            )
        return found

    def window_for(self, asked: Connect) -> Window | None:
        """The client's send window; None for one that does not acknowledge."""
        if not asked.ack:
            return None
        return Window(min(asked.window or self.ack_events, self.ack_events), self.ack_bytes)

    @staticmethod
    def granted(flow: Flow, window: Window | None) -> Mapping[str, Any]:
        """What ``connected`` tells of it."""
        return {
            "ack_window": window.most_events if window is not None else None,
            "compression": "gzip-hex" if flow.compress and flow.batch else None,
        }
