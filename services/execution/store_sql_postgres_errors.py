"""What an error of PostgreSQL, its driver or the network means for a transaction. What is done about it is not here."""

from __future__ import annotations

import enum
from typing import Final

from sqlalchemy import exc

from carrel.errors import StoreUnavailableError

__all__ = ["Meaning", "is_away", "meaning_of", "postgres_unavailable"]


class Meaning(enum.Enum):
    """What to do about a failed transaction."""

    LOST = "the connection is gone, or not to be trusted"
    AGAIN = "it lost against another one, and may win if it is tried again"
    SLOW = "it took longer than it may"
    AWAY = "the server takes no work now"
    FAULT = "a fault of ours"


_OF_CODE: Final = {
    "40001": Meaning.AGAIN,  # serialization_failure
    "40P01": Meaning.AGAIN,  # deadlock_detected
    # unique_violation: an update that waited for another copy's lock on the run sees the row as it is then, but what
    # it tells of other tables, as the run's last event's number, as it was when it began.
    "23505": Meaning.AGAIN,
    "57014": Meaning.SLOW,  # query_canceled, by statement_timeout
    "55P03": Meaning.SLOW,  # lock_not_available, by lock_timeout
    "25P03": Meaning.LOST,  # idle_in_transaction_session_timeout
    "0A000": Meaning.LOST,  # the cached plan does not suit a schema that was just migrated
    "57P01": Meaning.LOST,  # admin_shutdown: this connection is over; a new one tells more
    "57P02": Meaning.LOST,  # crash_shutdown
    "25006": Meaning.AWAY,  # read_only_sql_transaction: a standby, or a disk that is nearly full
    "28000": Meaning.AWAY,  # invalid_authorization_specification
    "28P01": Meaning.AWAY,  # invalid_password
    "3D000": Meaning.AWAY,  # invalid_catalog_name
    "42501": Meaning.AWAY,  # insufficient_privilege
}
_OF_CLASS: Final = {"08": Meaning.LOST, "53": Meaning.AWAY, "57": Meaning.AWAY, "58": Meaning.AWAY, "XX": Meaning.AWAY}
_ADVICE: Final = {
    "28": "correct the user in CARREL_EXECUTION_STORE_URL, the password in CARREL_EXECUTION_STORE_PASSWORD_FILE, "
    "or pg_hba.conf",
    "3D": "make the database that CARREL_EXECUTION_STORE_URL names, or correct the URL",
    "42": "give the user rights on the database and its schema",
    "25": "point CARREL_EXECUTION_STORE_URL at the primary",
    "53": "free what PostgreSQL has run out of: connections, memory or disk",
    "57": "wait until PostgreSQL is up",
}


def _code(error: BaseException) -> str:
    """SQLSTATE, when it was the server that spoke."""
    found = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    return str(found) if found else ""


def meaning_of(error: BaseException) -> Meaning:
    """What an error means that an operation, or the driver, raised."""
    code = _code(error)
    if code:
        return _OF_CODE.get(code) or _OF_CLASS.get(code[:2]) or Meaning.FAULT
    if isinstance(error, OSError | TimeoutError | EOFError):
        return Meaning.LOST
    of_driver = _of_driver(error)
    if of_driver is None or isinstance(of_driver, ValueError | TypeError):  # what was to be sent can't be
        return Meaning.FAULT
    # The driver's own: a connection that was closed under its feet, or that lost its place in the protocol by it.
    return Meaning.LOST


def is_away(error: BaseException) -> bool:
    """Whether connecting failed in a way that every other attempt in this moment would."""
    return meaning_of(error) in (Meaning.LOST, Meaning.AWAY)


def postgres_unavailable(error: BaseException) -> StoreUnavailableError:
    """What the database said, as an error whose advice fits it."""
    text = " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__
    code = _code(error)
    advice = _ADVICE.get(code[:2]) or "see that PostgreSQL is up and can be reached from here"
    if meaning_of(error) is Meaning.SLOW:
        advice = "look for long transactions, or raise CARREL_EXECUTION_STORE_STATEMENT_SECONDS"
    return StoreUnavailableError(f"the run store cannot be used: {text[:200]}", advice=advice, retry_after_s=1.0)


def _of_driver(error: BaseException) -> BaseException | None:
    """What the driver itself raised, below what SQLAlchemy makes of it."""
    found: BaseException | None = error
    while found is not None:
        if type(found).__module__.startswith("asyncpg."):
            return found
        found = found.orig if isinstance(found, exc.DBAPIError) and found.orig is not None else found.__cause__
    return None
