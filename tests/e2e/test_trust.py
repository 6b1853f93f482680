"""A stack with TLS between its services: certificates, their authority and the keys of tickets are replaced while runs
flow, and no call fails; a revoked user is out everywhere within 5 s; an operator of elsewhere needs a certificate and a
token of their own."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from carrel.cli.audit import show_audit
from carrel.cli.audit_export import export_audit
from carrel.cli.certificates import make_certificates
from carrel.cli.key_rotation import KeyRotation
from carrel.cli.operators import Operator, OperatorOptions, find_operator
from carrel.cli.revoke import revoke_user
from carrel.cli.stack_tls import tls_environment
from carrel.errors import (
    CarrelError,
    InvalidConfigurationError,
    PermissionDeniedError,
    StartupError,
    TicketError,
    TokenError,
    UnavailableError,
)
from carrel.ids import new_id
from carrel.v1 import bridge_pb2, emitter_pb2, execution_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from servicekit.rpc.channel import open_channel, responses
from servicekit.tls.settings import TlsSettings
from tests.conftest import Eventually
from tests.e2e.checks import until_end
from tests.support.awake import Awake
from tests.support.certificates import tls_of
from tests.support.stack import RunningStack, run_carrel, running_stack

AGENTS = Path(__file__).parent / "slow_agents.py"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("mtls"), arguments=["--mtls"], agents=[str(AGENTS)]) as running:
        yield running


@asynccontextmanager
async def channel_to(stack: RunningStack, service: str, *, identity: str = "client") -> AsyncIterator[aio.Channel]:
    environ = tls_environment(stack.state, identity)
    tls = TlsSettings.model_validate(
        {name.removeprefix("CARREL_TLS__").lower(): path for name, path in environ.items()}
    )
    async with open_channel(stack.address(service), tls=tls_of(tls, identity).to(service)) as channel:
        yield channel


async def _ended(call: Any) -> CarrelError | None:
    try:
        async for _ in responses(call):
            pass
    except CarrelError as error:
        return error
    return None


async def test_nobody_without_a_certificate_is_let_in_and_each_only_to_what_it_calls(stack: RunningStack) -> None:
    for service in ("execution", "agent_instance", "emitter", "bridge"):
        async with aio.insecure_channel(stack.address(service)) as channel:
            with pytest.raises(aio.AioRpcError) as refused:
                await ExecutionServiceStub(channel).ListRuns(execution_pb2.ListRunsRequest(), timeout=2)
            assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    mine = execution_pb2.ListRunsRequest(context=stack.session_context("alice"))
    async with channel_to(stack, "execution") as channel:
        await ExecutionServiceStub(channel).ListRuns(mine, timeout=5)
    async with channel_to(stack, "execution", identity="emitter") as channel:
        with pytest.raises(PermissionDeniedError, match="emitter may not call"):
            await ExecutionServiceStub(channel).ListRuns(mine, timeout=5)
    audit = run_carrel("audit", "--state", str(stack.state.root), cwd=stack.folder)
    assert audit.returncode == 0, audit.stderr


def token_file(stack: RunningStack, permissions: Sequence[str], *, lifetime_s: float = 600.0) -> str:
    path = stack.folder / new_id("token")
    path.touch(0o600)
    path.write_text(stack.token("olga", permissions=permissions, lifetime_s=lifetime_s), encoding="ascii")
    return str(path)


def by_address(stack: RunningStack, token: str, *, identity: str = "operator") -> Operator:
    """What an operator on a machine without a state folder is given."""
    environ = tls_environment(stack.state, identity) if identity else {}
    options = OperatorOptions(stack.folder / "none", stack.address("execution"), stack.url, token)
    return find_operator(options, environ)


async def test_an_operator_reaches_execution_by_address_and_the_audit_trail_names_them(
    stack: RunningStack, capsys: pytest.CaptureFixture[str]
) -> None:
    user, reader = new_id("user"), token_file(stack, ["operator:read", "trace:read"])
    options = ["--execution", stack.address("execution"), "--url", stack.url, "--token-file"]
    revoked = await asyncio.to_thread(
        run_carrel,
        *("revoke", user, "--reason", "left", *options, token_file(stack, ["operator:revoke"])),
        cwd=stack.folder,
        environment=tls_environment(stack.state, "operator"),
    )
    assert revoked.returncode == 0, revoked.stderr
    assert revoked.stdout.startswith(f"{user} is out: 0 runs were cancelled")
    operator, output = by_address(stack, reader), stack.folder / "audit.jsonl"
    assert await show_audit(operator, user_id=user, run_id="", most=5000, as_json=True) == 0
    (act,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (act["action"], act["target"]) == ("user.revoke", "olga")
    assert await export_audit(operator, output, since=None, until=dt.datetime.now(dt.UTC), user_id="") == 0
    records = [json.loads(line).get("record", {}) for line in output.read_text(encoding="utf-8").splitlines()]
    assert {"action": "ticket.service", "user_id": "olga"}.items() <= next(
        record for record in records if record.get("action") == "ticket.service"
    ).items()


async def test_an_operator_without_certificate_or_token_of_their_own_is_refused(stack: RunningStack) -> None:
    good = token_file(stack, ["operator:revoke"])
    with pytest.raises(InvalidConfigurationError, match=r"not for this service.*spiffe://carrel\.internal/operator"):
        by_address(stack, good, identity="gateway")
    with pytest.raises(StartupError, match="needs --token-file"):
        by_address(stack, "")
    with pytest.raises(UnavailableError, match="CARREL_TLS__CERT"):
        await revoke_user(by_address(stack, good, identity=""), "alice", "")
    for permissions in ([], ["trace:read"], ["operator:read"]):
        with pytest.raises(PermissionDeniedError, match="operator:revoke"):
            await revoke_user(by_address(stack, token_file(stack, permissions)), "alice", "")
    with pytest.raises(TokenError, match="expired"):
        await revoke_user(by_address(stack, token_file(stack, ["operator:revoke"], lifetime_s=-60)), "alice", "")
    # Whoever has a ticket and the certificate of another service gets no further.
    ticket = stack.service_context("olga", ["operator:revoke"])
    request = execution_pb2.RevokeUserRequest(context=ticket, user_id="alice")
    for identity in ("gateway", "doctor", "client"):
        async with channel_to(stack, "execution", identity=identity) as channel:
            with pytest.raises(PermissionDeniedError, match=f"{identity} may not call"):
                await ExecutionServiceStub(channel).RevokeUser(request, timeout=5)


async def test_certificates_authority_and_keys_are_replaced_while_runs_flow(
    stack: RunningStack, eventually: Eventually
) -> None:
    ended, stop = 0, asyncio.Event()

    async def runs(user: str) -> None:
        nonlocal ended
        async with stack.client(user) as client:
            while not stop.is_set():
                run = await client.execute("go", pipeline=["slow"], params={"steps": 10})
                last = (await until_end(client, run.run_id))[-1]
                assert last.data["status"] == "SUCCEEDED", last.data
                ended += 1

    async def some_runs() -> None:
        before, began = ended, time.monotonic()
        await eventually(lambda: ended > before + 4 and time.monotonic() > began + 1.6, within=20)

    tls, keys = stack.state.certificates, KeyRotation(stack.state.keys)
    async with asyncio.TaskGroup() as tasks:
        for user in ("alice", "bob"):
            tasks.create_task(runs(user))
        await some_runs()
        for step in ("new_ca", "", "drop_old_ca"):
            day = dt.timedelta(days=1)
            list(make_certificates(tls, life=day, new_ca=step == "new_ca", drop_old_ca=step == "drop_old_ca"))
            await some_runs()
        for issuer in ("gateway", "execution"):
            keys.publish(issuer)
            await some_runs()
            keys.sign(issuer, known_after_s=1.0)
            await some_runs()
        removed, waiting = keys.retire()
        assert (removed, len(waiting)) == ([], 2)
        # As after a theft: whoever goes on has a ticket of the new key already, whatever was left of the former one.
        removed, waiting = keys.retire(longest_ticket_s=0, known_after_s=0)
        assert (len(removed), waiting) == (2, [])
        await some_runs()
        stop.set()
    log = stack.log()
    assert log.count("signing with another key") == 2
    assert log.count("TLS files were replaced") >= 5
    assert "revocations cannot be read" not in log


async def test_a_revoked_user_is_out_at_every_service_within_five_seconds(
    stack: RunningStack, eventually: Eventually
) -> None:
    user, other = new_id("user"), new_id("user")
    async with (
        stack.client(user) as client,
        channel_to(stack, "bridge") as bridge,
        channel_to(stack, "emitter") as emitter,
        channel_to(stack, "execution") as execution,
    ):
        run = await client.execute("go", pipeline=["slow"], params={"steps": 2000})
        session, others = stack.session_context(user), stack.session_context(other)
        log, states = BridgeServiceStub(bridge), ExecutionServiceStub(execution)
        reading = log.ReadEvents(bridge_pb2.ReadEventsRequest(context=session, follow=True))
        watching = states.WatchRun(execution_pb2.WatchRunRequest(context=session, run_id=run.run_id, events=True))
        bystander = log.ReadEvents(bridge_pb2.ReadEventsRequest(context=others, follow=True))
        tasks = [asyncio.create_task(_ended(call)) for call in (reading, watching, bystander)]
        command = await asyncio.to_thread(
            run_carrel, "revoke", user, "--state", str(stack.state.root), cwd=stack.folder
        )
        assert command.returncode == 0, command.stderr
        with Awake() as took:  # from when the command has said that it is done
            for task in tasks[:2]:
                assert type(await asyncio.wait_for(task, 15)) is TicketError
            notice = emitter_pb2.NotifyRequest(
                context=stack.run_context(user, thread=run.thread_id, run=run.run_id, request="q1"),
                idempotency_key="n1",
                event_type="agent_thinking",
                data_json=b'{"text":"hm"}',
            )
            notice.context.ticket = _old_run_ticket(stack, user, run.thread_id, run.run_id)

            async def refused() -> bool:
                try:
                    await EmitterServiceStub(emitter).Notify(notice, timeout=5)
                except CarrelError as error:
                    return type(error) is TicketError
                return False

            await eventually(refused)
        assert took.seconds < 5
        assert type(await _ended(log.ReadEvents(bridge_pb2.ReadEventsRequest(context=session)))) is TicketError
        assert not tasks[2].done()
        tasks[2].cancel()
        await asyncio.wait(tasks)

        # The last words of the run that was cancelled are in the log, for a login of afterwards.
        async def told() -> bool:
            request = bridge_pb2.ReadEventsRequest(context=stack.session_context(user), run_id=run.run_id)
            kinds: list[str] = []
            try:
                async for response in responses(log.ReadEvents(request, timeout=5)):
                    kinds += [entry.event_type for entry in response.entries.entries]
            except TicketError:  # of the same second still
                return False
            return kinds[-1] == "run_completed"

        await eventually(told, within=10)


def _old_run_ticket(stack: RunningStack, user: str, thread: str, run: str) -> str:
    from servicekit.identity import tickets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tickets, "_now", lambda: time.time() - 30)
        return str(stack.run_context(user, thread=thread, run=run, request="q1").ticket)
