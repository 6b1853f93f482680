"""Keys as the kubelet mounts them: symbolic links into a folder that is exchanged as a whole, readable by a group."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.errors import InvalidConfigurationError
from servicekit.identity.keys import KeySet, SigningKey, generate_key, load_signing_key, write_jwks


def mount(folder: Path, files: dict[str, bytes], mode: int, generation: int) -> None:
    """What the kubelet's atomic writer does: a new folder, a link to it that is renamed over the former one."""
    data = folder / f"..2026_01_0{generation}"
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name).write_bytes(content)
        (data / name).chmod(mode)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(data.name)
    (folder / "..data_tmp").replace(folder / "..data")


def jwks(tmp_path: Path, key: SigningKey) -> bytes:
    write_jwks(tmp_path / "public", [key])
    return (tmp_path / "public").read_bytes()


def private(tmp_path: Path, key: SigningKey) -> bytes:
    key.save(tmp_path / "private")
    return (tmp_path / "private").read_bytes()


def test_key_that_a_group_may_read_is_taken_through_the_link(tmp_path: Path) -> None:
    key = generate_key("one", issuer="gateway")
    mount(tmp_path / "keys", {"gateway.jwk.json": private(tmp_path, key)}, 0o440, 1)
    assert load_signing_key(tmp_path / "keys/gateway.jwk.json").kid == "one"


def test_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    mount(tmp_path / "keys", {"gateway.jwk.json": private(tmp_path, generate_key())}, 0o444, 1)
    with pytest.raises(InvalidConfigurationError, match="every user of this machine"):
        load_signing_key(tmp_path / "keys/gateway.jwk.json")


def test_public_keys_follow_the_exchange_of_the_folder(tmp_path: Path) -> None:
    old, new = generate_key("old"), generate_key("new")
    mount(tmp_path / "keys", {"tickets.jwks.json": jwks(tmp_path, old)}, 0o440, 1)
    keys = KeySet.from_jwks_file(tmp_path / "keys/tickets.jwks.json")
    assert keys.kids() == ("old",)
    mount(tmp_path / "keys", {"tickets.jwks.json": jwks(tmp_path, new)}, 0o440, 2)
    assert keys.refresh(0)
    assert keys.kids() == ("new",)
