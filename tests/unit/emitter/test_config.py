"""The emitter's settings under the project's names and the documents'."""

from __future__ import annotations

import pytest

from carrel.errors import StartupError
from servicekit.settings import load_settings
from services.emitter.config import EmitterSettings


def test_the_documents_names_and_ours_are_the_same_settings() -> None:
    documents = {
        "WEBSOCKET_MAX_EVENTS_PER_USER": "500",
        "WEBSOCKET_EVENT_TIMEOUT": "20",
        "WEBSOCKET_DELIVERY_RETRIES": "5",
        "WEBSOCKET_DELIVERY_TIMEOUT": "2.5",
        "WEBSOCKET_ENABLE_BATCHING": "false",
    }
    ours = {name.replace("WEBSOCKET_", "CARREL_EMITTER_"): value for name, value in documents.items()}
    settings = load_settings(EmitterSettings, "emitter", documents)
    assert settings == load_settings(EmitterSettings, "emitter", ours)
    assert settings.limits().user_events == 500
    assert (settings.event_timeout, settings.delivery_retries, settings.delivery_timeout) == (20.0, 5, 2.5)
    assert not settings.enable_batching


def test_the_defaults_are_the_documents() -> None:
    settings = load_settings(EmitterSettings, "emitter", {})
    assert settings.listen == "127.0.0.1:50053"
    assert settings.limits().user_events == 1000
    assert settings.limits().user_bytes == 4 << 20
    assert (settings.event_timeout, settings.delivery_retries, settings.delivery_timeout) == (30.0, 3, 5.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WEBSOCKET_MAX_EVENTS_PER_USER", "5"), ("CARREL_EMITTER_QUEUE__TURN_EVENTS", "0"), ("CARREL_EMITTER_X", "1")],
)
def test_a_wrong_or_unknown_setting_stops_the_start(name: str, value: str) -> None:
    with pytest.raises(StartupError) as raised:
        load_settings(EmitterSettings, "emitter", {name: value})
    assert name in str(raised.value)
