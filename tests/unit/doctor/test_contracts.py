"""The layers' contracts stand in one place, are printed from there, and every service checks what it can of its own."""

from __future__ import annotations

import pytest

from benchmarks.report import TARGETS, missed
from carrel import errors
from carrel.cli.doctor.checks_setup import compatible
from carrel.cli.doctor.contracts import described
from servicekit.contracts import FactoryLayerContract
from servicekit.layers import LAYER_NAMES, layer_contract
from servicekit.rpc.contracts import contract_to_proto
from services.agent_instance.domain.contract import AGENT_INSTANCE
from services.bridge.domain.contract import bridge_contract
from services.emitter.domain.contract import emitter_contract
from services.execution.domain.contract import engine_contract
from tools import contracts as page


def test_page_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0
    monkeypatch.setattr(page, "page", lambda: "another")
    assert page.main(["--check"]) == 1
    assert "python -m tools.contracts" in capsys.readouterr().err


def test_every_layer_has_all_parts_and_names_errors_that_exist() -> None:
    codes = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
    assert [layer["name"] for layer in described()] == list(LAYER_NAMES)
    for layer in described():
        assert all(layer[part] for part in ("input_requirements", "output_guarantees", "performance_bounds_ms"))
        assert codes >= set(layer["error_conditions"])


@pytest.mark.parametrize("contract", [engine_contract(), AGENT_INSTANCE, emitter_contract(), bridge_contract()])
def test_services_decide_clauses_on_both_sides(contract: FactoryLayerContract) -> None:
    assert any(clause.holds for clause in contract.input_requirements)
    assert any(clause.holds for clause in contract.output_guarantees)


def test_clause_that_a_layer_has_not_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="has no clause needs"):
        layer_contract("gateway", {"needs.nothing": bool})


def test_message_tells_how_bounds_were_kept() -> None:
    contract = layer_contract("bridge_integration")
    with contract.timed("subscribe"):
        pass
    told = contract_to_proto(contract)
    assert (told.name, dict(told.measured), dict(told.exceeded)) == ("bridge_integration", {"subscribe": 1}, {})
    assert told.version
    assert told.performance_bounds_ms["subscribe"] == 5.0
    assert 0 <= told.p50_ms["subscribe"] <= told.p95_ms["subscribe"] < 5.0


def test_bounds_are_targets_of_the_bench_and_a_miss_is_told() -> None:
    assert TARGETS["contracts", "execution_engine_execute_p50_ms"] == "≤ 5"
    kept, late = {"contracts": {"gateway_execute_p50_ms": 9.9}}, {"contracts": {"gateway_execute_p50_ms": 10.1}}
    assert (missed(kept), missed(late)) == ([], ["contracts gateway_execute_p50_ms"])


@pytest.mark.parametrize(
    ("theirs", "fits"),
    [("1.4.0", True), ("1.3.9", True), ("1.5.0rc1", True), ("1.2.0", False), ("2.4.0", False), ("", False)],
)
def test_one_minor_version_apart_is_compatible(theirs: str, fits: bool) -> None:
    assert compatible(theirs, "1.4.2") is fits
