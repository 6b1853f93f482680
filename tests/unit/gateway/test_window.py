"""The send window: cumulative, bounded in events and bytes, and what is said about acknowledgements that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrel.errors import FrameError
from carrel.pseudonyms import hash_user
from gateway.frames import Connect, connect_options, parse_frame
from gateway.outflow import Flow
from gateway.terms import Terms
from gateway.window import Window
from servicekit.features import Features


def filled(*offsets: int, size: int = 10, most: int = 5) -> Window:
    window = Window(most, 1000)
    for offset in offsets:
        window.sent(offset, size)
    return window


def test_an_acknowledgement_covers_everything_before_it() -> None:
    window = filled(1, 2, 5, 6, 9)
    assert window.full
    assert window.acknowledge(5, 9)
    assert (window.events, window.bytes, window.full) == (2, 20, False)
    assert window.acknowledge(8, 9), "an offset between two, as a filter leaves them"
    assert (window.events, window.bytes) == (1, 10)


def test_late_and_repeated_ones_change_nothing() -> None:
    window = filled(1, 2, 3)
    assert window.acknowledge(3, 3)
    for offset in (3, 2, 0):
        assert not window.acknowledge(offset, 3)
    assert (window.events, window.bytes) == (0, 0)


def test_what_was_not_sent_cannot_be_acknowledged() -> None:
    window = filled(1, 2)
    with pytest.raises(FrameError, match="not sent yet"):
        window.acknowledge(3, 2)
    assert window.events == 2
    assert not filled().acknowledge(7, 7), "passed over by a filter: sent, in a way"


def test_after_a_reset_acknowledgements_that_crossed_it_are_ignored() -> None:
    window = filled(90, 91)
    window.restart()
    assert not window.acknowledge(91, 0)
    window.sent(1, 10)
    assert window.acknowledge(1, 1)
    with pytest.raises(FrameError):
        window.acknowledge(91, 1)


def test_bytes_fill_it_too_and_one_event_of_any_size_is_let_through() -> None:
    states = list[bool]()
    window = Window(5, 1000)
    states.append(window.full)
    window.sent(1, 5000)
    states.append(window.full)
    assert window.acknowledge(1, 1)
    states.append(window.full)
    assert states == [False, True, False]


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("true", 1000),
        ("{}", 1000),
        ('{"window": 7}', 7),
        ('{"window": 5000}', 1000),
        ("false", None),
        ("null", None),
    ],
)
def test_a_client_gets_the_window_that_it_asks_for_up_to_the_bound(asked: str, granted: int | None) -> None:
    options = connect_options(parse_frame(f'{{"type": "connect", "ack": {asked}}}'))
    window = Terms().window_for(options)
    assert (window.most_events if window else None) == granted
    assert Terms.granted(Flow(), window)["ack_window"] == granted


@pytest.mark.parametrize("asked", ['"yes"', "1", "[]", '{"window": 0}', '{"window": true}', '{"size": 3}'])
def test_a_wrong_ack_option_is_named(asked: str) -> None:
    with pytest.raises(FrameError) as wrong:
        connect_options(parse_frame(f'{{"type": "connect", "ack": {asked}}}'))
    assert "ack" in wrong.value.message


def test_the_deployment_says_what_may_be_asked_for() -> None:
    everything = Connect(batch=True, compress=True)
    free, strict = Terms(), Terms(batches=False, compression=False)
    assert free.granted(free.flow_for(everything, 0), None)["compression"] == "gzip-hex"
    assert free.flow_for(everything, 0) is free.flow_for(everything, 0), "shared by all that are alike"
    flow = strict.flow_for(everything, 0)
    assert (flow.batch, flow.compress, strict.granted(flow, None)["compression"]) == (False, False, None)


def test_a_switch_takes_compressed_batches_from_a_share_of_users_and_gives_them_back(tmp_path: Path) -> None:
    file, asked = tmp_path / "features.json", Connect(batch=True, compress=True)
    file.write_text(json.dumps({"gateway.compressed_batches": {"users": [hash_user("alice")]}}), encoding="utf-8")
    terms = Terms(features=Features(file))
    assert terms.flow_for(asked, 0, "alice").compress
    assert not terms.flow_for(asked, 0, "bob").compress
    assert Terms().flow_for(asked, 0, "bob").compress
    assert not Terms(compression=False, features=Features(file)).flow_for(asked, 0, "alice").compress


def test_a_switch_declines_permessage_deflate() -> None:
    assert Terms().deflates
    assert not Terms(features=Features(None, {"gateway.permessage_deflate": False})).deflates
    assert not Terms(compression=False).deflates
