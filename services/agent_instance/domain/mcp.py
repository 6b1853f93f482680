"""Rules about the tools of MCP servers: names, permissions, answers, and when to try again.

Nothing here speaks with a server: that is ``client_mcp``'s, and when it does so ``mcp_servers``'.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from carrel.agent_context import MAX_ARTIFACT_BYTES, AgentContext
from carrel.errors import ToolFailedError
from servicekit.logs import get_logger

__all__ = [
    "DEFAULT_PERMISSION",
    "Answer",
    "Backoff",
    "Blob",
    "Listed",
    "ServerRules",
    "permission_problem",
    "result_of",
]

DEFAULT_PERMISSION: Final = "mcp:{server}:{tool}"
_log: Final = get_logger("agent_instance.mcp")

_PERMISSION: Final = re.compile(r"[!-.0-~]{1,128}")
_MAX_NAME: Final = 64
_MAX_ERROR_CHARS: Final = 2000
_MAX_DESCRIPTION_CHARS: Final = 4000
_SUFFIXES: Final[Mapping[str, str]] = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "application/pdf": "pdf",
    "text/plain": "txt",
}
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Listed:
    """A tool as its server lists it."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in an answer, still in base64."""

    kind: str
    media_type: str
    data: str
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer to a call. ``links``: what else it points to, as plain JSON."""

    text: str = ""
    structured: Any = None
    blobs: tuple[Blob, ...] = ()
    links: tuple[Mapping[str, Any], ...] = ()
    is_error: bool = False


def permission_problem(template: str) -> str:
    """Why this is no permission or template of one; empty when it is."""
    try:
        text = template.format(server="s", tool="t")
    except (KeyError, ValueError, IndexError, AttributeError):
        return f'the permission {template[:64]!r} has braces other than "{{server}}" and "{{tool}}"'
    return "" if _PERMISSION.fullmatch(text) else f"the permission {template[:64]!r} is not printable ASCII without '/'"


@dataclass(frozen=True, slots=True)
class ServerRules:
    """What the operator has set down about a server. Times are seconds.

    ``permissions``: by pattern of the tool's name, the first that fits counts, ``*`` last; None for no permission.
    ``shared``: one session serves every user.
    """

    name: str
    prefix: str
    permissions: Mapping[str, str | None] = field(default_factory=lambda: {"*": DEFAULT_PERMISSION})
    approval: tuple[str, ...] = ()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    timeout_s: float = 30.0
    max_result_bytes: int = 256 * 1024
    max_sessions: int = 50
    shared: bool = False
    start_timeout_s: float = 10.0
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0

    def tool_name(self, name: str) -> str:
        """What a server's tool is called here: prefixed, of the characters a tool's name may have, 64 at most."""
        full = self.prefix + _cleaned(name)
        if not full[0].isalpha():
            full = f"t_{full}"
        if len(full) <= _MAX_NAME:
            return full
        return f"{full[: _MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def permission(self, name: str) -> str | None:
        """The permission that a call of the server's tool needs; None for none."""
        patterns = sorted(self.permissions, key=lambda pattern: pattern == "*")
        template = next((self.permissions[p] for p in patterns if fnmatch.fnmatchcase(name, p)), DEFAULT_PERMISSION)
        return None if template is None else template.format(server=self.name, tool=_cleaned(name))[:128]

    def asks(self, name: str) -> bool:
        """Whether the user is asked before a call of it."""
        return _fits(name, self.approval)

    def offered(self, listed: Iterable[Listed]) -> Iterator[tuple[str, Listed]]:
        """The tools that are offered, each with its name here; of two with one name the first."""
        seen: set[str] = set()
        for item in listed:
            if not _fits(item.name, self.include) or _fits(item.name, self.exclude):
                continue
            name = self.tool_name(item.name)
            if name in seen:
                _log.warning("two tools of an MCP server have one name here", server=self.name, tool=name)
                continue
            seen.add(name)
            yield name, Listed(item.name, " ".join(item.description.split())[:_MAX_DESCRIPTION_CHARS], item.schema)


def _cleaned(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "_"


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class Backoff:
    """How long to wait after failures in a row, doubling: ``failed`` counts one, ``wait_s`` says what is left."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0
        self._until = 0.0

    def failed(self, now: float) -> float:
        """One more failure; returns the seconds until the next try."""
        # The exponent is bounded: a float of 2 to the 1024th does not exist.
        wait_s = min(self._first_s * 2.0 ** min(self._failures, 40), self._most_s)
        self._failures += 1
        self._until = now + wait_s
        return wait_s

    def wait_s(self, now: float) -> float:
        """Seconds until the next try; 0 when it may be made."""
        return max(0.0, self._until - now)

    def succeeded(self) -> None:
        """It works: forget the failures."""
        self._failures, self._until = 0, 0.0


async def result_of(answer: Answer, ctx: AgentContext, name: str, max_bytes: int) -> dict[str, Any]:
    """An answer as the agent gets it: ``text``, ``structured``, ``files`` and ``links``, those that it has.

    Images, sounds and other bytes become artifacts of the run, and so does a result over its bound.

    Raises:
        ToolFailedError: The server says that the call failed, or its result is too large even for an artifact.
    """
    if answer.is_error:
        text = answer.text or "the server gave no reason"
        cut = text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS]} …"
        raise ToolFailedError(f"tool {name}: {cut}", tool_name=name)
    result: dict[str, Any] = {}
    if answer.text or (answer.structured is None and not answer.blobs and not answer.links):
        result["text"] = answer.text
    if answer.structured is not None:
        result["structured"] = answer.structured
    if answer.links:
        result["links"] = [dict(link) for link in answer.links]
    encoded = _encoded(result, name)
    if len(encoded) > max_bytes:
        ref = await _put(ctx, f"{_stem(ctx)}.json", encoded, "application/json", name)
        result = {"artifact": ref, "too_large": len(encoded)}
    if answer.blobs:
        result["files"] = [await _stored(blob, ctx, number, name) for number, blob in enumerate(answer.blobs, 1)]
    return result


def _encoded(result: Mapping[str, Any], name: str) -> bytes:
    try:
        return orjson.dumps(result)
    except orjson.JSONEncodeError:
        raise ToolFailedError(f"tool {name}: its result is not JSON (a number too large, or broken text)") from None


async def _stored(blob: Blob, ctx: AgentContext, number: int, name: str) -> dict[str, Any]:
    # Not decoded before it is known to fit.
    if len(blob.data) > MAX_ARTIFACT_BYTES * 4 // 3 + 4:
        raise _too_large(name)
    try:
        data = base64.b64decode(blob.data, validate=True)
    except (binascii.Error, ValueError):
        raise ToolFailedError(f"tool {name}: the server gave {blob.kind} data that is no base64") from None
    given = blob.media_type.lower().partition(";")[0].strip()
    media_type = given if _MEDIA_TYPE.fullmatch(given) else "application/octet-stream"
    file_name = f"{_stem(ctx)}-{number}.{_SUFFIXES.get(media_type, 'bin')}"
    told = {"kind": blob.kind, "artifact": await _put(ctx, file_name, data, media_type, name)}
    return {**told, "uri": blob.uri[:2000]} if blob.uri else told


async def _put(ctx: AgentContext, file_name: str, data: bytes, media_type: str, name: str) -> dict[str, Any]:
    if len(data) > MAX_ARTIFACT_BYTES:
        raise _too_large(name)
    return (await ctx.artifacts.put(file_name, data, media_type)).to_dict()


def _stem(ctx: AgentContext) -> str:
    return f"{ctx.tool_call_id[-90:]}-{ctx.attempt}"


def _too_large(name: str) -> ToolFailedError:
    return ToolFailedError(
        f"tool {name}: its result is larger than the {MAX_ARTIFACT_BYTES} bytes of an artifact",
        advice="ask it for less",
        tool_name=name,
    )
