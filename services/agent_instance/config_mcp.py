"""Settings of MCP servers: ``CARREL_AGENT_INSTANCE_MCP``, a JSON object of servers by name, or the path of a file.

Durations are seconds, sizes are bytes. Values are read here, secrets included; nothing connects to a server here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import orjson
from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, SecretStr, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from servicekit.settings import Section
from services.agent_instance.domain.mcp import DEFAULT_PERMISSION, ServerRules, permission_problem

__all__ = ["McpServerSettings", "McpServers"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PREFIX: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,39})?")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_SECRET_BYTES: Final = 16 * 1024
# What programs need to start at all; anything else only by name.
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


def _value(given: object) -> object:
    """A value as it is, or from where it is kept: ``{"env": NAME}``, ``{"file": PATH}``, with a ``prefix`` or not."""
    if not isinstance(given, Mapping):
        return given
    unknown = set(given) - {"env", "file", "prefix"}
    if unknown or ("env" in given) == ("file" in given) or not all(isinstance(v, str) for v in given.values()):
        raise ValueError('write a text, {"env": "NAME"} or {"file": "/path"}, beside it "prefix": "Bearer " if needed')
    if "env" in given:
        found = os.environ.get(given["env"], "")
        if not found:
            raise ValueError(f"the environment variable {given['env']} is not set: set it, or correct the name")
    else:
        found = _secret_file(Path(given["file"]))
    return given.get("prefix", "") + found


def _secret_file(path: Path) -> str:
    try:
        found = path.read_text(encoding="utf-8")[:_MAX_SECRET_BYTES].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file {path} cannot be read ({type(error).__name__})") from None
    if not found:
        raise ValueError(f"the file {path} is empty: put the value into it")
    return found


Value = Annotated[SecretStr, BeforeValidator(_value)]


class McpServerSettings(Section):
    """One server: a ``command`` that speaks on its standard streams, or the ``url`` of one that speaks HTTP."""

    command: str = Field("", description="program to start, found along PATH")
    args: tuple[str, ...] = ()
    env: Mapping[str, Value] = Field(default_factory=dict, description="variables it gets")
    env_allow: tuple[str, ...] = Field((), description="variables of the service's own that it gets too")
    cwd: Path | None = Field(None, description="folder it runs in; / when not given")
    url: str = Field("", description="endpoint, http:// or https://")
    headers: Mapping[str, Value] = Field(default_factory=dict, description="headers of every request")
    protocol: Literal["auto", "legacy"] | None = Field(
        None, description="auto: the newest one; legacy: the handshake with sessions, the default of a url per run"
    )
    stateless: bool = Field(False, description="one session serves everybody, since the server keeps nothing of a user")
    prefix: str | None = Field(None, description="what its tools' names begin with; <name>__ when not given")
    permission: str | Mapping[str, str | None] | None = Field(
        DEFAULT_PERMISSION, description="what a user must be allowed; or by pattern of the tool's name"
    )
    approval: bool | tuple[str, ...] = Field(False, description="whether the user is asked first, or for which tools")
    include: tuple[str, ...] = Field(("*",), min_length=1, description="patterns of the tools that are offered")
    exclude: tuple[str, ...] = Field((), description="patterns of the tools that are not")
    timeout: float = Field(30.0, gt=0, le=3600, description="seconds one call may take")
    start_timeout: float = Field(10.0, gt=0, le=300, description="seconds a session may take to open")
    max_sessions: int = Field(50, ge=1, le=10_000, description="sessions open at once")
    max_result_bytes: int = Field(256 * 1024, ge=1024, le=512 * 1024, description="a larger one becomes an artifact")
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=64 * 1024, le=64 * 1024 * 1024, description="largest message")
    backoff: float = Field(0.5, gt=0, le=60, description="seconds until a server that died is started again")
    backoff_max: float = Field(30.0, gt=0, le=3600, description="the most that grows to, doubling each time")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = [*self._transport_problems(), *self._rule_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _transport_problems(self) -> Iterator[str]:
        if bool(self.command) == bool(self.url):
            yield 'give it either a "command" to start or the "url" of one that runs'
        elif self.command and self.headers:
            yield '"headers" belong to a "url"'
        elif self.url and (self.args or self.env or self.env_allow or self.cwd):
            yield '"args", "env", "env_allow" and "cwd" belong to a "command"'
        if self.url and not re.match(r"https?://[^/\s]+", self.url):
            yield '"url" must begin with http:// or https:// and a host, for example http://localhost:8000/mcp'
        if self.cwd is not None and not self.cwd.is_dir():
            yield f'"cwd" is no folder: {self.cwd}'
        if any("\0" in text for text in (self.command, *self.args, *_revealed(self.env).values())):
            yield '"command", "args" and "env" may not hold a zero byte'
        if wrong := [name for name in self.env if not name or set(name) & set("=\0")]:
            yield f'"env" has names that no variable can have: {", ".join(wrong)}'
        for name, value in _revealed(self.headers).items():
            if not _HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
                yield f"the header {name[:64]!r} has a name or value that cannot be sent: printable ASCII only"

    def _rule_problems(self) -> Iterator[str]:
        if self.prefix is not None and not _PREFIX.fullmatch(self.prefix):
            yield '"prefix" must be letters, digits, "_", "." and "-", beginning with a letter, at most 40 long'
        given = self.permission.values() if isinstance(self.permission, Mapping) else (self.permission,)
        yield from (problem for item in given if item is not None and (problem := permission_problem(item)))
        if self.backoff > self.backoff_max:
            yield '"backoff" must not be above "backoff_max"'

    def rules(self, name: str) -> ServerRules:
        """What of it decides about its tools."""
        by_pattern = dict(self.permission) if isinstance(self.permission, Mapping) else {"*": self.permission}
        approval = ("*",) if self.approval is True else () if self.approval is False else self.approval
        return ServerRules(
            name=name,
            prefix=f"{name}__" if self.prefix is None else self.prefix,
            permissions=MappingProxyType({**by_pattern, "*": by_pattern.get("*", DEFAULT_PERMISSION)}),
            approval=approval,
            include=self.include,
            exclude=self.exclude,
            timeout_s=self.timeout,
            max_result_bytes=self.max_result_bytes,
            max_sessions=self.max_sessions,
            shared=self.stateless,
            start_timeout_s=self.start_timeout,
            backoff_s=self.backoff,
            backoff_max_s=self.backoff_max,
        )

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of its process."""
        kept = {name: environ[name] for name in (*_ENVIRONMENT, *self.env_allow) if name in environ}
        return {"PATH": os.defpath, **kept, **_revealed(self.env)}

    def revealed_headers(self) -> dict[str, str]:
        """The headers as they are sent."""
        return _revealed(self.headers)

    @property
    def handshake(self) -> bool:
        """Whether to open it with the older handshake: over HTTP, only that one has sessions."""
        return self.protocol == "legacy" or (self.protocol is None and bool(self.url) and not self.stateless)

    def fingerprint(self) -> str:
        """A hash of how it is set up, without the values of variables and headers."""
        told = self.model_dump(mode="json", exclude={"env", "headers"})
        told |= {"env": sorted(self.env), "headers": sorted(self.headers)}
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _revealed(values: Mapping[str, SecretStr]) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class McpServers:
    """The servers by name, from JSON text or from the file that it names."""

    # For servicekit.settings_env: what was given is never quoted.
    holds_secrets: ClassVar[bool] = True

    by_name: Mapping[str, McpServerSettings] = field(default_factory=lambda: MappingProxyType({}))

    def fingerprints(self) -> dict[str, str]:
        """Each name with a hash of how that server is set up."""
        return {name: settings.fingerprint() for name, settings in self.by_name.items()}

    @classmethod
    def parse(cls, given: object) -> McpServers:
        """From a text, an object, or one of these.

        Raises:
            ValueError: Something is wrong; it says all that is, with what to write.
        """
        if isinstance(given, McpServers):
            return given
        raw = _read(given) if isinstance(given, str) else given
        # The form in which other programs keep them.
        if isinstance(raw, Mapping) and set(raw) == {"mcpServers"}:
            raw = raw["mcpServers"]
        if not isinstance(raw, Mapping):
            raise ValueError('write a JSON object of servers, for example {"files": {"command": "mcp-files"}}')
        servers: dict[str, McpServerSettings] = {}
        problems: list[str] = []
        for name, item in raw.items():
            if not _NAME.fullmatch(str(name)):
                problems.append(f"{str(name)[:40]!r} can name no server: a-z, 0-9, '_' and '-', at most 32")
                continue
            try:
                servers[name] = McpServerSettings.model_validate(item)
            except ValidationError as error:
                problems += [f"{name}{problem}" for problem in _told(error)]
        prefixes: dict[str, str] = {}
        for name, server in servers.items():
            other = prefixes.setdefault(server.rules(name).prefix, name)
            if other != name:
                problems.append(f'{name} and {other} have one prefix: give one of them another "prefix"')
        if problems:
            raise ValueError("; ".join(problems))
        return cls(MappingProxyType(dict(sorted(servers.items()))))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.parse)

    def __str__(self) -> str:
        return ",".join(self.by_name)


def _read(text: str) -> object:
    if not text.lstrip().startswith("{"):
        path = Path(text).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise ValueError(
                f"the file {path} cannot be read ({problem}): name one, or write the JSON itself"
            ) from None
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"the file {path} is larger than {_MAX_FILE_BYTES} bytes")
        where = f"the file {path}"
    else:
        data, where = text.encode(), "the value"
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON, at line {error.lineno} column {error.colno}") from None


def _told(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = "".join(f".{part}" for part in item["loc"])
        problem = item["msg"].removeprefix("Value error, ").replace("Input should be ", "write ", 1)
        if item["type"] == "extra_forbidden":
            problem = f"is not known; there are {', '.join(McpServerSettings.model_fields)}"
        yield f"{where}: {problem}"
