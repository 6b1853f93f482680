"""The package itself: quick to import, and clear about what is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examples.llm_costs.errors import MissingExtraError, needs_extra


def test_agents_load_without_the_packages_they_calculate_with() -> None:
    code = (
        "import sys\n"
        "for name in ('duckdb', 'numpy', 'scipy', 'matplotlib'): sys.modules[name] = None\n"
        "from examples.llm_costs import agents\n"
        "assert [agent.name for agent in agents()] == ['supervisor', 'data', 'optimization', 'report']\n"
        "assert 'grpc' not in sys.modules and 'pydantic' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingExtraError) as caught, needs_extra():
        import no_such_package_at_all  # type: ignore[import-not-found]  # noqa: F401  (missing is the point)
    assert "no_such_package_at_all" in caught.value.message
    assert "carrel[llm-costs]" in caught.value.advice


async def test_stage_without_the_extra_fails_with_its_name(run_stage: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(run_stage)
    monkeypatch.setitem(sys.modules, "numpy", None)
    outcome = await run_stage("data")
    assert isinstance(outcome.error, MissingExtraError)
    assert outcome.error.code == "MISSING_EXTRA"


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), needs_extra():
        _ = 1 // 0
