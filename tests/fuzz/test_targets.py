"""Each target with a seeded handful of inputs, and a second of atheris where it is installed."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.run import _SEEDS
from tests.fuzz.targets import TARGETS
from tests.security.mutations import mutated
from tests.support.whole import WHOLE

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_broken_seeds(name: str) -> None:
    chance = random.Random(name)
    for _ in range(20_000 if WHOLE else 300):
        TARGETS[name](mutated(chance.choice(_SEEDS), chance))


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    @settings(max_examples=2_000 if WHOLE else 100, deadline=None)
    @example(b"")
    @example(b'{"text":' + b"[" * 300 + b"]" * 300 + b"}")
    @given(st.binary(max_size=300))
    def any_bytes(data: bytes) -> None:
        TARGETS[name](data)

    any_bytes()


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("name", TARGETS)
def test_a_second_of_atheris(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "tests.fuzz.run", name, "1", str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
