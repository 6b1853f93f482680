"""Frozen JSON values: nothing can be changed, nothing else gets in."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errors import InvalidRequestError
from carrel.frozen import MAX_INT, FrozenDict, freeze, freeze_map, is_frozen, json_size, nests_too_deep, thaw

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_freeze_and_thaw_give_the_value_back(value: object) -> None:
    frozen = freeze(value)
    assert is_frozen(frozen)
    assert thaw(frozen) == value
    assert json.loads(json.dumps(frozen)) == value
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    assert is_frozen(pickle.loads(pickle.dumps(frozen)))


def test_a_frozen_dict_refuses_every_change() -> None:
    frozen = freeze_map({"a": {"b": [1]}}, "m")
    for change in (
        lambda: frozen.update(a=1),
        lambda: frozen.pop("a"),
        lambda: frozen.popitem(),
        lambda: frozen.clear(),
        lambda: frozen.setdefault("x", 1),
        lambda: frozen.__setitem__("a", 1),
        lambda: frozen.__delitem__("a"),
        lambda: frozen.__ior__({"x": 1}),
        lambda: frozen["a"].update(b=2),
        lambda: frozen["a"]["b"].append(2),
        lambda: hash(frozen),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert thaw(frozen) == {"a": {"b": [1]}}
    assert copy.deepcopy(frozen) is frozen is copy.copy(frozen)
    assert repr(freeze_map({"a": 1}, "m")) == "{'a': 1}"


def test_the_source_can_change_without_the_copy() -> None:
    source = {"a": [1, {"b": 2}]}
    frozen = freeze_map(source, "m")
    source["a"].append(3)
    assert thaw(frozen) == {"a": [1, {"b": 2}]}


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {1: 2}}, r"m\.a has a key of type int"),
        ({"a": [1, {2}]}, r"m\.a\[1\] is a set"),
        ({"a": float("nan")}, r"m\.a is not a finite number"),
        ({"a": 2**63}, r"m\.a is an integer beyond ±2\*\*63"),
        ({"a": "\ud800"}, r"m\.a holds text"),
        ({"\ud800": 1}, "m holds text"),
        ({"a": b"x"}, "is a bytes"),
        ([1], "must be a mapping"),
    ],
)
def test_what_is_no_json_is_named_by_its_place(value: object, where: str) -> None:
    with pytest.raises(InvalidRequestError, match=where):
        freeze_map(value, "m")


def test_a_smaller_bound_for_integers_names_itself() -> None:
    assert freeze(2**53, max_int=2**53) == 2**53
    with pytest.raises(InvalidRequestError, match=r"±2\*\*53"):
        freeze(2**53 + 1, max_int=2**53)


def test_endless_nesting_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(InvalidRequestError, match="nests more than"):
        freeze({"a": value}, "m")


@pytest.mark.parametrize(("depth", "too_deep"), [(1, False), (32, False), (33, True), (100_000, True)])
def test_nesting_is_measured_without_recursion_as_freeze_takes_it(depth: int, too_deep: bool) -> None:
    objects: Any = {"a": 1}
    lists: Any = [1]
    for _ in range(depth - 1):
        objects, lists = {"b": 0, "a": objects}, [0, lists]
    for value in (objects, lists):
        assert nests_too_deep(value) == too_deep
        if too_deep:
            with pytest.raises(InvalidRequestError, match="nests more than 32"):
                freeze(value)
        else:
            freeze(value)


def test_subclasses_become_plain_values() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    assert type(freeze(Colour.RED)) is str
    assert type(freeze(Level.HIGH)) is int
    assert is_frozen(FrozenDict())
    changeable: list[object] = [{}, [1], (1, []), FrozenDict(a=[])]
    assert not any(is_frozen(value) for value in changeable)


def test_size_counts_utf8_bytes() -> None:
    assert json_size({"a": "é"}) == len('{"a":"é"}'.encode())
