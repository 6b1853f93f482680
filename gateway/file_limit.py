"""How many files this process may have open: each connection is one. Raised at the start to what the system permits."""

from __future__ import annotations

import resource

from servicekit.logs import get_logger

__all__ = ["raise_file_limit"]

_log = get_logger("gateway.file_limit")


def raise_file_limit(needed: int) -> int:
    """Raise the soft limit to the hard one, and say so when even that is below ``needed``; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        _log.warning(
            "open files are limited below the connections that are allowed: beyond, connections are not accepted",
            limit=hard,
            needed=needed,
            advice="raise LimitNOFILE or `ulimit -Hn`, or lower CARREL_GATEWAY_LIMITS__CONNECTIONS",
        )
    return hard
