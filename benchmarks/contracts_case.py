"""Each layer's own times against the bounds of its contract: runs over all five processes, then what each has counted.

The times are the layers' own, taken where the contract is checked; the bounds are those of ``servicekit.layers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.asking import asker
from benchmarks.harness import bench_stack
from carrel.cli.doctor.access import find_access
from carrel.cli.doctor.contracts import kept
from carrel.cli.doctor.settings import DoctorSettings
from servicekit.layers import LAYER_NAMES, layer_contract

__all__ = ["CONTRACT_TARGETS", "contracts"]

_WARM_UP: Final = 20
_RUNS: Final = 300
# What a figure of this case must be at most: the bound of the layer's operation, at the median.
CONTRACT_TARGETS: Final[Mapping[tuple[str, str], str]] = {
    ("contracts", f"{name}_{operation}_p50_ms"): f"≤ {bound:g}"
    for name in LAYER_NAMES
    for operation, bound in layer_contract(name).performance_bounds.items()
}


async def contracts() -> dict[str, float]:
    """``<layer>_<operation>_p50_ms``, ``…_p95_ms`` and ``…_exceeded_percent`` of one user's runs, one by one.

    Raises:
        RuntimeError: A layer has not told its times.
    """
    figures: dict[str, float] = {}
    async with bench_stack({"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0"}) as stack:
        for number in range(_WARM_UP + _RUNS):
            # A connection of its own now and then: the bridge's operation is a subscription.
            async with asker(stack, f"contracts-{number // 10}") as one:
                _ = await one.run("echo")
        told, skipped = await kept(find_access(DoctorSettings(), "", (), stack.state.root))
    for name in LAYER_NAMES:
        for operation in layer_contract(name).performance_bounds:
            processes = [one for one in told.get(name, ()) if one["measured"].get(operation)]
            if not processes:
                raise RuntimeError(f"{name} has told no time of {operation}: {skipped}")
            (process,) = processes
            head = f"{name}_{operation}"
            figures[f"{head}_p50_ms"] = process["p50_ms"].get(operation, 0.0)
            figures[f"{head}_p95_ms"] = process["p95_ms"].get(operation, 0.0)
            exceeded = process["exceeded"].get(operation, 0)
            figures[f"{head}_exceeded_percent"] = 100 * exceeded / process["measured"][operation]
    return figures
