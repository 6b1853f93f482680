"""A signing key that is replaced while a minter uses it, who uses its tickets again, and what is not taken for one."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from carrel.errors import InvalidConfigurationError
from carrel.v1.context_pb2 import UserExecutionContext
from gateway.login import Login
from gateway.tickets import TicketDesk
from servicekit.identity.keys import KeySet, generate_key
from servicekit.identity.signing import FollowedKey
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.private_files import FollowedFiles
from services.execution.client_contexts import RunContexts
from services.execution.models import RunIdentity, UserKey


def test_what_is_minted_after_the_file_has_changed_is_signed_with_the_new_key(tmp_path: Path) -> None:
    now, path = 0.0, tmp_path / "gateway.jwk.json"
    old, new = generate_key("old", issuer="gateway"), generate_key("new", issuer="gateway")
    old.save(path)
    minter = TicketMinter(FollowedKey(path, "gateway", clock=lambda: now), "gateway")
    verifier = TicketVerifier(KeySet([old, new]))
    first = minter.mint_session("alice")
    new.save(path)
    assert minter.mint_session("alice").split(".")[0] == first.split(".")[0], "not looked at yet"
    now += 1
    second = minter.mint_session("alice")
    assert second.split(".")[0] != first.split(".")[0]
    for ticket in (first, second):
        verifier.verify(UserExecutionContext(user_id="alice", ticket=ticket))


def test_tickets_of_the_former_key_are_used_no_more_so_that_it_can_be_retired_at_once(tmp_path: Path) -> None:
    now, keys = 0.0, {}
    for issuer in ("gateway", "execution"):
        keys[issuer] = generate_key(f"old-{issuer}", issuer=issuer), generate_key(f"new-{issuer}", issuer=issuer)
        keys[issuer][0].save(tmp_path / issuer)
    gateway, execution = (
        TicketMinter(FollowedKey(tmp_path / issuer, issuer, clock=lambda: now), issuer) for issuer in keys
    )
    desk, login = TicketDesk(gateway, 1200), Login("alice", time.time() + 3600)
    contexts = RunContexts(execution)
    run = contexts.of(
        RunIdentity(UserKey("alice"), "thread-1", "run-1", "req-1", created_at=int(time.time() * 1e6)),
        int((time.time() + 300) * 1e6),
    )
    asks: list[Callable[[], UserExecutionContext]] = [
        lambda: desk.session(login),
        desk.own,
        run,
        contexts.asking_again,
    ]
    before = [ask().ticket for ask in asks]
    assert [ask().ticket for ask in asks] == before
    for issuer, (_, new) in keys.items():
        new.save(tmp_path / issuer)
    now += 1
    retired = TicketVerifier(KeySet([new for _, new in keys.values()]))
    after = [ask() for ask in asks]
    for context in after:
        retired.verify(context)
    assert [ask().ticket for ask in asks] == [context.ticket for context in after]


def test_a_file_that_is_no_key_of_ours_leaves_the_former_one_in_use(tmp_path: Path) -> None:
    now, path = 0.0, tmp_path / "gateway.jwk.json"
    generate_key("old", issuer="gateway").save(path)
    followed = FollowedKey(path, "gateway", clock=lambda: now)
    for wrong in ("{", "", None):
        now += 1
        if wrong is None:
            path.unlink()
        else:
            path.write_text(wrong)
        assert followed.current().kid == "old"
    generate_key("theirs", issuer="execution").save(path)
    now += 1
    assert followed.current().kid == "old"
    path.chmod(0o604)
    now += 1
    assert followed.current().kid == "old"
    generate_key("next", issuer="gateway").save(path)
    now += 1
    assert followed.current().kid == "next"


def test_another_services_key_is_refused_at_the_start(tmp_path: Path) -> None:
    generate_key("k", issuer="execution").save(tmp_path / "k.json")
    with pytest.raises(InvalidConfigurationError, match="belongs to execution, not to gateway"):
        FollowedKey(tmp_path / "k.json", "gateway")
    with pytest.raises(InvalidConfigurationError, match="cannot be read"):
        FollowedKey(tmp_path / "none.json", "gateway")


def test_files_that_belong_together_are_read_together_and_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    now, told = 0.0, list[str]()
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text("1")

    def read() -> tuple[int, int]:
        try:
            return int(first.read_text()), int(second.read_text())
        except (OSError, ValueError) as error:
            raise InvalidConfigurationError(type(error).__name__) from None

    files = FollowedFiles(first, second, read=read, refused=told.append, clock=lambda: now)
    second.write_text("22")
    assert not files.look(1), "not yet"
    now = 1
    assert files.look(1)
    assert files.value == (1, 22)
    assert not files.look(0), "nothing has changed"
    first.write_text("half")
    assert not files.look(0)
    assert not files.look(0)
    first.unlink()
    assert not files.look(0)
    assert (files.value, told) == ((1, 22), ["ValueError", "FileNotFoundError"])
    first.write_text("333")
    assert files.look(0)
    assert files.value == (333, 22)
    first.write_text("half")
    assert not files.look(0)
    assert told == ["ValueError", "FileNotFoundError", "ValueError"]
