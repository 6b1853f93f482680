"""The report's charts as SVG: drawn by matplotlib without a display, letters as paths, same numbers same bytes.

Each takes results of earlier stages (JSON) and gives the text of an SVG file; where the file goes is not known here.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from examples.llm_costs.errors import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CHARTS", "render"]

_BEFORE: Final = "#9aa5b1"
_AFTER: Final = "#0b6e99"
_INPUT: Final = "#0b6e99"
_OUTPUT: Final = "#e07a1f"
# Okabe and Ito's colours, told apart by people with any colour vision.
_MODELS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
_STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#52606d",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "examples.llm_costs",
    "text.parse_math": False,
}
# matplotlib's settings belong to the whole process, and two runs may draw at once.
_LOCK: Final = threading.Lock()


def render(data: Mapping[str, Any], optimization: Mapping[str, Any]) -> dict[str, str]:
    """All charts by file name, as SVG."""
    with needs_extra():
        import matplotlib as mpl
        from matplotlib.figure import Figure
    charts = {}
    with _LOCK, mpl.rc_context(_STYLE):
        for name, (draw, size) in CHARTS.items():
            figure = Figure(figsize=size)
            draw(figure, data, optimization)
            target = io.StringIO()
            figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
            charts[name] = target.getvalue()
    return charts


def _cost_by_model(figure: Figure, data: Mapping[str, Any], optimization: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    rows = list(reversed(optimization["models"]))
    names = [str(row["model"]) for row in rows]
    widest = max([float(row[f"usd_{when}"]) for row in rows for when in ("before", "after")] + [1e-9])
    for when, colour, offset in (("before", _BEFORE, 0.2), ("after", _AFTER, -0.2)):
        values = [float(row[f"usd_{when}"]) for row in rows]
        # A model that serves only before or only after has its one bar beside its name.
        both = [float(row["usd_before"]) > 0 and float(row["usd_after"]) > 0 for row in rows]
        places = [place + offset * both[place] for place in range(len(rows))]
        total = float(optimization[f"cost_{when}"]["usd"])
        axes.barh(places, values, 0.38, color=colour, label=f"{when}: {_usd(total)} in all")
        for place, value in zip(places, values, strict=True):
            if value > 0:
                axes.text(value + widest * 0.01, place, _usd(value), va="center", fontsize=8.5)
    axes.set_yticks(list(range(len(rows))), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, widest * 1.16)
    axes.set_xlabel("USD for the requests of the trace, at list price")
    axes.set_title(f"Cost by model: all on {optimization['baseline_model']}, and at least cost")
    axes.legend(loc="lower right")
    figure.subplots_adjust(left=_left_margin(names), right=0.98, top=0.92, bottom=0.13)


def _load_over_time(figure: Figure, data: Mapping[str, Any], optimization: Mapping[str, Any]) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True)
    load = data["load"]
    step = int(load["bucket_minutes"])
    unit = "minute" if step == 1 else f"{step} minutes"
    edges = list(range(len(load["requests"]) + 1))
    tokens_in = [int(value) for value in load["input_tokens"]]
    tokens = [value + int(more) for value, more in zip(tokens_in, load["output_tokens"], strict=True)]
    scale, prefix = _scale(max(tokens))
    # The whole behind, the input before it: what remains to be seen of the whole is the output.
    top.stairs([value / scale for value in tokens], edges, fill=True, color=_OUTPUT, label="output")
    top.stairs([value / scale for value in tokens_in], edges, fill=True, color=_INPUT, label="input")
    top.set_ylabel(f"{prefix}tokens\nper {unit}")
    top.set_title("Load over time")
    top.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 0.98), reverse=True)
    bottom.stairs([int(value) for value in load["requests"]], edges, fill=True, color=_BEFORE)
    bottom.set_ylabel(f"requests\nper {unit}")
    for axes in (top, bottom):
        axes.grid(visible=False, axis="x")
        axes.set_ylim(bottom=0)
    _clock(bottom, str(load["start"]), step, len(edges) - 1)
    figure.subplots_adjust(left=0.12, right=0.98, top=0.92, bottom=0.11, hspace=0.13)


def _clock(axes: Axes, start: str, step: int, count: int) -> None:
    first = datetime.fromisoformat(start)
    days = count * step >= 2 * 24 * 60
    every = max(1, -(-count // 10))
    ticks = list(range(0, count, every))
    moments = [first + timedelta(minutes=step * tick) for tick in ticks]
    axes.set_xticks(ticks, [f"{moment:%d %b %H:%M}" if days else f"{moment:%H:%M}" for moment in moments])
    axes.set_xlim(0, count)
    axes.set_xlabel(f"time (UTC), from {first:%d %B %Y}")


def _assignment(figure: Figure, data: Mapping[str, Any], optimization: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    quartiles = sorted({int(row["quartile"]) for row in optimization["assignment"]})
    requests = {q: sum(float(c["requests"]) for c in data["cells"] if int(c["quartile"]) == q) for q in quartiles}
    models = _in_order_of_size(optimization["assignment"])
    done = dict.fromkeys(quartiles, 0.0)
    for index, model in enumerate(models):
        shares = {
            q: 100 * sum(float(r["requests"]) for r in optimization["assignment"] if _is(r, q, model)) / requests[q]
            for q in quartiles
        }
        colour = _MODELS[index % len(_MODELS)]
        axes.barh(quartiles, list(shares.values()), 0.62, left=list(done.values()), color=colour, label=model)
        for q, share in shares.items():
            if share >= 6:
                ink = "black" if colour in {"#e69f00", "#56b4e9", "#f0e442", "#cc79a7"} else "white"
                axes.text(done[q] + share / 2, q, f"{share:.0f} %", ha="center", va="center", color=ink, fontsize=8.5)
            done[q] += share
    edges = [float(edge) for edge in data["quartile_edges"]]
    axes.set_yticks(quartiles, [_quartile_label(q, edges) for q in quartiles])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the quartile's requests, %")
    axes.set_title("Assignment at least cost, by length of context")
    columns = 4
    lines = -(-len(models) // columns)
    axes.legend(loc="upper center", bbox_to_anchor=(0.42, -0.2), ncols=columns, columnspacing=1.2, handlelength=1.2)
    figure.subplots_adjust(left=0.17, right=0.97, top=0.91, bottom=0.17 + 0.06 * lines)


def _in_order_of_size(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models from large to small, each tier from most to least requests."""
    tiers = {"large": 0, "medium": 1, "small": 2}
    total: dict[str, float] = {}
    tier: dict[str, int] = {}
    for row in rows:
        total[str(row["model"])] = total.get(str(row["model"]), 0.0) + float(row["requests"])
        tier[str(row["model"])] = tiers[str(row["tier"])]
    return sorted(total, key=lambda model: (tier[model], -total[model]))


def _is(row: Mapping[str, Any], quartile: int, model: str) -> bool:
    return int(row["quartile"]) == quartile and row["model"] == model


def _quartile_label(quartile: int, edges: Sequence[float]) -> str:
    lower, upper = ([0.0, *edges][quartile - 1], [*edges, None][quartile - 1])
    return f"over {lower:,.0f}\ntokens" if upper is None else f"{lower:,.0f} to {upper:,.0f}\ntokens"


def _left_margin(names: Sequence[str]) -> float:
    """Room for the longest name, as a share of the width; measuring it would take drawing everything twice."""
    return min(0.5, 0.03 + 0.0105 * max(len(name) for name in names))


def _scale(largest: float) -> tuple[float, str]:
    return (1e6, "million ") if largest >= 2e6 else (1e3, "thousand ") if largest >= 2e3 else (1.0, "")


def _usd(value: float) -> str:
    return f"{value:,.2f} USD" if value >= 0.1 else f"{value:.2g} USD"


CHARTS: Final = {
    "cost_by_model.svg": (_cost_by_model, (7.6, 4.0)),
    "load_over_time.svg": (_load_over_time, (7.6, 4.4)),
    "assignment.svg": (_assignment, (7.6, 3.6)),
}
