"""A clock that was ahead and is set back: what was minted meanwhile is not valid yet, so nobody may go on using it."""

from __future__ import annotations

import time

import pytest

from carrel.errors import TicketError
from gateway.login import Login
from gateway.tickets import TicketDesk
from servicekit.identity import tickets
from servicekit.identity.keys import KeySet
from servicekit.identity.tickets import TicketVerifier
from services.execution.client_contexts import RunContexts
from services.execution.models import RunIdentity, UserKey
from tests.support.identity import identity, session_context

AHEAD_S = 600.0


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process's clock is ahead until the patch is undone."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + AHEAD_S)
    monkeypatch.setattr(tickets, "_now", lambda: now + AHEAD_S)
    return monkeypatch


def test_the_gateway_mints_its_own_and_users_tickets_anew(ahead: pytest.MonkeyPatch) -> None:
    desk = TicketDesk(identity().minter, 1200)
    login = Login("alice", time.time() + 3600)
    early = [desk.session(login), desk.own()]
    ahead.undo()
    verifier = identity().verifier()
    for context in early:
        with pytest.raises(TicketError, match="not valid yet"):
            verifier.verify(context)
    for context in (desk.session(login), desk.own()):
        verifier.verify(context)
    assert desk.session(login).ticket == desk.session(login).ticket


def test_execution_mints_a_run_s_ticket_anew(ahead: pytest.MonkeyPatch) -> None:
    run = RunIdentity(UserKey("alice"), "thread-1", "run-1", "req-1", created_at=int(time.time() * 1e6))
    context = RunContexts(identity().execution_minter).of(run, int((time.time() + 300) * 1e6))
    # The clock was taken when the class was made, as the default of an argument: the one that processes see.
    ahead.setattr(context, "_clock", lambda: time.time())
    early = context()
    ahead.undo()
    context._clock = time.time
    verifier = identity().verifier()
    with pytest.raises(TicketError, match="not valid yet"):
        verifier.verify(early)
    verifier.verify(context())
    assert context().ticket == context().ticket


def test_a_verifier_looks_at_its_keys_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeySet([identity().gateway_key])
    verifier = TicketVerifier(keys)
    context = session_context()
    verifier.verify(context)
    with monkeypatch.context() as ahead:
        ahead.setattr(tickets, "_now", lambda: time.time() + AHEAD_S / 2)
        verifier.verify(context)
    keys._keys.clear()
    keys.generation += 1
    with pytest.raises(TicketError, match="not in this service's key file"):
        verifier.verify(context)
