"""Each service of the last release beside today's others, and the other way round; clients of both.

Everybody gets a sample of the ten combinations; all of them is ``make skew``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.skew.journey import travel
from tests.skew.versions import NEW, mixed_stack
from tests.support.stack import SERVICES

SEED: Final = 20265
# (service, whether it is the old one among new ones)
COMBINATIONS: Final = [(service, old) for service in SERVICES for old in (True, False)]
TRIED: Final = COMBINATIONS if os.environ.get("SKEW_WHOLE") else random.Random(SEED).sample(COMBINATIONS, 2)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("service", "is_old"), TRIED, ids=[f"{'old' if old else 'new'}-{service}" for service, old in TRIED]
)
def test_one_service_of_another_version_than_the_rest(old: Path, tmp_path: Path, service: str, is_old: bool) -> None:
    rest, alone = (NEW, old) if is_old else (old, NEW)
    trees = {name: alone if name == service else rest for name in SERVICES}
    with mixed_stack(tmp_path, trees) as mixed:
        assert {name: mixed.tree_of(name) for name in SERVICES} == trees
        for library in (old, NEW):
            told = travel(mixed.stack, library)
            assert Path(told["from"]).is_relative_to(library)
