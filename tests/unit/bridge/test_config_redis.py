"""The URL of the log's Redis: its forms, what is wrong with others, and that the password stays where it is."""

from __future__ import annotations

import pytest

from carrel.errors import StartupError
from servicekit.settings import load_settings
from servicekit.settings_env import describe
from services.bridge.config import BridgeSettings
from services.bridge.config_redis import RedisUrl

URL = "CARREL_BRIDGE_LOG__URL"


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("redis://h", RedisUrl("single", (("h", 6379),)), "redis://h:6379"),
        ("redis://127.0.0.1:7000/3", RedisUrl("single", (("127.0.0.1", 7000),), db=3), "redis://127.0.0.1:7000/3"),
        ("redis://[::1]:7000", RedisUrl("single", (("::1", 7000),)), "redis://[::1]:7000"),
        ("redis://[::1]", RedisUrl("single", (("::1", 6379),)), "redis://[::1]:6379"),
        (
            "rediss://me:p%40%2Fss@h:1",
            RedisUrl("single", (("h", 1),), tls=True, username="me", password="p@/ss"),
            "rediss://h:1",
        ),
        (
            "redis+sentinel://:pw@a,b:2/main/1",
            RedisUrl("sentinel", (("a", 26379), ("b", 2)), password="pw", db=1, service="main"),
            "redis+sentinel://a:26379,b:2/main/1",
        ),
        (
            "rediss+cluster://a:1,b",
            RedisUrl("cluster", (("a", 1), ("b", 6379)), tls=True),
            "rediss+cluster://a:1,b:6379",
        ),
    ],
)
def test_url_is_read_and_shown_without_its_password(text: str, expected: RedisUrl, shown: str) -> None:
    url = RedisUrl.parse(text)
    assert url == expected
    assert url.password == expected.password
    assert str(url) == shown
    assert RedisUrl.parse(shown).addresses == url.addresses
    assert not url.password or url.password not in repr(url)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://h:1", "write redis://"),
        ("redis:h", "write redis://"),
        ("redis://", "write redis://"),
        ("redis://h:1?x=y", "write redis://"),
        ("redis+unix://h", "write redis://"),
        ("redis://h_%:1", "a host in it is none"),
        ("redis://a:1,b:2", "one server has one address"),
        ("redis://h:0", "not a number from 1 to 65535"),
        ("redis://h:99999", "not a number from 1 to 65535"),
        ("redis://h:\u0661", "not a number from 1 to 65535"),
        ("redis://h:1/x", "the database is a number"),
        ("redis://h:1/1/2", "too many parts"),
        ("redis+sentinel://h:1", "the name of the master is missing"),
        ("redis+sentinel://h:1/a b", "the name of the master is missing"),
        ("redis+cluster://h:1/1", "one database only"),
    ],
)
def test_wrong_url_is_told_with_what_to_write_and_without_its_password(text: str, says: str) -> None:
    secret = text.replace("://", "://:s3cret@")
    with pytest.raises(StartupError, match=f"{URL}=[*]+ is wrong") as caught:
        load_settings(BridgeSettings, "bridge", {URL: secret})
    assert says in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"PASSWORD_FILE": "/x"}, "set CARREL_BRIDGE_LOG__URL too"),
        ({"CA_FILE": "/x"}, "set CARREL_BRIDGE_LOG__URL too"),
        ({"MIN_REPLICAS": "1"}, "set CARREL_BRIDGE_LOG__URL too"),
        ({"URL": "redis://h", "PATH": "/x"}, "name two logs"),
        ({"URL": "redis://:s3cret@h", "PASSWORD_FILE": "/x"}, "both hold a password"),
        ({"URL": "redis://h", "CA_FILE": "/x"}, "write rediss"),
        ({"URL": "redis://h", "PREFIX": "a{b"}, "CARREL_BRIDGE_LOG__PREFIX"),
        ({"URL": "redis://h", "TIMEOUT_S": "0"}, "CARREL_BRIDGE_LOG__TIMEOUT_S"),
        ({"URL": "redis://h", "MIN_REPLICAS": "-1"}, "CARREL_BRIDGE_LOG__MIN_REPLICAS"),
    ],
)
def test_settings_that_do_not_go_together_are_told(settings: dict[str, str], says: str) -> None:
    environ = {f"CARREL_BRIDGE_LOG__{name}": value for name, value in settings.items()}
    with pytest.raises(StartupError) as caught:
        load_settings(BridgeSettings, "bridge", environ)
    assert says in caught.value.message
    assert "s3cret" not in caught.value.message


def test_the_password_is_nowhere_to_be_read_in_the_settings() -> None:
    settings = load_settings(BridgeSettings, "bridge", {URL: "redis://:s3cret@h:1/2"})
    assert settings.log.url is not None
    assert settings.log.url.password == "s3cret"
    shown = [row.value for row in describe(settings)]
    for text in (repr(settings), str(settings.log.url), settings.model_dump_json(), *shown):
        assert "s3cret" not in text
