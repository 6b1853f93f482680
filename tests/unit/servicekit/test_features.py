"""Feature switches: defaults, setting, file, shares of users, changes while it runs, and what is wrong."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import pytest

from carrel import __version__
from carrel.cli.config import show_config
from carrel.errors import InvalidConfigurationError, StartupError
from carrel.pseudonyms import hash_user
from servicekit.features import (
    COMPRESSED_BATCHES,
    PERMESSAGE_DEFLATE,
    PLACE_BY_LOAD,
    SWITCHES,
    Features,
    Switch,
    open_features,
)
from servicekit.features_file import parse_rules
from servicekit.settings import SharedSettings, load_settings
from tests.conftest import Eventually


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "features.json"


def _write(file: Path, **rules: Any) -> None:
    file.write_text(json.dumps({name.replace("__", "."): rule for name, rule in rules.items()}), encoding="utf-8")


def test_without_a_word_the_defaults_hold_and_nothing_is_loaded() -> None:
    features = Features()
    assert all(features.on(switch) is switch.default for switch in SWITCHES.values())
    code = (
        "import sys, servicekit.features as f; f.Features().on(f.PLACE_BY_LOAD); sys.exit('openfeature' in sys.modules)"
    )
    assert run_process([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_the_file_goes_before_the_setting_and_the_setting_before_the_default(file: Path) -> None:
    _write(file, gateway__permessage_deflate=True)
    features = Features(file, {"gateway.permessage_deflate": False, "execution.place_by_load": False})
    assert features.on(PERMESSAGE_DEFLATE)
    assert not features.on(PLACE_BY_LOAD)
    assert features.on(COMPRESSED_BATCHES)


def test_a_share_of_users_is_always_the_same_one_and_grows(file: Path) -> None:
    users = [f"user{number}" for number in range(300)]
    chosen: dict[int, set[str]] = {}
    for percent in (0, 10, 40, 100):
        _write(file, gateway__compressed_batches={"percent": percent})
        features = Features(file)
        chosen[percent] = {user for user in users if features.on(COMPRESSED_BATCHES, user)}
        assert chosen[percent] == {user for user in users if Features(file).on(COMPRESSED_BATCHES, user)}
        assert abs(len(chosen[percent]) / len(users) - percent / 100) < 0.09
    assert chosen[0] < chosen[10] < chosen[40] < chosen[100]
    _write(file, gateway__compressed_batches={"percent": 50})
    assert not Features(file).on(COMPRESSED_BATCHES), "who is nobody belongs to no share"


def test_users_are_named_by_their_pseudonym(file: Path) -> None:
    _write(file, gateway__compressed_batches={"users": [hash_user("alice")]})
    features = Features(file)
    assert features.on(COMPRESSED_BATCHES, "alice")
    assert not features.on(COMPRESSED_BATCHES, "bob")


async def test_a_change_is_felt_at_the_next_call_and_a_wrong_one_is_logged_and_left(
    file: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _write(file)
    features = Features(file)
    following = asyncio.create_task(features.follow())
    try:
        file.write_text('{"execution.place_by_lode": false}', encoding="utf-8")
        await eventually(lambda: "did you mean execution.place_by_load" in _logged(caplog), within=15)
        assert features.on(PLACE_BY_LOAD)
        # As a secret or config map is exchanged in Kubernetes: another file under the same name.
        other = file.with_name("next.json")
        _write(other, execution__place_by_load=False)
        other.replace(file)
        await eventually(lambda: not features.on(PLACE_BY_LOAD), within=15)
        await eventually(lambda: "a feature switch was turned" in _logged(caplog), within=15)
        file.unlink()
        await eventually(lambda: "can't be read" in _logged(caplog), within=15)
        assert not features.on(PLACE_BY_LOAD), "what was is kept while the file is away"
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


def _logged(caplog: pytest.LogCaptureFixture) -> str:
    return str([(record.getMessage(), vars(record).get("fields")) for record in caplog.records])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"gateway.permessage_deflat": true}', "did you mean gateway.permessage_deflate"),
        ('{"zzz": true}', "there are gateway.compressed_batches"),
        ('{"execution.place_by_load": "yes"}', "write true, false"),
        ('{"execution.place_by_load": {"percent": 5}}', "on or off for all"),
        ('{"gateway.compressed_batches": {"percent": 101}}', "from 0 to 100"),
        ('{"gateway.compressed_batches": {"percent": true}}', "from 0 to 100"),
        ('{"gateway.compressed_batches": {"users": ["alice"]}}', "pseudonyms"),
        ('{"gateway.compressed_batches": {"share": 5}}', "write true, false"),
        ("[]", "holds no object"),
        ("{", "is not JSON"),
        ("{" + " " * 300_000 + "}", "too large"),
    ],
)
def test_what_is_wrong_ends_the_start_with_what_to_write(file: Path, content: str, told: str) -> None:
    file.write_text(content, encoding="utf-8")
    with pytest.raises(StartupError, match=told):
        open_features(file, {})


def test_a_file_that_is_not_there_and_a_setting_that_is_no_switch_end_the_start(file: Path) -> None:
    with pytest.raises(StartupError, match="can't be read"):
        open_features(file, {})
    with pytest.raises(StartupError, match="CARREL_FEATURES are wrong"):
        open_features(None, {"nothing": True})
    with pytest.raises(InvalidConfigurationError):
        parse_rules({"nothing": True}, "x")


def test_settings_have_them_by_name(file: Path) -> None:
    environment = {"CARREL_FEATURES": '{"execution.place_by_load": false}', "CARREL_FEATURES_FILE": str(file)}
    settings = load_settings(SharedSettings, "bridge", environment)
    assert (settings.features, settings.features_file) == ({"execution.place_by_load": False}, file)


def test_the_command_lists_them(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(file, gateway__compressed_batches={"percent": 12.5})
    environment = {"CARREL_FEATURES": '{"execution.place_by_load": false}', "CARREL_FEATURES_FILE": str(file)}
    assert show_config("features", tmp_path, as_json=True, environ=environment) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == set(SWITCHES)
    assert (rows["gateway.compressed_batches"]["value"], rows["gateway.compressed_batches"]["source"]) == (
        "on for 12.5 %",
        f"file {file}",
    )
    assert (rows["execution.place_by_load"]["value"], rows["execution.place_by_load"]["source"]) == (
        "off",
        "environment",
    )
    assert rows["gateway.permessage_deflate"]["source"] == "default"
    assert show_config("features", tmp_path, as_json=True, environ={"CARREL_FEATURES": '{"x": true}'}) == 1


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=lambda switch: switch.name)
def test_no_switch_outlives_its_time_and_each_is_documented(switch: Switch) -> None:
    assert _number(__version__) < _number(switch.removal), "take the switch away, and the way that lost"
    page = (Path(__file__).resolve().parents[3] / "docs" / "upgrades.md").read_text(encoding="utf-8")
    for text in (f"`{switch.name}`", switch.about, switch.off, switch.since, switch.removal):
        assert text in page
