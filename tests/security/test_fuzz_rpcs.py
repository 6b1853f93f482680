"""Every RPC with bytes that are no message, with broken ones, and with whole ones of nonsense: over running services.

A peer's nonsense is INVALID_ARGUMENT or its like, never a fault of ours; nobody else notices; memory stays bounded.
``make fuzz`` is the long way of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

import grpc
import psutil
import pytest
from google.protobuf import message_factory

from carrel.ids import new_id
from tests.security.forge import Forge, Who
from tests.security.mutations import fill, mutated
from tests.security.rpc_table import ROWS, SERVERS, items_field, methods, request_for
from tests.support.stack import RunningStack
from tests.support.whole import WHOLE

_ROUNDS: Final = 400 if WHOLE else 24
_FAULTS: Final = ("unexpected error", "could not be judged", "Traceback", "Exception in callback")
_GROWTH: Final = 120 << 20
_WITHIN_S: Final = 5.0
# A stream that follows a log has no end of its own.
_STREAM_S: Final = 0.3


@pytest.fixture(scope="module")
def channels(stack: RunningStack) -> Iterator[dict[str, grpc.Channel]]:
    """Channels that take bytes, without anything of ours on this side."""
    opened = {name: grpc.insecure_channel(stack.address(name)) for name in SERVERS.values()}
    yield opened
    for channel in opened.values():
        channel.close()


def _memory(stack: RunningStack) -> dict[str, int]:
    return {name: psutil.Process(stack.pid(name)).memory_info().rss for name in SERVERS.values()}


@pytest.fixture(scope="module", autouse=True)
def unharmed(stack: RunningStack) -> Iterator[None]:
    """None was started again, and none has grown by much."""
    pids, before = {name: stack.pid(name) for name in SERVERS.values()}, _memory(stack)
    yield
    assert {name: stack.pid(name) for name in SERVERS.values()} == pids
    grown = {name: size - before[name] for name, size in _memory(stack).items()}
    assert max(grown.values()) < _GROWTH, grown


def _call(channel: Any, name: str, messages: list[bytes]) -> tuple[grpc.StatusCode, str]:
    """The status of a call with these bytes; OK of a stream that is still open after a while."""
    method = methods()[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            running: Any = channel.stream_stream(path)(iter(messages), timeout=_WITHIN_S)
            for _ in running:
                pass
        elif method.server_streaming:
            running = channel.unary_stream(path)(messages[0], timeout=_STREAM_S)
            for _ in running:
                pass
        else:
            channel.unary_unary(path)(messages[0], timeout=_WITHIN_S)
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


def _context(name: str, forge: Forge) -> Any:
    who = Who("run", new_id("fuzz"), new_id("thread"), new_id("run"), new_id("req"))
    scopes = ROWS[name].scopes
    if "session" in scopes:
        return forge.good(Who("session", who.user))
    return forge.good(who if "run" in scopes else Who("service"))


def _nonsense(name: str, forge: Forge, chance: random.Random) -> bytes:
    """A whole message of nonsense under a good ticket, so that it gets past the edge."""
    context = _context(name, forge)
    method = methods()[name]
    if not method.client_streaming:
        fields = {key: value for key, value in ROWS[name].fields.items() if chance.random() < 0.7}
        kind = message_factory.GetMessageClass(method.input_type)
        return fill(kind(context=context, **fields), chance, frozenset({"context"} | fields.keys())).SerializeToString()
    request: Any = message_factory.GetMessageClass(method.input_type)()
    if items_field(method.input_type) is None:
        request.context.CopyFrom(context)
        return fill(request, chance, frozenset({"context"})).SerializeToString()
    for _ in range(chance.choice((1, 2, 5))):
        item = request.items.add(context=context)
        fill(item, chance, frozenset({"context"}))
    data: bytes = request.SerializeToString()
    return data


def _bare(name: str, forge: Forge) -> bytes:
    context = _context(name, forge)
    method = methods()[name]
    if not method.client_streaming:
        return request_for(name, context).SerializeToString()
    request: Any = message_factory.GetMessageClass(method.input_type)()
    if items_field(method.input_type) is None:
        request.context.CopyFrom(context)
    else:
        request.items.add(context=context)
    data: bytes = request.SerializeToString()
    return data


@pytest.mark.parametrize("name", sorted(methods()))
@pytest.mark.timeout(600 if WHOLE else 60)
def test_nonsense(name: str, stack: RunningStack, forge: Forge, channels: dict[str, grpc.Channel]) -> None:
    chance, channel = random.Random(f"{name} 1"), channels[SERVERS[name.rpartition(".")[0]]]
    before, problems = len(stack.log()), []
    for number in range(_ROUNDS):
        kind = number % 3
        if kind == 0:
            sent = chance.randbytes(chance.choice((0, 1, 3, 20, 300, 40_000)))
        elif kind == 1:
            sent = mutated(_bare(name, forge) if chance.random() < 0.5 else _nonsense(name, forge, chance), chance)
        else:
            sent = _nonsense(name, forge, chance)
        status, told = _call(channel, name, [sent])
        if status in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}:
            problems.append(f"{number}: {status.name}: {told[:200]} <- {sent[:60]!r}")
    said = [line[:3000] for line in stack.log()[before:].splitlines() if any(fault in line for fault in _FAULTS)]
    problems = [*problems[:8], *said[:3]]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", sorted(name for name, method in methods().items() if method.client_streaming))
def test_nonsense_in_the_middle_of_a_stream(
    name: str, stack: RunningStack, forge: Forge, channels: dict[str, grpc.Channel]
) -> None:
    chance, channel = random.Random(f"{name} 2"), channels[SERVERS[name.rpartition(".")[0]]]
    before = len(stack.log())
    for _ in range(_ROUNDS // 4):
        messages = [_nonsense(name, forge, chance) for _ in range(6)]
        _ = _call(channel, name, messages)
        messages[3] = mutated(messages[3], chance)
        _ = _call(channel, name, messages)
    said = [line[:3000] for line in stack.log()[before:].splitlines() if any(fault in line for fault in _FAULTS)]
    assert not said, "\n".join(said[:3])


@pytest.mark.parametrize("name", [name for name, row in sorted(ROWS.items()) if not methods()[name].client_streaming])
def test_a_good_call_after_all_this(name: str, forge: Forge, channels: dict[str, grpc.Channel]) -> None:
    status, _ = _call(channels[SERVERS[name.rpartition(".")[0]]], name, [_bare(name, forge)])
    assert status in {ROWS[name].answer, grpc.StatusCode.NOT_FOUND}
