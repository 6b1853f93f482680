"""What a service that is told of revocations refuses, and what it forgets when it is told of too many."""

import time

from servicekit.identity.principals import OPERATOR_READ, RunPrincipal, ServicePrincipal, SessionPrincipal
from servicekit.identity.revoked import RevokedTickets


def _session(user: str, issued_at: float, login: str = "") -> SessionPrincipal:
    return SessionPrincipal(user, frozenset(), {}, issued_at + 600, issued_at, login)


def _run(user: str, issued_at: float, issuer: str) -> RunPrincipal:
    return RunPrincipal(user, "t", "r", "q", frozenset(), {}, issued_at + 600, issuer, issued_at)


def test_tickets_of_before_are_refused_and_those_of_after_are_good() -> None:
    revoked = RevokedTickets()
    revoked.learn([("alice", 100.5)], [])
    assert revoked.refuses(_session("alice", 100.0)), "of the same second, too"
    assert not revoked.refuses(_session("alice", 101.0))
    assert not revoked.refuses(_session("bob", 1.0))
    assert not revoked.refuses(ServicePrincipal("gateway", frozenset({OPERATOR_READ}), 1e12))
    # What was told later is never undone by what was told before.
    revoked.learn([("alice", 50.0)], [])
    assert revoked.refuses(_session("alice", 99.0))


def test_a_signed_out_login_is_refused_whoever_comes_with_it() -> None:
    revoked = RevokedTickets()
    revoked.learn([], [("login-1", 1e12)])
    assert revoked.refuses(_session("alice", 100.0, "login-1"))
    assert not revoked.refuses(_session("alice", 100.0, "login-2"))
    assert not revoked.refuses(_session("alice", 100.0))


def test_events_of_runs_pass_under_executions_tickets_only() -> None:
    revoked = RevokedTickets()
    revoked.learn([("alice", 200.0)], [])
    assert revoked.refuses(_run("alice", 100.0, "execution"))
    assert not revoked.refuses_event(_run("alice", 100.0, "execution"))
    assert revoked.refuses_event(_run("alice", 100.0, "gateway"))
    assert revoked.refuses_event(_session("alice", 100.0))


def test_at_the_bound_those_are_forgotten_that_matter_least() -> None:
    revoked = RevokedTickets(most=10, clock=lambda: 1000.0)
    revoked.learn([(f"u{n}", float(n)) for n in range(11)], [(f"l{n}", 990.0 + 2 * n) for n in range(11)])
    assert len(revoked) <= 18
    assert revoked.refuses(_session("u10", 5.0))
    assert not revoked.refuses(_session("u0", -1.0))
    assert revoked.refuses(_session("x", 5.0, "l10"))
    assert not revoked.refuses(_session("x", 5.0, "l0")), "ended by itself"


def test_whoever_listens_is_told_after_it_is_in_effect() -> None:
    revoked = RevokedTickets()
    seen: list[bool] = []
    revoked.on_change(lambda: seen.append(revoked.refuses(_session("alice", time.time() - 5))))
    revoked.learn([("alice", time.time())], [])
    assert seen == [True]
