"""Frames that come in: one flat JSON object each, named by ``type``. Parsed and checked here; acted on elsewhere.

A frame that is wrong is an error of its own and never ends the connection; how many may be wrong in a row is the
session's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from carrel.errors import FrameError, TooLargeError, UnknownFrameError
from carrel.ids import check_minted_id
from gateway.fields import ID, Rule, check_fields
from gateway.requests import EXECUTE_RULES
from gateway.ring import Place
from gateway.twins import refuse_twins

__all__ = ["MAX_FRAME_BYTES", "Connect", "Inbound", "connect_options", "parse_frame"]

MAX_FRAME_BYTES: Final = 64 * 1024
_MAX_TOKEN: Final = 16 * 1024

_RESUME: Final[Mapping[str, Rule]] = {
    "epoch": Rule(str, longest=64),
    "offset": Rule(int, required=True),
    "event_id": Rule(str, longest=128),
}
_ACK: Final[Mapping[str, Rule]] = {"window": Rule(int, least=1)}
_FLAG: Final = Rule(bool)
_TOKEN: Final = Rule(str, longest=_MAX_TOKEN, least=1)
_NAMED: Final = Rule(str, required=True, longest=128, least=1)
_REF: Final = {"client_ref": ID}

# Every frame of the protocol that a client may send, with its fields besides `type`.
_RULES: Final[Mapping[str, Mapping[str, Rule]]] = {
    "connect": {
        "token": _TOKEN,
        "socket_token": _TOKEN,
        "thread_id": ID,
        "resume": Rule(dict),
        "batch": _FLAG,
        "compress": _FLAG,
        "ack": Rule(object),
    },
    "agent_execute": EXECUTE_RULES,
    "agent_cancel": {"run_id": _NAMED, "reason": Rule(str, longest=512), **_REF},
    "input_provide": {"run_id": _NAMED, "input_id": _NAMED, "value": Rule(object), **_REF},
    "ack": {"offset": Rule(int, required=True)},
    "ping": _REF,
    "pong": {"offset": Rule(int)},
    "refresh": {"token": Rule(str, required=True, longest=_MAX_TOKEN, least=1)},
}
_TYPES: Final = f"set type to one of {', '.join(_RULES)}"


@dataclass(frozen=True, slots=True)
class Inbound:
    """A frame with a type; both are checked by whoever acts on it through ``checked``.

    A type that nobody knows is still a frame: the error about it repeats the frame's ``client_ref``.
    """

    type: str
    body: Mapping[str, Any]

    @property
    def client_ref(self) -> str | None:
        """The client's own name for the request, to be repeated in the answer."""
        ref = self.body.get("client_ref")
        return ref if isinstance(ref, str) and len(ref) <= 128 else None

    def checked(self) -> dict[str, Any]:
        """The fields that are there, checked.

        Raises:
            UnknownFrameError: The type is not in the protocol.
            FrameError: A field is unknown, missing or wrong.
        """
        rules = _RULES.get(self.type)
        if rules is None:
            raise UnknownFrameError("the frame's type is not known", advice=_TYPES)
        return check_fields(self.body, rules, f"the frame {self.type}", FrameError)


@dataclass(frozen=True, slots=True)
class Connect:
    """What a ``connect`` frame asks for. ``window`` is the send window that it wishes, 0 for the usual one."""

    token: str = ""
    socket_token: str = ""
    thread_id: str = ""
    resume: Place | None = None
    batch: bool = False
    compress: bool = False
    ack: bool = False
    window: int = 0


def parse_frame(text: str) -> Inbound:
    """One text message as a frame.

    Raises:
        TooLargeError: It is over MAX_FRAME_BYTES.
        FrameError: It is no JSON object, names one field twice, or has no type.
    """
    if len(text) > MAX_FRAME_BYTES or (len(text) * 4 > MAX_FRAME_BYTES and _bytes(text) > MAX_FRAME_BYTES):
        raise TooLargeError(
            f"a frame may have {MAX_FRAME_BYTES} bytes",
            advice="send large requests to POST /api/agents/execute, which takes 1 MiB",
            limit="max_frame_bytes",
            limit_value=MAX_FRAME_BYTES,
            use=_bytes(text),
        )
    try:
        body = orjson.loads(text)
        refuse_twins(text, "the frame", FrameError)
    except (ValueError, RecursionError):
        raise FrameError("the frame is not valid JSON", advice="send one JSON object in each text message") from None
    if not isinstance(body, dict):
        raise FrameError("the frame is not a JSON object", advice="send one JSON object in each text message")
    kind = body.pop("type", None)
    if not isinstance(kind, str):
        raise FrameError("the frame has no type", advice=_TYPES)
    return Inbound(kind, body)


def connect_options(frame: Inbound) -> Connect:
    """The options of a ``connect`` frame.

    Raises:
        FrameError: One of them is wrong.
        InvalidIdError: The thread_id is malformed, or a placeholder.
    """
    fields = frame.checked()
    if "token" in fields and "socket_token" in fields:
        raise FrameError("token and socket_token exclude each other", fields={"socket_token": "excludes token"})
    resume = None
    if "resume" in fields:
        position = check_fields(fields["resume"], _RESUME, "resume", FrameError)
        resume = Place(position.get("epoch", ""), position["offset"], position.get("event_id", ""))
        if resume.offset and not (resume.epoch and resume.event_id):
            raise FrameError(
                "resume needs epoch and event_id beside an offset above 0",
                advice="send what the last event and `connected` said, or offset 0 for everything that is kept",
                fields={"resume": "is incomplete"},
            )
    ack, window = _ack_option(fields.get("ack", False))
    return Connect(
        token=fields.get("token", ""),
        socket_token=fields.get("socket_token", ""),
        thread_id=check_minted_id(fields["thread_id"], "thread_id") if "thread_id" in fields else "",
        resume=resume,
        batch=fields.get("batch", False),
        compress=fields.get("compress", False),
        ack=ack,
        window=window,
    )


def _ack_option(value: object) -> tuple[bool, int]:
    """Whether the client acknowledges, and the window that it wishes."""
    if isinstance(value, bool):
        return value, 0
    if not isinstance(value, dict):
        raise FrameError(
            "the frame connect: ack must be true, false or an object",
            advice='send "ack": true, or "ack": {"window": 100} for a window of your own',
            fields={"ack": "must be true, false or an object"},
        )
    return True, check_fields(value, _ACK, "ack", FrameError).get("window", 0)


def _bytes(text: str) -> int:
    # A lone surrogate cannot come through a text message; `replace` keeps measuring from failing all the same.
    return len(text.encode("utf-8", "replace"))
