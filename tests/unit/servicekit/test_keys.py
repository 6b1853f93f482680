"""Key files: what is written can be read, what is unsafe or malformed is refused, changes are followed."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import InvalidConfigurationError
from servicekit.identity.keys import KeySet, generate_key, load_signing_key, write_jwks, write_private
from servicekit.identity.principals import Scope
from servicekit.private_files import read_small


def test_signing_key_survives_its_file_with_mode_0600(tmp_path: Path) -> None:
    key = generate_key("execution-1", issuer="execution", scopes={Scope.RUN})
    path = tmp_path / "execution.jwk.json"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = load_signing_key(path)
    assert (again.kid, again.issuer, again.scopes) == ("execution-1", "execution", frozenset({Scope.RUN}))
    assert again.key.private_bytes_raw() == key.key.private_bytes_raw()
    assert [entry.name for entry in tmp_path.iterdir()] == ["execution.jwk.json"]


def test_signing_keys_repr_shows_no_secret() -> None:
    assert "Ed25519PrivateKey" not in repr(generate_key("k"))


def test_signing_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    generate_key().save(path)
    path.chmod(0o644)
    with pytest.raises(InvalidConfigurationError) as caught:
        load_signing_key(path)
    assert caught.value.advice == f"chmod 600 {path}"
    # As a secret is mounted for a pod's group.
    path.chmod(0o440)
    load_signing_key(path)


def test_missing_key_file_says_which_and_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigurationError, match="No such file") as caught:
        load_signing_key(tmp_path / "none.json")
    assert "carrel up" in caught.value.advice


@pytest.mark.parametrize(
    "change",
    [
        {"d": None},
        {"d": "!!"},
        {"d": "AAAA"},
        {"x": "AAAA"},
        {"kty": "RSA"},
        {"crv": "X25519"},
        {"kid": ""},
        {"carrel_scopes": ["everything"]},
        {"d": "A" * 43},
    ],
)
def test_file_that_is_no_private_key_is_refused_without_being_quoted(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "key.json"
    generate_key("k").save(path)
    secret = json.loads(path.read_bytes())["d"]
    write_private(path, json.dumps(json.loads(path.read_bytes()) | change).encode())
    with pytest.raises(InvalidConfigurationError) as caught:
        load_signing_key(path)
    assert secret not in str(caught.value)


NO_KEY_SETS = [
    *("", "{", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "RSA"}]}', '{"keys": 5}', '{"keys": ["k"]}'),
    *('{"keys": {"k": 1}}', "[" * 200_000, "\0" * 100),
]


@pytest.mark.parametrize("text", NO_KEY_SETS)
def test_file_that_is_no_key_set_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(InvalidConfigurationError, match=r"jwks\.json is not"):
        KeySet.from_jwks_file(path)


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    write_jwks(path, [generate_key("k"), generate_key("k")])
    with pytest.raises(InvalidConfigurationError, match="same kid"):
        KeySet.from_jwks_file(path)


def test_keys_of_other_kinds_beside_ours_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [{"kty": "RSA", "kid": "r"}, generate_key("ours").public.to_jwk()]}))
    assert KeySet.from_jwks_file(path).kids() == ("ours",)


def test_key_set_holds_no_private_part(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    write_jwks(path, [generate_key("k")])
    assert all("d" not in jwk for jwk in json.loads(path.read_bytes())["keys"])


def test_new_key_in_the_file_is_found_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    first, second = generate_key("first"), generate_key("second")
    write_jwks(path, [first])
    keys = KeySet.from_jwks_file(path)
    write_jwks(path, [first, second])
    keys._last_check -= 2
    assert keys.get("second") is not None
    assert keys.generation == 2


def test_unknown_keys_cause_at_most_one_look_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jwks.json"
    write_jwks(path, [generate_key("first")])
    keys = KeySet.from_jwks_file(path)
    looks: list[Path] = []

    def look(file: Path) -> tuple[int, int, int]:
        looks.append(file)
        return 0, 0, 0

    monkeypatch.setattr("servicekit.identity.keys.stamp_of", look)
    for _ in range(100):
        keys.get("nobody")
    assert looks == []
    keys._last_check -= 2
    for _ in range(100):
        keys.get("nobody")
    # One look to see that it changed, one as it is read.
    assert len(looks) == 2


def test_removed_key_is_gone_after_a_refresh(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    first, second = generate_key("first"), generate_key("second")
    write_jwks(path, [first, second])
    keys = KeySet.from_jwks_file(path)
    write_jwks(path, [second])
    assert keys.refresh(0)
    assert keys.get("first") is None
    assert not keys.refresh(0)


def test_file_that_breaks_while_it_is_used_keeps_the_keys_of_before(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    write_jwks(path, [generate_key("first")])
    keys = KeySet.from_jwks_file(path)
    path.write_text("{")
    assert not keys.refresh(0)
    assert keys.get("first") is not None
    assert "not JSON" in keys.last_error
    path.unlink()
    assert not keys.refresh(0)
    assert len(keys) == 1


@pytest.mark.parametrize("text", NO_KEY_SETS)
def test_whatever_is_written_over_a_file_in_use_keeps_the_keys_of_before(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    write_jwks(path, [generate_key("first")])
    keys = KeySet.from_jwks_file(path)
    path.write_text(text)
    assert not keys.refresh(0)
    assert keys.get("first") is not None


def test_what_is_no_small_file_is_neither_waited_for_nor_read(tmp_path: Path) -> None:
    pipe, folder, large = tmp_path / "pipe", tmp_path / "folder", tmp_path / "large"
    os.mkfifo(pipe)
    folder.mkdir()
    with large.open("wb") as file:
        file.truncate(64 << 30)  # a hole: nothing of it is on the disk
    for path, says in ((pipe, "no file"), (folder, "directory"), (large, "too large"), (Path("/dev/zero"), "no file")):
        with pytest.raises(OSError, match=f"(?i){says}"):
            read_small(path)
        with pytest.raises(InvalidConfigurationError, match=f"(?i){says}"):
            KeySet.from_jwks_file(path)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    write_private(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
