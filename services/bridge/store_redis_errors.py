"""What Redis answers when it cannot do something, as errors that say what to do. Nothing of a command's content."""

from __future__ import annotations

from typing import Final

import hiredis

from carrel.errors import StoreUnavailableError
from services.bridge.models import ONE_USER

__all__ = ["is_of_one_log", "not_usable", "refused", "unavailable"]

_MEANINGS: Final = {
    "OOM": ("Redis has no memory left", "give it more (maxmemory), or keep less (CARREL_BRIDGE_RETENTION__…)"),
    "READONLY": ("this Redis is a replica now", "nothing: the master is looked for"),
    "MASTERDOWN": ("this Redis is a replica without its master", "nothing: the master is looked for"),
    "LOADING": ("Redis is loading its data", "nothing: it is tried again"),
    "CLUSTERDOWN": ("the Redis Cluster is down", "see CLUSTER INFO on its nodes"),
    "MOVED": ("a slot of the Redis Cluster has moved", "nothing: its nodes are asked again"),
    "ASK": ("a slot of the Redis Cluster is moving", "nothing: it is tried again"),
    "TRYAGAIN": ("a slot of the Redis Cluster is moving", "nothing: it is tried again"),
    "NOAUTH": ("Redis wants a password", "set CARREL_BRIDGE_LOG__PASSWORD_FILE"),
    "WRONGPASS": ("Redis refuses the user or the password", "correct the URL's user or the password's file"),
    "NOPERM": ("the Redis user may not do what the log needs", "allow it +@all on the log's keys and channels"),
    "NOREPLICAS": ("Redis has too few replicas in step (min-replicas-to-write)", "bring its replicas back"),
    "MISCONF": ("Redis cannot write to its disk and takes no writes", "see Redis's own log"),
    "BUSY": ("Redis is busy with somebody's script", "see SLOWLOG and SCRIPT KILL"),
}
_TEXTS: Final = {
    "ERR AUTH ": ("Redis has no password, and was given one", "leave the password out, or set requirepass in Redis"),
    "ERR Client sent AUTH": ("Redis has no password, and was given one", "leave the password out, or set requirepass"),
    "ERR max number of clients": ("Redis has as many clients as it may have", "raise maxclients in Redis"),
    "ERR DB index": (
        "Redis has no database of that number",
        "correct CARREL_BRIDGE_LOG__URL, or raise databases in Redis",
    ),
}

# Since 7, before, and as ``append.lua`` tells it of one append.
_SCRIPT_ERRORS: Final = ("ERR user_script", "ERR Error running script")


def unavailable(what: str, advice: str = "") -> StoreUnavailableError:
    """The log cannot be used now."""
    return StoreUnavailableError(f"the event log in Redis: {what}", advice=advice or "see that Redis runs")


def not_usable(reason: str) -> StoreUnavailableError:
    """Redis works, but has something of one user that the log cannot use."""
    return StoreUnavailableError(
        f"the event log in Redis: it has something of this user that cannot be used ({reason})",
        advice="see who else writes to the log's keys; remove this user's, or restore them",
        scope=ONE_USER,
    )


def is_of_one_log(error: BaseException) -> bool:
    """Whether an error reply says that something of one user cannot be used, and nothing about Redis itself."""
    text = str(error)
    if not isinstance(error, hiredis.ReplyError) or _word_of(text) in _MEANINGS:
        return False
    return "WRONGTYPE" in text or text.startswith(_SCRIPT_ERRORS)


def refused(error: BaseException) -> StoreUnavailableError:
    """An error reply, or a lost connection, as what callers get."""
    if isinstance(error, StoreUnavailableError):
        # A fresh one: an exception that is raised again and again keeps every place where it was.
        return StoreUnavailableError(error.message, advice=error.advice, **error.details)
    if is_of_one_log(error):
        return not_usable("WRONGTYPE" if "WRONGTYPE" in str(error) else "a script's error")
    text = str(error)
    word = _word_of(text)
    what, advice = _MEANINGS.get(word, ("", ""))
    if not what:
        what, advice = next((told for start, told in _TEXTS.items() if text.startswith(start)), ("", ""))
    if not what:
        # Only the code: what follows may quote a command, and so an event.
        what = f"Redis refuses with {word[:40]}" if isinstance(error, Exception) else "failed"
    return unavailable(what, advice)


def _word_of(text: str) -> str:
    word = text.split(" ", 1)[0]
    if word not in _MEANINGS:
        # Before 7, what went wrong in a script is told around the reason.
        word = next((known for known in _MEANINGS if f"-{known} " in text), word)
    return word
