"""All rings together keep to a budget: beyond it a user's ring keeps its newest, and the rest is read from the log."""

from __future__ import annotations

from typing import Any

from gateway.hub import Hub
from gateway.login import Login
from gateway.ring import Place
from tests.unit.gateway.entries import entry


class Listener:
    login = Login("user", 4e9)

    def wake(self) -> None:
        pass

    def end(self, *_: Any, **__: Any) -> None:
        pass


def test_rings_keep_to_a_budget_together_and_give_it_back() -> None:
    hub = Hub(1000, 1 << 20, all_bytes=400_000)
    data = b'{"text":"%b"}' % (b"x" * 10_000)
    held = [hub.join(Login(f"user{n}", 4e9), Listener()) for n in range(10)]
    for n in range(10):
        feed = hub.feed(f"user{n}")
        assert feed is not None
        feed.begin(Place("e", 0))
        for offset in range(1, 21):
            feed.extend("e", [entry(offset, data=data)])
        assert feed.ring.top_offset == 20
        assert feed.ring.size == sum(len(frame.wire) for frame in feed.ring.after(feed.ring.base, 100, 1 << 30) or ())
    feeds = [feed for n in range(10) if (feed := hub.feed(f"user{n}")) is not None]
    assert hub.ring_bytes == sum(feed.ring.size for feed in feeds)
    assert hub.ring_bytes <= 400_000 + 10 * 64 * 1024
    assert max(feed.ring.size for feed in feeds[2:]) <= 200_000
    assert feeds[-1].ring.size <= 64 * 1024 + 10_500, "the newest are kept"
    feeds[0].reset(Place("f", 0))
    assert hub.ring_bytes == sum(feed.ring.size for feed in feeds)
    for taken in held:
        with taken:
            pass
    assert (hub.ring_bytes, len(hub)) == (0, 0)
