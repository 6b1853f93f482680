"""How much of a long matrix a run of the tests takes: a seeded sample, or with ``TESTS_WHOLE=1`` all of it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Final, TypeVar

__all__ = ["WHOLE", "sample"]

_T = TypeVar("_T")

WHOLE: Final = os.environ.get("TESTS_WHOLE", "") not in {"", "0"}


def sample(cells: Sequence[_T], count: int, seed: int | str) -> list[_T]:
    """All cells where the whole is wanted, else ``count`` of them in their order, always the same for a seed."""
    if WHOLE or count >= len(cells):
        return list(cells)
    return [cells[i] for i in sorted(random.Random(seed).sample(range(len(cells)), count))]
