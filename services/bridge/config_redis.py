"""Where the Redis of the event log is: the URL's three forms, checked when the settings are read. No connection here.

    redis://[user[:password]@]host[:port][/db]              one server; rediss:// for TLS
    redis+sentinel://host[:port],host[:port]/service[/db]   the master that Sentinels name
    redis+cluster://host[:port],host[:port]                 a Cluster, from any of its nodes

``rediss+sentinel`` and ``rediss+cluster`` are the same over TLS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal
from urllib.parse import unquote

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["RedisUrl"]

_FORMS: Final = (
    "write redis://host:port/db, rediss://host:port/db, redis+sentinel://host:port,host:port/service/db "
    "or redis+cluster://host:port,host:port"
)
_URL: Final = re.compile(r"(rediss?)(?:\+(sentinel|cluster))?://(?:([^@/]*)@)?([^/@?#]+)(?:/([^?#]*))?")
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]")
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PORTS: Final = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_MAX_DB: Final = 1023

Kind = Literal["single", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed URL; ``str`` and ``repr`` never show the password.

    Args:
        kind: What ``addresses`` are.
        addresses: (host, port) of the server, the Sentinels, or some of the Cluster's nodes.
        tls: Whether every connection is encrypted.
        username: ACL user; empty for the default one.
        password: Empty for none.
        db: Number of the database.
        service: The master's name, with Sentinels.
    """

    holds_secrets: ClassVar[bool] = True

    kind: Kind
    addresses: tuple[tuple[str, int], ...]
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    service: str = ""

    def __str__(self) -> str:
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "single" else f"+{self.kind}")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses)
        path = "".join(f"/{part}" for part in (self.service, self.db or "") if part)
        return f"{scheme}://{hosts}{path}"

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Read the URL.

        Raises:
            ValueError: What is wrong with it, and what to write; never with a part of it that may be the password.
        """
        match = _URL.fullmatch(text)
        if match is None:
            raise ValueError(_FORMS)
        scheme, kind_text, login, hosts, path = match.groups()
        kind: Kind = "sentinel" if kind_text == "sentinel" else "cluster" if kind_text == "cluster" else "single"
        username, _, password = (login or "").partition(":")
        addresses = tuple(_address(host, kind) for host in hosts.split(","))
        if kind == "single" and len(addresses) > 1:
            raise ValueError(f"one server has one address; for several {_FORMS.removeprefix('write ')}")
        service, db = _path(kind, path or "")
        return cls(kind, addresses, scheme == "rediss", unquote(username), unquote(password), db, service)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value)),
            serialization=core_schema.to_string_ser_schema(),
        )


def _address(text: str, kind: Kind) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(_PORTS[kind])
    if not _HOST.fullmatch(host):
        raise ValueError(f"a host in it is none; {_FORMS}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise ValueError("a port in it is not a number from 1 to 65535")
    return host.strip("[]"), int(port)


def _path(kind: Kind, path: str) -> tuple[str, int]:
    parts = path.split("/") if path else []
    service = ""
    if kind == "sentinel":
        if not parts or not _SERVICE.fullmatch(parts[0]):
            raise ValueError("the name of the master is missing: write redis+sentinel://host:port,host:port/service")
        service = parts.pop(0)
    if len(parts) > 1:
        raise ValueError(f"its path has too many parts; {_FORMS}")
    db = parts[0] if parts else ""
    if not db:
        return service, 0
    if kind == "cluster":
        raise ValueError("a Cluster has one database only: leave the path out")
    if not (db.isascii() and db.isdigit() and len(db) <= 4 and int(db) <= _MAX_DB):
        raise ValueError(f"the database is a number from 0 to {_MAX_DB}")
    return service, int(db)
