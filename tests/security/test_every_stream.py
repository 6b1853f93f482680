"""The bidirectional streams against every kind of wrong item: it alone is refused, and the stream goes on for others.

Emit, Publish and Attach carry many users at once; RunInstance carries one run, so a wrong message there ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from grpc import aio

from carrel.ids import new_id
from carrel.rpc_errors import from_rpc_error
from carrel.v1 import agent_instance_pb2, bridge_pb2, events_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from tests.security.forge import PERMISSION_DENIED, UNAUTHENTICATED, Attack, Forge, Who, attacks
from tests.security.rpc_table import ROWS, RUN, SERVERS, SERVICE, USER, methods
from tests.support.stack import RunningStack

_REASONS = {
    UNAUTHENTICATED: events_pb2.REFUSAL_REASON_UNAUTHENTICATED,
    PERMISSION_DENIED: events_pb2.REFUSAL_REASON_PERMISSION_DENIED,
}
_EVENT_STREAMS = ("carrel.v1.EmitterService.Emit", "carrel.v1.BridgeService.Publish")
_HERE = {*_EVENT_STREAMS, "carrel.v1.BridgeService.Attach", "carrel.v1.AgentInstanceService.RunInstance"}
_WITHIN_S = 20.0


@pytest.fixture
async def channels(stack: RunningStack) -> AsyncIterator[dict[str, aio.Channel]]:
    """Plain channels to the services that have such streams."""
    opened = {name: aio.insecure_channel(stack.address(name)) for name in ("emitter", "bridge", "agent_instance")}
    yield opened
    await asyncio.gather(*(channel.close() for channel in opened.values()))


def test_every_bidirectional_stream_is_tested_here() -> None:
    assert {name for name, method in methods().items() if method.client_streaming} == _HERE


# Emit and Publish.


def _item(context: Any, producer: str, text: str = "hello") -> events_pb2.ProducerEvents:
    item = events_pb2.ProducerEvents(context=context, producer_id=producer, fence=1, attempt=1)
    event = item.events.add(event_id=new_id("ev"), number=1, event_type="agent_thinking", agent_name="echo")
    event.timestamp.GetCurrentTime()
    event.data = b'{"text":"%s"}' % text.encode()
    return item


def _fresh(user: str = "") -> Who:
    return Who("run", user or new_id("user"), new_id("thread"), new_id("run"), new_id("req"))


async def _acknowledged(
    channels: dict[str, aio.Channel], name: str, batches: Iterable[list[events_pb2.ProducerEvents]], expected: int
) -> dict[str, events_pb2.ProducerAck]:
    """Send the batches on one stream, which stays open until so many producers have been answered."""
    method = methods()[name]
    request: Any = message_factory.GetMessageClass(method.input_type)
    response: Any = message_factory.GetMessageClass(method.output_type)
    stream: Any = channels[SERVERS[name.rpartition(".")[0]]].stream_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    running = stream()
    acks: dict[str, events_pb2.ProducerAck] = {}
    async with asyncio.timeout(_WITHIN_S):
        for items in batches:
            await running.write(request(items=items))
        async for answer in running:
            acks.update((ack.producer_id, ack) for ack in answer.acks)
            if len(acks) == expected:
                break
        await running.done_writing()
        assert await running.code() is grpc.StatusCode.OK
    return acks


def _ack_problem(attack: Attack, ack: events_pb2.ProducerAck | None) -> str:
    if ack is None:
        return f"{attack.name}: no answer"
    if not ack.HasField("refusal"):
        return f"{attack.name}: taken, up to {ack.through}"
    expected = events_pb2.REFUSAL_REASON_TICKET_EXPIRED if attack.expired else _REASONS[attack.status]
    refusal = ack.refusal
    if refusal.reason != expected:
        return f"{attack.name}: {events_pb2.RefusalReason.Name(refusal.reason)} ({refusal.error.code})"
    if refusal.error.status != attack.status.value[0] or not (refusal.error.message and refusal.error.advice):
        return f"{attack.name}: its error is {refusal.error.code}, status {refusal.error.status}"
    return f"{attack.name}: counts as taken up to {ack.through}" if ack.through else ""


@pytest.mark.parametrize("name", _EVENT_STREAMS)
async def test_a_wrong_item_is_refused_in_its_acknowledgement_and_the_stream_goes_on(
    name: str, forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    wrong = list(attacks(forge, ROWS[name].scopes))
    bad = {f"bad-{n}": attack for n, attack in enumerate(wrong)}
    good = {f"good-{n}": _fresh() for n in range(len(wrong))}
    # Each wrong item travels in one message with a good one, and many such messages on one stream.
    batches = [
        [_item(attack.context, producer), _item(forge.good(who), other)]
        for (producer, attack), (other, who) in zip(bad.items(), good.items(), strict=True)
    ]
    acks = await _acknowledged(channels, name, batches, len(bad) + len(good))
    problems = [_ack_problem(attack, acks.get(producer)) for producer, attack in bad.items()]
    problems += [f"{other}: {acks[other]}" for other in good if acks[other].through != 1]
    assert not any(problems), "\n".join(filter(None, problems))
    for other, who in good.items():
        assert acks[other].user_id == who.user


@pytest.mark.parametrize("name", _EVENT_STREAMS)
async def test_nothing_of_a_refused_item_is_in_anybody_s_log(
    name: str, forge: Forge, stack: RunningStack, channels: dict[str, aio.Channel]
) -> None:
    victim, thief = _fresh(), _fresh()
    swapped = forge.good(thief)
    swapped.user_id = victim.user
    wrong = [
        _item(swapped, "theft", "stolen"),
        _item(victim.context(forge.ticket(thief.claims())), "theft-2", "stolen"),
        _item(victim.context(), "theft-3", "stolen"),
    ]
    good = _item(forge.good(victim), "own", "mine")
    acks = await _acknowledged(channels, name, [[*wrong, good]], 4)
    assert all(acks[item.producer_id].HasField("refusal") for item in wrong)
    for who, expected in ((victim, ["own"]), (thief, [])):
        request = bridge_pb2.ReadEventsRequest(context=stack.session_context(who.user))
        answers = BridgeServiceStub(channels["bridge"]).ReadEvents(request, timeout=10)
        entries = [entry.producer_id async for answer in answers for entry in answer.entries.entries]
        assert entries == expected


@pytest.mark.parametrize("name", _EVENT_STREAMS)
async def test_a_child_s_events_are_taken_under_its_root_s_ticket(
    name: str, forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    who = _fresh()
    child = {"request_id": f"{who.request}_step", "parent_request_id": who.request, "operation_depth": 1}
    acks = await _acknowledged(channels, name, [[_item(forge.good(who, **child), "child")]], 1)
    assert acks["child"].through == 1


@pytest.mark.parametrize("name", _EVENT_STREAMS)
async def test_two_users_with_the_same_producer_id_and_numbers_are_two_producers(
    name: str, forge: Forge, stack: RunningStack, channels: dict[str, aio.Channel]
) -> None:
    first, second = _fresh(), _fresh()
    for who in (first, second):
        acks = await _acknowledged(channels, name, [[_item(forge.good(who), "same", who.user)]], 1)
        assert (acks["same"].through, acks["same"].offset) == (1, 1), "not a repeat of the other user's"
    for who in (first, second):
        request = bridge_pb2.ReadEventsRequest(context=stack.session_context(who.user))
        answers = BridgeServiceStub(channels["bridge"]).ReadEvents(request, timeout=10)
        entries = [entry.data async for answer in answers for entry in answer.entries.entries]
        assert entries == [b'{"text":"%s"}' % who.user.encode()]


# Attach.


def _hello(context: Any) -> bridge_pb2.AttachRequest:
    return bridge_pb2.AttachRequest(context=context, hello=bridge_pb2.AttachHello(gateway_id=new_id("gw")))


def _subscribe(context: Any, generation: int) -> bridge_pb2.AttachRequest:
    return bridge_pb2.AttachRequest(context=context, subscribe=bridge_pb2.Subscribe(generation=generation))


async def _status_of_first(stream: Any, request: Any) -> tuple[grpc.StatusCode, aio.AioRpcError | None]:
    """The status of a stream that begins with ``request``; OK when it answers anything or stays open."""
    running = stream()
    try:
        await running.write(request)
        async with asyncio.timeout(_WITHIN_S):
            await running.read()
        return grpc.StatusCode.OK, None
    except aio.AioRpcError as error:
        return error.code(), error
    except TimeoutError:
        return grpc.StatusCode.OK, None
    finally:
        running.cancel()


async def _first_problem(stream: Any, request: Any, attack: Attack) -> str:
    status, error = await _status_of_first(stream, request)
    if error is None or status is not attack.status:
        return f"{attack.name}: {status.name}, not {attack.status.name}"
    told = from_rpc_error(error)
    return "" if told.message and told.advice else f"{attack.name}: {told.code} does not say what to do"


async def test_attach_is_for_services_only(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    stream = BridgeServiceStub(channels["bridge"]).Attach
    wrong = list(attacks(forge, SERVICE))
    found = await asyncio.gather(*(_first_problem(stream, _hello(attack.context), attack) for attack in wrong))
    assert not any(found), "\n".join(filter(None, found))


async def test_attach_begins_with_hello(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    stream = BridgeServiceStub(channels["bridge"]).Attach
    status, _ = await _status_of_first(stream, _subscribe(forge.good(Who("service")), 1))
    assert status is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_wrong_subscription_is_refused_and_the_gateway_s_stream_goes_on(
    forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    wrong = list(attacks(forge, USER))
    running = BridgeServiceStub(channels["bridge"]).Attach()
    refused: dict[int, bridge_pb2.SubscriptionRefused] = {}
    subscribed: dict[str, int] = {}
    async with asyncio.timeout(_WITHIN_S):
        await running.write(_hello(forge.good(Who("service"))))
        for n, attack in enumerate(wrong, start=1):
            await running.write(_subscribe(attack.context, n))
        others = {new_id("user"): n for n in range(1, 4)}
        for user, generation in others.items():
            await running.write(_subscribe(forge.good(Who("session", user=user)), generation))
        async for answer in running:
            for item in answer.items:
                if item.HasField("refused"):
                    refused[item.refused.generation] = item.refused
                else:
                    assert item.HasField("subscribed"), item
                    subscribed[item.subscribed.user_id] = item.subscribed.generation
            if len(refused) == len(wrong) and len(subscribed) == len(others):
                break
    running.cancel()
    assert subscribed == others, "nobody else is subscribed, alice and bob above all"
    problems = [
        f"{attack.name}: {refused[n].error.code}"
        for n, attack in enumerate(wrong, start=1)
        if refused[n].error.status != attack.status.value[0] or not refused[n].error.advice
    ]
    assert not problems, "\n".join(problems)


async def test_a_subscription_gets_nothing_of_another_user(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    alice, bob = _fresh(), _fresh()
    running = BridgeServiceStub(channels["bridge"]).Attach()
    async with asyncio.timeout(_WITHIN_S):
        await running.write(_hello(forge.good(Who("service"))))
        await running.write(_subscribe(forge.good(Who("session", user=alice.user)), 1))
        subscribed = await running.read()
        assert isinstance(subscribed, bridge_pb2.AttachResponse)
        assert subscribed.items[0].HasField("subscribed")
        # Under alice's ticket bob cannot be unsubscribed, nor can alice under bob's.
        ending = bridge_pb2.Unsubscribe(generation=1)
        wrong = alice.context(forge.ticket(Who("session", user=bob.user).claims()), thread_id="", run_id="")
        await running.write(bridge_pb2.AttachRequest(context=wrong, unsubscribe=ending))
        refused = await running.read()
        assert isinstance(refused, bridge_pb2.AttachResponse)
        assert refused.items[0].HasField("refused")
        for who in (bob, alice):
            items = [[_item(forge.good(who), "stage", who.user)]]
            await _acknowledged(channels, "carrel.v1.EmitterService.Emit", items, 1)
        entries = await running.read()
    running.cancel()
    assert isinstance(entries, bridge_pb2.AttachResponse)
    assert [item.entries.user_id for item in entries.items] == [alice.user]
    assert entries.items[0].entries.entries[0].data == b'{"text":"%s"}' % alice.user.encode()


# RunInstance.


def _start(context: Any, who: Who, agent: str = "echo") -> agent_instance_pb2.RunInstanceRequest:
    start = agent_instance_pb2.StartStage(
        agent_name=agent, attempt=1, fence=1, producer_id=f"{who.run}:0:1", message="hello"
    )
    return agent_instance_pb2.RunInstanceRequest(context=context, start=start)


async def test_run_instance_is_for_the_ticket_s_own_run_only(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    stream = AgentInstanceServiceStub(channels["agent_instance"]).RunInstance
    wrong = list(attacks(forge, RUN))
    found = await asyncio.gather(
        *(_first_problem(stream, _start(attack.context, _fresh()), attack) for attack in wrong)
    )
    assert not any(found), "\n".join(filter(None, found))


async def test_run_instance_runs_for_a_good_ticket(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    who = _fresh()
    running = AgentInstanceServiceStub(channels["agent_instance"]).RunInstance()
    async with asyncio.timeout(_WITHIN_S):
        await running.write(_start(forge.good(who), who))
        answers = []
        async for answer in running:
            answers.append(answer.WhichOneof("message"))
            if answers[-1] == "journal_entry":
                stored = agent_instance_pb2.JournalStored(through=answer.journal_entry.number)
                await running.write(
                    agent_instance_pb2.RunInstanceRequest(context=forge.good(who), journal_stored=stored)
                )
            if answers[-1] == "result":
                await running.done_writing()
        assert await running.code() is grpc.StatusCode.OK
    assert answers[0] == "accepted"
    assert answers[-1] == "result"


async def test_a_run_that_execution_did_not_admit_has_no_instance(
    forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    stub = AgentInstanceServiceStub(channels["agent_instance"])
    who = _fresh()
    status, error = await _status_of_first(stub.RunInstance, _start(forge.asking(who), who))
    assert status is PERMISSION_DENIED
    assert error is not None
    assert "ExecutePipeline" in from_rpc_error(error).advice
    create = agent_instance_pb2.CreateInstanceRequest(context=forge.asking(who), agent_name="echo")
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.CreateInstance(create, timeout=5)
    assert caught.value.code() is PERMISSION_DENIED


async def test_run_instance_takes_no_child_s_context(forge: Forge, channels: dict[str, aio.Channel]) -> None:
    who = _fresh()
    child = {"request_id": f"{who.request}_step", "parent_request_id": who.request, "operation_depth": 1}
    stream = AgentInstanceServiceStub(channels["agent_instance"]).RunInstance
    status, _ = await _status_of_first(stream, _start(forge.good(who, **child), who))
    assert status is grpc.StatusCode.INVALID_ARGUMENT


async def _ends_with(stub: AgentInstanceServiceStub, forge: Forge, make: Callable[[Who], Any]) -> grpc.StatusCode:
    """The status of an attempt that is under way when ``make``'s context arrives as a fresh ticket."""
    who = _fresh()
    running = stub.RunInstance()
    await running.write(_start(forge.good(who), who, "hold"))
    accepted = await running.read()
    assert isinstance(accepted, agent_instance_pb2.RunInstanceResponse)
    assert accepted.HasField("accepted")
    refresh = agent_instance_pb2.RefreshTicket()
    await running.write(agent_instance_pb2.RunInstanceRequest(context=make(who), refresh=refresh))
    try:
        while (answer := await running.read()) is not aio.EOF:
            assert isinstance(answer, agent_instance_pb2.RunInstanceResponse)
            assert not answer.HasField("result")
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_wrong_message_on_a_run_s_stream_ends_that_run_s_attempt(
    forge: Forge, channels: dict[str, aio.Channel]
) -> None:
    stub = AgentInstanceServiceStub(channels["agent_instance"])
    wrong: list[tuple[grpc.StatusCode, Callable[[Who], Any]]] = [
        (UNAUTHENTICATED, lambda who: None),
        (UNAUTHENTICATED, lambda who: who.context()),
        (UNAUTHENTICATED, lambda who: who.context(forge.ticket(who.claims(exp=1, iat=0)))),
        (UNAUTHENTICATED, lambda who: who.context(forge.ticket(who.claims(), sign=forge.stranger.sign))),
        (PERMISSION_DENIED, lambda who: forge.good(Who("session", user=who.user))),
        (PERMISSION_DENIED, lambda who: forge.good(_fresh(who.user))),
        (PERMISSION_DENIED, lambda who: forge.good(_fresh())),
        (PERMISSION_DENIED, lambda who: forge.good(who, user_id="bob")),
    ]
    async with asyncio.timeout(_WITHIN_S):
        found = await asyncio.gather(*(_ends_with(stub, forge, make) for _, make in wrong))
    assert found == [status for status, _ in wrong]
