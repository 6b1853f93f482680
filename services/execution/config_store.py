"""Where the run store is, when it is a database: its URL as a setting, and as what opens it. Nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, SecretStr

__all__ = ["PostgresAddress", "StoreUrl", "check_store_url", "postgres_name"]

_EXAMPLE = "postgresql://carrel@db.internal:5432/carrel"


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where the database is, how it is entered, and how long anything there may take. Times in seconds."""

    url: str
    """``postgresql://user@host:port/database``, with options of libpq's after a ``?``."""
    password_file: Path | None = None
    connections: int = 10
    connect_s: float = 5.0
    statement_s: float = 10.0
    lock_s: float = 5.0
    idle_s: float = 10.0

    def __repr__(self) -> str:
        return f"PostgresAddress({postgres_name(self.url)})"


def postgres_name(url: str) -> str:
    """The database's URL without anything secret, for messages."""
    parts = urlsplit(url)
    _, _, place = parts.netloc.rpartition("@")
    user = parts.username or ""
    return urlunsplit((parts.scheme, f"{user}@{place}" if user else place, parts.path, "", ""))


def check_store_url(text: str) -> None:
    """Raises:
    ValueError: What is wrong with the URL, and what to write; never with a part of it, which may be a password.
    """
    try:
        parts = urlsplit(text)
    except ValueError:  # whose message may quote the URL
        raise ValueError(f"is no URL; write {_EXAMPLE}") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError(f"must begin with postgresql://, as {_EXAMPLE}")
    if not parts.hostname:
        raise ValueError(f"names no host; write {_EXAMPLE}")
    if not parts.path.strip("/") or "/" in parts.path.strip("/"):
        raise ValueError(f"names no database; write {_EXAMPLE}")


def _checked(value: SecretStr) -> SecretStr:
    check_store_url(value.get_secret_value())
    return value


# A secret, since it may hold a password.
StoreUrl = Annotated[SecretStr, AfterValidator(_checked)]
