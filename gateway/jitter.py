"""When clients that are sent away are to come back: not all in the same moment. Full jitter, the same for all endings.

Not how long a client goes on trying: that is its own backoff, on top of this.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["ALONE_MS", "retry_ms", "window_ms"]

# For a connection that ends by itself: others may end for the same reason, but not by the same event.
ALONE_MS: Final = 1_000
_MS_PER_CONNECTION: Final = 2
_MOST_MS: Final = 15_000


def window_ms(connections: int, least_ms: int = ALONE_MS) -> int:
    """Milliseconds over which so many connections that end together come back."""
    return min(_MOST_MS, max(least_ms, _MS_PER_CONNECTION * connections))


def retry_ms(within_ms: int = ALONE_MS) -> int:
    """A wait for one of them: anything from 0 to the whole window."""
    return random.randrange(within_ms + 1)  # noqa: S311 -- spreads clients, keeps no secret
