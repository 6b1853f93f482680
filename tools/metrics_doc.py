"""Makes docs/metrics.md of the catalogue.

    python -m tools.metrics_doc [--check]

``--check`` writes nothing and ends with 1 when the page is not as it would be made.
"""

import sys
from itertools import groupby
from pathlib import Path

from servicekit.telemetry.buckets import LATENCY_S, LAYER_MS, LONG_S
from servicekit.telemetry.catalogue import CATALOGUE, SERVICES, Metric
from services.execution.domain.timing import Part

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
_PARTS = {
    Part.EARLIER: "before the process that tells took the run up (after a restart)",
    Part.ADMISSION: "from the request's arrival at execution to the durable run",
    Part.QUEUE: "QUEUED: for the thread, or for an engine",
    Part.WAITING: "WAITING: for a person",
    Part.EXECUTION_ENGINE: "what execution prepares for stages, between everything else",
    Part.AGENT_INSTANCE: "the wait for a worker, its creation, and what surrounds the agent there",
    Part.AGENT: "the agents' own time, with their tools and models",
    Part.WEBSOCKET_EMITTER: "of the waits for the log: the emitter's part",
    Part.BRIDGE_INTEGRATION: "of the waits for the log: the bridge's and its store's part",
    Part.DELIVERY: "of the waits for the log: the way there and back",
    Part.CHECKPOINT: "writes of the run store that the run waits for",
    Part.LOST: "attempts that were lost and tried again",
}
_HEAD = """# Metrics

Made of `servicekit/telemetry/catalogue_entries.py` by `python -m tools.metrics_doc`; a test holds it to be current.
Every metric that a service has is here, and no other. None is there while `CARREL_TELEMETRY__ENABLED` is false.

## Scraping

Each process serves `GET /metrics` beside its own port, 1000 higher: gateway 9080, execution 51051,
agent_instance 51052, emitter 51053, bridge 51054. `CARREL_TELEMETRY__METRICS_LISTEN` names another address, or `off`.
OpenMetrics is given to who accepts it, with exemplars: the id of a kept trace beside a bucket. (Prometheus keeps them
with `--enable-feature=exemplar-storage`.) The endpoint has no login and no encryption: let only the scraper reach it.
It serves eight scrapers at once, reads anew at most every half second, and cuts off who is slow. With
`CARREL_TELEMETRY__OTLP_ENDPOINT` the same numbers are pushed every 15 s: scrape or push, not both into one database.

Alerts take `job` names that begin with `carrel`; services are told apart by them.

```yaml
scrape_configs:
  - job_name: carrel-execution
    static_configs: [{targets: ["execution:51051"]}]
```

Rules and alerts: `ops/prometheus`. Dashboards: `ops/grafana`. What to do about an alert: `docs/runbooks`.

## What the numbers are

Counters count since the process began; use `rate` and `increase`, which bear restarts. Nothing has a user, a run or a
thread in its labels. Latencies from "the moment an event happened" are measured from the producer's clock to the
reader's: clocks of several machines must agree for them. Delivery times need one clock only.
"""
_PARTS_HEAD = """A run's clock always runs for one part, so the parts add up to the whole: from the request's
arrival at execution until the log has the terminal event. `carrel run --timing` shows them for one run, with what is
left of the time that its user waited as `gateway and client`; `GetRun`, `GET /api/runs/{run_id}` and
`GetFactoryMetrics` have them, too. Kept for the latest 2000 runs of a process, until it restarts.
"""


def page() -> str:
    """The whole page."""
    text = [_HEAD]
    for topic, metrics in groupby(CATALOGUE.values(), key=lambda metric: metric.topic):
        text += [f"## {topic}\n", "| metric | kind | labels | of | what it says | in the design documents |"]
        text += ["|---|---|---|---|---|---|", *map(_row, metrics), ""]
    text += ["## The parts of a run's time\n"]
    text += [_PARTS_HEAD, "| part | what |", "|---|---|"]
    text += [f"| `{part.value}` | {_PARTS[part]} |" for part in Part]
    text += ["", "## Buckets\n", f"Seconds of single steps: {_listed(LATENCY_S)}.  "]
    text += [
        f"Seconds of runs, agents' calls and parts: {_listed(LONG_S)}.  ",
        f"Milliseconds of layers: {_listed(LAYER_MS)}.",
        "",
    ]
    return "\n".join(text)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    services = "all" if metric.services == SERVICES else ", ".join(metric.services)
    if metric.services == SERVICES[1:]:
        services = "all but gateway"
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {services} | {metric.help} | {metric.documents} |"


def _listed(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{bound:g}" for bound in bounds)


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != text:
        print("docs/metrics.md is not of the catalogue; run python -m tools.metrics_doc")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
