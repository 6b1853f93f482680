"""The state folder: private, made once, held by one stack at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carrel.cli.state import StateFolder
from carrel.errors import StartupError
from servicekit.identity.keys import KeySet, load_signing_key


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "deep" / "state")
    folder.prepare()
    return folder


def test_keys_are_made_once_and_private(state: StateFolder) -> None:
    first = {path.name: path.read_bytes() for path in state.keys.iterdir()}
    state.prepare()
    assert {path.name: path.read_bytes() for path in state.keys.iterdir()} == first
    assert state.root.stat().st_mode & 0o777 == 0o700
    for path in (state.gateway_key, state.execution_key, state.login_secret):
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(state.login_secret.read_bytes()) >= 32
    kids = KeySet.from_jwks_file(state.jwks).kids()
    assert {load_signing_key(state.gateway_key).kid, load_signing_key(state.execution_key).kid} == set(kids)


def test_missing_key_is_made_anew_with_a_jwks_that_fits(state: StateFolder) -> None:
    state.gateway_key.unlink()
    state.prepare()
    kids = KeySet.from_jwks_file(state.jwks).kids()
    assert {load_signing_key(state.gateway_key).kid, load_signing_key(state.execution_key).kid} == set(kids)


def test_second_stack_is_refused_and_told_where_the_first_is(state: StateFolder) -> None:
    with state.locked():
        state.write_stack({"url": "http://127.0.0.1:1", "supervisor": os.getpid()})
        with pytest.raises(StartupError, match=r"at http://127\.0\.0\.1:1"), state.locked():
            pass
        assert state.read_stack() is not None
    assert state.read_stack() is None
    with state.locked():
        pass


def test_what_to_do_about_a_stack_that_runs_is_the_callers_to_say(state: StateFolder) -> None:
    with state.locked(), pytest.raises(StartupError) as caught, state.locked(advice="wait for it"):
        pass
    assert caught.value.advice == "wait for it"


def test_stack_of_a_dead_supervisor_does_not_count_as_running(state: StateFolder) -> None:
    assert state.running() is None
    state.write_stack({"url": "http://127.0.0.1:1", "supervisor": os.getpid()})
    assert state.running() == state.read_stack()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    state.write_stack({"url": "http://127.0.0.1:1", "supervisor": ended.pid})
    assert state.running() is None


def test_folder_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="can't be written"), StateFolder(tmp_path / "none").locked():
        pass
    assert not (tmp_path / "none").exists()


def test_folder_stays_taken_while_a_process_of_a_killed_stack_lives(state: StateFolder) -> None:
    with state.locked() as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        facts = {"url": "http://127.0.0.1:1", "supervisor": ended.pid}
    # As after `kill -9` of the supervisor: nobody has taken its file away.
    state.write_stack(facts)
    with pytest.raises(StartupError, match="still ending"), state.locked():
        pass
    child.communicate(b"\n")
    with state.locked():
        pass


def test_folder_that_cannot_be_made_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="can't be written") as caught:
        StateFolder(tmp_path / "file" / "state").prepare()
    assert "--state" in caught.value.advice


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_half_written_stack_file_is_none(state: StateFolder, content: str) -> None:
    state.stack_file.write_text(content)
    assert state.read_stack() is None
