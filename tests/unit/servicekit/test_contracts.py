"""Contracts with names: phases say what they need, layers check what they promise."""

import pytest

from carrel.errors import EnginesLimitError, InternalError, InvalidRequestError
from servicekit.contracts import PHASES, Clause, FactoryLayerContract, Phase


def layer(**changes: object) -> FactoryLayerContract:
    parts = {
        "name": "execution_engine",
        "input_requirements": (Clause("a user"), Clause("a positive number", lambda n: n > 0)),
        "output_guarantees": (Clause("an even number", lambda n: n % 2 == 0),),
        "error_conditions": (EnginesLimitError,),
        "performance_bounds": {"create": 5.0, "never": -1.0},
    }
    return FactoryLayerContract(**(parts | changes))  # type: ignore[arg-type]  # built from a dict


def test_every_phase_has_a_contract_that_says_what_to_do() -> None:
    assert list(PHASES) == list(Phase)
    assert all(contract.needs and contract.gives and contract.advice for contract in PHASES.values())


def test_input_that_breaks_a_requirement_is_the_callers_error() -> None:
    layer().check_input(1)
    with pytest.raises(InvalidRequestError, match="execution_engine requires: a positive number"):
        layer().check_input(0)


def test_output_that_breaks_a_guarantee_is_ours() -> None:
    layer().check_output(2)
    with pytest.raises(InternalError, match="broke its guarantee: an even number"):
        layer().check_output(3)


def test_time_is_told_and_what_exceeds_its_bound_is_counted() -> None:
    contract, took = layer(), list[float]()
    with contract.timed("create", took.append):
        pass
    with pytest.raises(ZeroDivisionError), contract.timed("never", took.append):
        raise ZeroDivisionError
    assert len(took) == 2
    assert contract.exceeded == {"never": 1}
    with pytest.raises(KeyError), contract.timed("unnamed"):
        pass


@pytest.mark.parametrize("part", ["input_requirements", "output_guarantees", "performance_bounds"])
def test_contract_that_leaves_a_part_empty_is_none(part: str) -> None:
    with pytest.raises(ValueError, match="leaves a part empty"):
        layer(**{part: ()})
