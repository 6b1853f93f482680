"""The state machine of a run. Stages follow their run; what a state means is in the proto's comments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from carrel.errors import InternalError
from services.execution.models import TERMINAL_STATES, RunState

__all__ = ["ENDABLE", "HOLDS_ENGINE", "TRANSITIONS", "check_outcome", "may_become"]

_Q, _R, _W, _F = RunState.QUEUED, RunState.RUNNING, RunState.WAITING, RunState.FINISHING

TRANSITIONS: Final[Mapping[RunState, frozenset[RunState]]] = {
    _Q: frozenset({_R, _F}),
    _R: frozenset({_W, _F}),
    _W: frozenset({_Q, _R, _F}),
    _F: TERMINAL_STATES,
    **{state: frozenset() for state in TERMINAL_STATES},
}

# The states that the one compare-and-set to FINISHING may start from.
ENDABLE: Final = frozenset({_Q, _R, _W})

HOLDS_ENGINE: Final = frozenset({_R})


def may_become(state: RunState, other: RunState) -> bool:
    """Whether a run may go from ``state`` to ``other`` in one step."""
    return other in TRANSITIONS[state]


def check_outcome(outcome: RunState) -> RunState:
    """Return what FINISHING may turn into.

    Raises:
        InternalError: It is no terminal state.
    """
    if outcome not in TERMINAL_STATES:
        raise InternalError(f"{outcome} is no outcome of a run")
    return outcome
