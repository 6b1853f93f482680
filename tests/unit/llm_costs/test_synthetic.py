"""The generator of synthetic traces, and the packaged sample made by it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from examples.llm_costs import sources, synthetic, traces


def test_packaged_sample_is_what_the_noted_seed_gives() -> None:
    assert sources.read_text(sources.DEFAULT_TRACE) == synthetic.to_csv(2000, 7)
    readme = (Path(synthetic.__file__).parent / "samples" / "README.md").read_text(encoding="utf-8")
    assert "--requests 2000 --seed 7" in readme
    assert "synthetic" in readme


def test_seed_decides_the_trace() -> None:
    assert synthetic.to_csv(50, 1) == synthetic.to_csv(50, 1) != synthetic.to_csv(50, 2)


def test_shape_is_like_a_code_assistant() -> None:
    trace = traces.parse("t", synthetic.to_csv(5000, 3))
    assert len(trace) == 5000
    assert all(a <= b for a, b in pairwise(trace.timestamps))
    assert 50 * 60e6 < trace.timestamps[-1] - trace.timestamps[0] < 60 * 60e6
    context = sorted(trace.context)
    assert 1000 < context[2500] < 2500
    assert 7000 < context[-1] <= 8000
    assert sorted(trace.generated)[2500] < 30
    per_minute = [0] * 60
    for moment in trace.timestamps:
        per_minute[(moment - trace.timestamps[0]) // 60_000_000] += 1
    assert max(per_minute) > 3 * 5000 / 58  # bursts


def test_command_line_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.csv"
    assert synthetic.main(["--requests", "10", "--seed", "5", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == synthetic.to_csv(10, 5)
    assert "synthetic" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--requests", "0", "x.csv"], ["--requests", "5", "/nowhere/x.csv"]])
def test_command_line_says_what_is_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthetic.main(arguments)
    assert "error" in capsys.readouterr().err
