"""A subscription ends with the ticket that it is under, unless a fresh one is shown in time."""

from __future__ import annotations

from typing import Any

import pytest

from carrel.errors import CarrelError, TicketError, TicketExpiredError
from servicekit.identity.principals import SessionPrincipal, UserPrincipal
from services.bridge.service_subscribers import Subscribers


class _Hub:
    """Remembers what was ended, and what each gateway was told."""

    def __init__(self) -> None:
        self.ended: list[tuple[Any, str, int]] = []
        self.told: list[type[CarrelError]] = []

    def unsubscribe(self, link: Any, user: str, generation: int) -> None:
        self.ended.append((link, user, generation))

    def refuse(self, link: Any, user: str, generation: int, error: CarrelError) -> None:
        self.told.append(type(error))


class _World:
    def __init__(self) -> None:
        self.hub, self.now = _Hub(), 0.0
        self.revoked: set[str] = set()
        hub: Any = self.hub
        self.subscribers = Subscribers(hub, self.is_revoked, lambda: self.now)

    def is_revoked(self, principal: UserPrincipal) -> bool:
        return principal.user_id in self.revoked


def _ticket(user: str, ends: float) -> SessionPrincipal:
    return SessionPrincipal(user, frozenset(), {}, ends)


@pytest.fixture
def world() -> _World:
    return _World()


def test_it_ends_some_time_after_its_ticket_and_its_gateway_is_told(world: _World) -> None:
    link: Any = "g1"
    world.subscribers.add(link, 7, _ticket("alice", 100.0))
    world.now = 109.0
    world.subscribers.look()
    assert world.hub.ended == [], "a renewal may be on its way"
    world.now = 111.0
    world.subscribers.look()
    assert world.hub.ended == [("g1", "alice", 7)]
    assert world.hub.told == [TicketExpiredError]
    world.subscribers.look()
    assert len(world.hub.ended) == 1


def test_a_fresh_ticket_keeps_it_and_one_for_an_earlier_generation_does_not(world: _World) -> None:
    link: Any = "g1"
    world.subscribers.add(link, 7, _ticket("alice", 100.0))
    world.subscribers.add(link, 8, _ticket("bob", 100.0))
    world.subscribers.renew(link, 7, _ticket("alice", 500.0))
    world.subscribers.renew(link, 7, _ticket("bob", 500.0))
    world.now = 200.0
    world.subscribers.look()
    assert world.hub.ended == [("g1", "bob", 8)]


def test_a_revoked_users_end_at_every_gateway_and_nobody_elses(world: _World) -> None:
    one, two = "g1", "g2"
    for link in (one, two):
        for user in ("alice", "bob"):
            world.subscribers.add(link, 1, _ticket(user, 100.0))  # type: ignore[arg-type]
    world.revoked.add("alice")
    world.subscribers.look()
    assert world.hub.ended == [("g1", "alice", 1), ("g2", "alice", 1)]
    assert world.hub.told == [TicketError, TicketError]


def test_what_has_ended_by_itself_is_forgotten(world: _World) -> None:
    link: Any = "g1"
    world.subscribers.add(link, 1, _ticket("alice", 100.0))
    world.subscribers.remove(link, 1, "alice")
    world.subscribers.add(link, 2, _ticket("bob", 100.0))
    world.subscribers.remove(link, 1, "bob")
    other: Any = "g2"
    world.subscribers.add(other, 1, _ticket("carol", 100.0))
    world.subscribers.detach(other)
    world.now = 1000.0
    world.subscribers.look()
    assert world.hub.ended == [("g1", "bob", 2)]
