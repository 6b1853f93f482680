"""Ids: form, placeholders, minting, names of child operations."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel import ids
from carrel.errors import InvalidIdError, LimitExceededError
from carrel.ids import ChildIds, check_id, check_minted_id, check_operation_name, extends, new_id

OPERATIONS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,6}[A-Za-z0-9.-])?", fullmatch=True)


def test_minted_ids_sort_by_time_and_hold_no_underscore() -> None:
    minted = [new_id("run") for _ in range(5000)]
    assert minted == sorted(minted)
    assert len(set(minted)) == len(minted)
    assert not any("_" in item for item in minted)
    assert all(check_minted_id(item, "run_id") == item for item in minted)


def test_ids_keep_sorting_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id("run")
    monkeypatch.setattr("carrel.ids.time.time_ns", lambda: 0)
    assert new_id("run") > before


def test_threads_never_mint_the_same_id() -> None:
    found: list[str] = []

    def mint() -> None:
        found.extend(new_id("ev") for _ in range(2000))

    threads = [threading.Thread(target=mint) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stamps = [item[3:18] for item in found]
    assert len(set(stamps)) == len(stamps) == 8000


@pytest.mark.parametrize("prefix", ["", "Run", "run_x", "run-", "1run", "a" * 17])
def test_odd_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidIdError):
        new_id(prefix)


@pytest.mark.parametrize("value", ["", "a/b", "a b", "é", "a\n", "x" * 129, "\x7f", None, 7, b"x"])
def test_malformed_ids_are_refused_without_quoting_them(value: object) -> None:
    with pytest.raises(InvalidIdError, match="thread_id") as caught:
        check_id(value, "thread_id")
    assert set(caught.value.fields) == {"thread_id"}
    if isinstance(value, str) and value.strip():
        assert value not in caught.value.message


@pytest.mark.parametrize("value", ["x", "!~", "x" * 128, "user@example.org", "auth0|abc", "default", "null"])
def test_user_ids_may_be_any_printable_word(value: str) -> None:
    assert check_id(value, "user_id") == value


@pytest.mark.parametrize(
    "value", ["registry", "placeholder", "default", "temp", "none", "null", "NULL", "Default", "undefined"]
)
def test_placeholder_words_are_refused(value: str) -> None:
    with pytest.raises(InvalidIdError, match="placeholder"):
        check_minted_id(value, "run_id")


@pytest.mark.parametrize("prefix", ["placeholder_", "registry_", "default_", "temp_", "example_", "TEMP_"])
def test_placeholder_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidIdError, match="prefix"):
        check_minted_id(prefix + "1", "thread_id")


@pytest.mark.parametrize("value", ["defaults", "temperature", "nonesuch", "my_default_x", "default-chat"])
def test_words_that_only_look_like_placeholders_pass(value: str) -> None:
    assert check_minted_id(value, "thread_id") == value


@pytest.mark.parametrize("name", ["", "_a", "a_", "a b", "a/b", "ä", "x" * 49, None, "-a", "a\n"])
def test_malformed_operation_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidIdError, match="operation_name"):
        check_operation_name(name)


def test_repeated_children_are_numbered() -> None:
    names = ChildIds("req-1")
    assert [names.name("req-1", "check") for _ in range(3)] == ["check", "check_2", "check_3"]
    assert names.name("req-1_check", "check") == "check"
    with pytest.raises(InvalidIdError):
        names.name("req-1", "bad name")


@given(st.lists(st.tuples(st.integers(0, 20), OPERATIONS), max_size=25))
def test_no_two_children_of_a_run_share_an_id(steps: list[tuple[int, str]]) -> None:
    names = ChildIds("r")
    made = ["r"]
    for parent, operation in steps:
        above = made[parent % len(made)]
        child = f"{above}_{names.name(above, operation)}"
        assert child not in made
        assert extends(child, "r")
        made.append(child)


def test_a_run_cannot_open_children_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "MAX_CHILDREN", 3)
    names = ChildIds("r")
    for _ in range(3):
        names.name("r", "a")
    with pytest.raises(LimitExceededError) as caught:
        names.name("r", "a")
    assert caught.value.limit == "max_children"


def test_extending_needs_the_separator() -> None:
    assert extends("r", "r")
    assert extends("r_a", "r")
    assert not extends("ra", "r")
    assert not extends("r", "r_a")
