"""Makes ops/grafana/*.json: dashboards as a few lines of Python, so that panels keep one look and places add up.

    python -m tools.dashboards [--check]

``--check`` writes nothing and ends with 1 when a file is not as it would be made. Every expression is over metrics of
the catalogue, which tests/ops holds.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "ops" / "grafana"
_METRICS = {"type": "prometheus", "uid": "${metrics}"}
_WIDTH, _HEIGHT = 24, 8
_Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries`` are (expression, legend); ``unit`` is Grafana's name of it.

    ``warn`` and ``bad`` are where the value becomes yellow and red.
    """

    title: str
    text: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    warn: float | None = None
    bad: float | None = None

    def made(self, number: int, place: _Json) -> _Json:
        """As Grafana wants it."""
        steps: list[_Json] = [{"color": "green", "value": None}]
        steps += [{"color": c, "value": v} for c, v in (("yellow", self.warn), ("red", self.bad)) if v is not None]
        options: _Json = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        if self.kind == "stat":
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "textMode": "auto"}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": _METRICS,
            "gridPos": place,
            "fieldConfig": {
                "defaults": {"unit": self.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}},
                "overrides": [],
            },
            "options": options,
            "targets": [
                {
                    "refId": chr(65 + n),
                    "datasource": _METRICS,
                    "expr": expression,
                    "legendFormat": legend,
                    "exemplar": True,
                }
                for n, (expression, legend) in enumerate(self.queries)
            ],
        }


@dataclass(frozen=True)
class Other:
    """A panel over another data source than metrics: logs or traces."""

    title: str
    text: str
    kind: str
    source: str
    query: _Json
    width: int = _WIDTH
    height: int = 14

    def made(self, number: int, place: _Json) -> _Json:
        """As Grafana wants it."""
        source = {"type": self.source, "uid": "${" + {"loki": "logs", "tempo": "traces"}[self.source] + "}"}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": source,
            "gridPos": {**place, "h": self.height},
            "targets": [{"refId": "A", "datasource": source, **self.query}],
        }


def dashboard(
    uid: str, title: str, text: str, rows: Sequence[tuple[str, Sequence[Panel | Other]]], **more: Any
) -> _Json:
    """A dashboard of rows, each panel beside the one before while there is room."""
    panels: list[_Json] = []
    y = 0
    for name, parts in rows:
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": name, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}}
        )  # fmt: skip
        y, x = y + 1, 0
        for part in parts:
            height = part.height if isinstance(part, Other) else (4 if part.kind == "stat" else _HEIGHT)
            if x + part.width > _WIDTH:
                x, y = 0, panels[-1]["gridPos"]["y"] + panels[-1]["gridPos"]["h"]
            panels.append(part.made(len(panels) + 1, {"x": x, "y": y, "w": part.width, "h": height}))
            x += part.width
        y = panels[-1]["gridPos"]["y"] + panels[-1]["gridPos"]["h"]
    variables = [*datasource("metrics", "prometheus"), *more.pop("variables", ())]
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["carrel"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "links": [
            {"type": "dashboards", "title": "Carrel", "tags": ["carrel"], "asDropdown": True, "icon": "dashboard"}
        ],
        "panels": panels,
    }


def datasource(name: str, kind: str) -> list[_Json]:
    """A variable that names a data source."""
    return [{"name": name, "type": "datasource", "query": kind, "label": name.capitalize(), "hide": 0}]


def textbox(name: str, label: str) -> _Json:
    """A variable that is typed in."""
    return {"name": name, "type": "textbox", "label": label, "query": "", "hide": 0}


def rate(metric: str, by: str = "") -> str:
    """What a counter gains in a second, summed up."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    """A histogram's quantile."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def latency(metric: str) -> list[tuple[str, str]]:
    """The three quantiles that tell most."""
    return [(quantile(share, metric), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def main() -> int:
    """Write the files, or compare them."""
    from tools.dashboard_pages import PAGES

    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / f"{name}.json", json.dumps(page(), indent=2, ensure_ascii=False) + "\n"
        if check:
            stale += [path.name] if not path.exists() or path.read_text("utf-8") != text else []
        else:
            path.write_text(text, "utf-8")
    if stale:
        print(f"not as tools/dashboards.py makes them: {', '.join(stale)}; run python -m tools.dashboards")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
