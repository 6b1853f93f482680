"""Reads an endpoint as Prometheus does, and parses what it says with the library's own strict parser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.openmetrics.parser import text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass
class Scraped:
    """What one process told: families by name, samples by name and labels."""

    families: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Every family's name, as the catalogue has it."""
        return {f"{name}_total" if family.type == "counter" else name for name, family in self.families.items()}

    def samples(self, name: str) -> list[Any]:
        """Every sample of this name."""
        return [sample for family in self.families.values() for sample in family.samples if sample.name == name]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        found = [s for s in self.samples(name) if labels.items() <= s.labels.items()]
        assert found, f"{name} {labels} is none of {sorted(self.names)}"
        return float(sum(sample.value for sample in found))

    def trace_ids(self) -> set[str]:
        """Of all exemplars."""
        samples = (sample for family in self.families.values() for sample in family.samples)
        return {sample.exemplar.labels["trace_id"] for sample in samples if sample.exemplar is not None}


async def scrape(address: str) -> Scraped:
    """One look at a process."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{address}/metrics", headers={"Accept": OPENMETRICS}) as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        text = await response.text()
        return Scraped({family.name: family for family in _families(text)})


def _families(text: str) -> Any:
    return text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
