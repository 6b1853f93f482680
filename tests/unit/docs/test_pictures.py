"""The pages' pictures: drawn from the sources that stand there, and true of the code as far as names and edges go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from carrel.client import RunState
from servicekit.identity.callers import METHOD_CALLERS
from tests.support.stack import SERVICES
from tools.docs_pictures import DRAWN, picture_files, pictures, title_of

_PICTURES: Final = [(page, source, title_of(source)) for page, source in pictures()]
_RPCS: Final = {name.rsplit("/", 1)[1] for name in METHOD_CALLERS}
# Words in labels that look like calls and are none.
_NO_CALLS: Final = frozenset({"WebSocket", "PostgreSQL", "SQLite"})
_HOSTS: Final = {
    "ExecutionService": "execution",
    "AgentInstanceService": "agent_instance",
    "EmitterService": "emitter",
    "BridgeService": "bridge",
}


def test_every_picture_is_drawn_as_its_source_is_now() -> None:
    """``tools/docs_pictures.py`` says how to draw what is missing here."""
    assert {file.name for file in DRAWN.glob("*.svg")} == set(picture_files())


@pytest.mark.parametrize(("page", "source", "title"), _PICTURES, ids=[title for _, _, title in _PICTURES])
def test_calls_and_services_in_pictures_exist(page: Path, source: str, title: str) -> None:
    shown = source.replace(title, "")
    calls = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b|\b(?:Emit|Publish|Attach|Notify|Revoke)\b", shown))
    assert calls - _RPCS - _NO_CALLS == set()
    boxes = set(re.findall(r"\b[A-Z]\[(\w+)\]", shown)) | set(re.findall(r"participant \w+ as (\w+)$", shown, re.M))
    assert boxes - {"client"} <= set(SERVICES), page


def _edges(source: str) -> set[tuple[str, str, str]]:
    """(caller, called, RPC) of a picture's arrows that name RPCs; an arrow may show the way that events go."""
    names = dict(re.findall(r"\b([A-Z])\[(\w+)\]", source))
    names |= dict(re.findall(r"participant (\w) as (\w+)$", source, re.M))
    names |= {"I": "client"} if "I([internal services])" in source else {}
    arrows = re.findall(r"^\s*(\w)(?:\[\w+\])?\s*(?:-->|==>)\|([^|]*)\|\s*(\w)(?:\[\w+\])?$", source, re.M)
    arrows += [(one, text, two) for one, two, text in re.findall(r"^\s*(\w)->>(\w): (.*)$", source, re.M)]
    return {
        (names[one], names[two], word)
        for one, text, two in arrows
        if one in names and two in names
        for word in re.findall(r"\w+", text)
        if word in _RPCS
    }


@pytest.mark.parametrize(("page", "source", "title"), _PICTURES, ids=[title for _, _, title in _PICTURES])
def test_who_calls_whom_in_pictures_may(page: Path, source: str, title: str) -> None:
    allowed = {
        (caller, _HOSTS[method.split("/")[1].removeprefix("carrel.v1.")], method.rsplit("/", 1)[1])
        for method, callers in METHOD_CALLERS.items()
        for caller in callers
    }
    # The bridge's events go to the gateway over the stream that the gateway opened.
    either_way = allowed | {(called, caller, rpc) for caller, called, rpc in allowed if rpc == "Attach"}
    assert _edges(source) - either_way == set(), page


def test_the_picture_of_the_services_shows_each_of_their_connections() -> None:
    source = next(source for _, source, title in _PICTURES if "every connection" in title)
    between = {
        frozenset({caller, _HOSTS[method.split("/")[1].removeprefix("carrel.v1.")]})
        for method, callers in METHOD_CALLERS.items()
        for caller in callers & set(SERVICES)
    }
    drawn = {frozenset({one, two}) for one, two, _ in _edges(source)}
    # Said in the sentence below the picture: the emitter asks the bridge, which it publishes to anyway.
    assert drawn == between


def test_the_states_of_a_run_are_those_of_the_code() -> None:
    source = next(source for _, source, title in _PICTURES if title == "The states of a run")
    named = set(re.findall(r"\b[A-Z_]{5,}\b", source))
    assert named == {state.value for state in RunState}
    # What nothing leads out of is what the code calls terminal.
    left = set(re.findall(r"^\s*([A-Z_]+) -->", source, re.M))
    assert named - left == {state.value for state in RunState if state.terminal}
