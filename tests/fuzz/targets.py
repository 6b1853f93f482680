"""What is fuzzed: each takes any bytes and raises only when something of ours is wrong.

Used by ``run`` (atheris, guided by coverage) and by the tests (seeded, without atheris). No server and no process here;
services as a whole are ``tests/security/test_fuzz_rpcs.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

import orjson
from google.protobuf import message_factory
from google.protobuf.message import DecodeError

from carrel.errors import CarrelError, Status
from carrel.v1 import context_pb2
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.wire import context_from_proto, error_from_proto, error_to_proto
from gateway.frames import connect_options, parse_frame
from gateway.login import LoginVerifier, bearer_token
from gateway.login_keys import LoginKey, LoginKeys
from gateway.origins import Origins
from gateway.wire import MessageReader, WireError
from servicekit.identity.principals import Scope
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.validation import validate_message
from services.emitter.domain.guard import Guard
from services.emitter.domain.sanitize import Sanitizer
from tests.security.rpc_table import methods
from tests.support.identity import identity

__all__ = ["TARGETS"]

_MOST: Final = 70_000


def _check(holds: bool, error: Exception) -> None:
    if not holds:
        raise AssertionError("an error of the wrong kind") from error


def _expected(error: CarrelError) -> None:
    _check(error.status is not Status.INTERNAL and bool(error.message), error)


def frames(data: bytes) -> None:
    """The frame parser, and what reads a connect frame's options."""
    try:
        frame = parse_frame(data.decode("utf-8", "replace"))
        _ = frame.client_ref
        _ = frame.checked()
        _ = connect_options(frame)
    except CarrelError as error:
        _expected(error)


def wire(data: bytes) -> None:
    """The reader of WebSocket messages, plain and packed; it keeps no more than it was given."""
    for deflate in (False, True):
        reader = MessageReader(_MOST, deflate=deflate)
        try:
            for at in range(0, len(data), 7):
                reader.feed(data[at : at + 7])
                for message in reader.read():
                    assert message is None or len(message.data) + len(message.text) <= _MOST
        except WireError as error:
            _check(1000 <= error.code < 1016, error)


@cache
def _guard() -> Guard:
    return Guard(Sanitizer())


def events(data: bytes) -> None:
    """The emitter's check of an event's data: what passes is JSON, and clean when it comes again."""
    for kind in ("agent_thinking", "tool_executing", "agent_error"):
        try:
            admitted = _guard().admit_data(kind, data)
        except CarrelError as error:
            _expected(error)
            continue
        orjson.loads(admitted)
        assert _guard().admit_data(kind, admitted) == admitted


@cache
def _verifiers() -> tuple[LoginVerifier, TicketVerifier]:
    return LoginVerifier(LoginKeys([LoginKey("", "HS256", b"k" * 40)]), "idp", "carrel"), identity().verifier()


def tokens(data: bytes) -> None:
    """Login tokens, tickets and headers: none of it is one."""
    text = data.decode("latin-1")
    logins, tickets = _verifiers()
    for attempt in (
        lambda: logins.verify(text),
        lambda: logins.verify(bearer_token(text)),
        lambda: tickets.verify(UserExecutionContext(user_id="alice", ticket=text), frozenset(Scope)),
    ):
        try:
            attempt()
        except CarrelError as error:
            _check(error.status is Status.UNAUTHENTICATED, error)
        else:
            raise AssertionError("let in")
    assert not Origins(("https://app.example",), allow_local=False).allows(text) or text.lower().startswith("https:")


def messages(data: bytes) -> None:
    """Requests of the contract from bytes: what can be read can be judged; contexts and errors can be converted."""
    for method in methods().values():
        try:
            request = message_factory.GetMessageClass(method.input_type).FromString(data)
        except DecodeError:
            continue
        try:
            validate_message(request)
        except CarrelError as error:
            _expected(error)
    try:
        context = UserExecutionContext.FromString(data)
    except DecodeError:
        pass
    else:
        try:
            context_from_proto(context)
        except CarrelError as error:
            _expected(error)
    try:
        detail = context_pb2.ErrorDetail.FromString(data)
    except DecodeError:
        return
    error_to_proto(error_from_proto(detail))


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "frames": frames,
    "wire": wire,
    "events": events,
    "tokens": tokens,
    "messages": messages,
}
