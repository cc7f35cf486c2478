"""Plotly figures of a report as plain dicts: the learning curve of a run; aggregates, profiles, improvement and curves of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from . import metrics, references
from .charts import BINS, CROWD, DOTS, MODES, evaluations, round_up
from .comparison import AGGREGATES, Comparison, Scores, paired_rows
from .curves import Curve, binned
from .suites import Entry

Figure = dict[str, Any]
Trace = dict[str, Any]

# The first four are the page's own and follow it into dark mode; the others are read on both.
COLOURS = ("var(--train)", "var(--eval)", "var(--published)", "var(--greedy)", "#b7791f", "#0e7490", "#be185d", "#64748b")
GREY = "var(--random)"
DASHES = ("dash", "dot", "dashdot", "longdash")


def learning(rows: Sequence[Mapping[str, Any]], published: Curve | None = None) -> Figure:
    """The learning curve of one run: training episodes and their mean, evaluations, random play, the published seeds.

    rows: of metrics.jsonl. published: drawn as far as the run went, as mean and range of its seeds.
    """
    end = max((row["step"] for row in rows), default=0) or 1
    traces = _band(published, 1.02 * end, "var(--published)", dash="dash") if published is not None else []
    episodes = [(row["step"], row["return"]) for row in rows if row["kind"] == "episode" and isfinite(row["return"])]
    if episodes:
        steps, scores = zip(*episodes, strict=True)
        if len(episodes) <= DOTS:
            dots = {"mode": "markers", "marker": {"color": "var(--train)/0.45", "size": 5}, "name": "training episodes"}
            traces.append({"type": "scatter", "x": steps, "y": scores, **dots})
        width = round_up(end / max(min(BINS, len(episodes) // CROWD), 1))
        means = binned(rows, width)
        known = np.isfinite(means.mean)
        x, y = np.minimum(means.steps, end)[known], means.mean[known]
        traces.append(_line(x, y, "var(--train)", f"their mean per {width:,} steps", width=2.5))
    for mode, (colour, marker, label) in MODES.items():
        if found := evaluations(rows, mode):
            error = {"type": "data", "array": [row.get("return_std", 0.0) for row in found], "thickness": 1, "width": 0}
            look = {"color": f"var(--{colour})", "size": 8, "symbol": {"o": "circle", "D": "diamond"}[marker]}
            points = {"x": [row["step"] for row in found], "y": [row["return_mean"] for row in found]}
            traces.append({"type": "scatter", "mode": "markers", **points, "marker": look, "error_y": error, "name": label})
    if random := evaluations(rows, "random"):
        level = random[-1]["return_mean"]
        traces.append(_line([0, 1.02 * end], [level, level], GREY, "random play", dash="dot", width=1.5))
    return _figure(traces, "environment steps, action repeat included", "return of an episode", x=[0, 1.02 * end], legend=True)


def colour(comparison: Comparison, label: str) -> str:
    """A variant's colour, the same in every picture; published methods are grey."""
    variants = comparison.grid.variants
    return COLOURS[variants.index(label) % len(COLOURS)] if label in variants else GREY


def aggregates(comparison: Comparison, kind: str, others: Sequence[Scores] = ()) -> dict[str, Figure]:
    """IQM, median, mean and optimality gap of the normalised scores of a kind, one row for each variant."""
    shown = [scores for scores in [*comparison.own[kind], *others] if scores.known]
    return {name: _rows([(s.label, s.aggregate(name), colour(comparison, s.label)) for s in shown], name) for name in AGGREGATES}


def profiles(comparison: Comparison, kind: str) -> Figure:
    """Fraction of runs above each normalised score, with the bootstrap's band."""
    shown = [scores for scores in comparison.own[kind] if scores.known]
    normal = np.concatenate([scores.normal[np.isfinite(scores.normal)] for scores in shown])
    thresholds = np.linspace(min(0.0, float(normal.min())), max(1.0, float(normal.max())), 121)
    traces = []
    for scores in shown:
        tint = colour(comparison, scores.label)
        low, high = metrics.interval(metrics.profile(metrics.resample(scores.normal), thresholds))
        traces += _between(thresholds, low, high, tint, shape="hv")
        traces.append(_line(thresholds, metrics.profile(scores.normal, thresholds), tint, scores.label, shape="hv"))
    return _figure(traces, "normalised score", "fraction of runs above it", y=[-0.02, 1.02], legend=True)


def improvement(comparison: Comparison) -> Figure | None:
    """Probability that each variant beats the first one; None where there is no other."""
    rows = [(f"{s.label} > {comparison.first.label}", better, colour(comparison, s.label)) for s, better, _ in paired_rows(comparison)]
    if not rows:
        return None
    figure = _rows(rows, "probability of improvement", x=[0, 1])
    even = {"type": "line", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": GREY, "width": 1.5, "dash": "dot"}}
    figure["layout"]["shapes"] = [even]
    return figure


def curves(comparison: Comparison, entry: Entry) -> Figure:
    """Training returns of one task: mean and range of the seeds, over published curves (dashed) and the score that counts as 0."""
    end = 1.02 * comparison.steps(entry)
    traces = []
    methods = references.methods(comparison.suite.scores) if entry.published else ()
    for number, method in enumerate(methods):
        found = references.curve(comparison.suite.scores, method, entry.published, None if end > 102_000 else 10_000)
        if found is not None:
            shown = (found.steps <= end) & np.isfinite(found.mean)
            name = f"{method}, published"
            traces.append(_line(found.steps[shown], found.mean[shown], GREY, name, dash=DASHES[number % len(DASHES)], width=1.3))
    for variant in comparison.grid.variants:
        if (mine := comparison.curve(variant, entry)) is not None:
            traces += _band(mine, end, colour(comparison, variant), label=variant)
    traces.append(_line([0, end], [entry.low, entry.low], GREY, "score 0", dash="dot", width=1))
    return _figure(traces, "environment steps", "", x=[0, end])


def _band(curve: Curve, end: float, tint: str, dash: str = "solid", label: str = "") -> list[Trace]:
    """Mean over the range of the seeds, up to a step."""
    known = (curve.steps <= end) & np.isfinite(curve.mean)
    low, high = (side[known] for side in curve.band)
    steps = curve.steps[known]
    return [*_between(steps, low, high, tint), _line(steps, curve.mean[known], tint, label or curve.label, dash=dash)]


def _between(x: Any, low: Any, high: Any, tint: str, shape: str = "linear") -> list[Trace]:
    """A tinted area between two lines that are not drawn."""
    edge = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0, "shape": shape}, "hoverinfo": "skip", "showlegend": False}
    fill = f"{tint}/0.18" if tint.startswith("var(") else f"rgba({', '.join(str(int(tint[i : i + 2], 16)) for i in (1, 3, 5))}, 0.18)"
    return [{**edge, "y": low}, {**edge, "y": high, "fill": "tonexty", "fillcolor": fill}]


def _line(x: Any, y: Any, tint: str, name: str, *, dash: str = "solid", width: float = 2.0, shape: str = "linear") -> Trace:
    line = {"color": tint, "width": width, "dash": dash, "shape": shape}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "name": name}


def _rows(found: Sequence[tuple[str, metrics.Estimate, str]], title: str, x: Sequence[float] | None = None) -> Figure:
    """One row for each estimate: its value as a stroke on its interval."""
    traces = []
    for label, estimate, tint in found:
        mark = {"symbol": "line-ns", "size": 16, "line": {"width": 3, "color": tint}}
        trace: Trace = {"type": "scatter", "mode": "markers", "x": [estimate.value], "y": [label], "marker": mark, "name": label}
        if estimate.known:
            sides = {"array": [estimate.high - estimate.value], "arrayminus": [estimate.value - estimate.low]}
            look = f"{tint}/0.4" if tint.startswith("var(") else tint
            trace["error_x"] = {"type": "data", "symmetric": False, **sides, "thickness": 8, "width": 0, "color": look}
        traces.append(trace)
    figure = _figure(traces, title, "", x=x, height=80 + 34 * len(found))
    figure["layout"]["yaxis"] |= {"autorange": "reversed", "type": "category", "automargin": True}
    return figure


def _figure(
    traces: list[Trace],
    across: str,
    up: str,
    *,
    x: Sequence[float] | None = None,
    y: Sequence[float] | None = None,
    legend: bool = False,
    height: int = 0,
) -> Figure:
    """Data and layout, without fonts and backgrounds: those are the page's."""
    axis = {"gridcolor": "var(--line)", "zeroline": False, "linecolor": "var(--line)", "fixedrange": False}
    layout = {
        "margin": {"l": 52 if up else 44, "r": 10, "t": 8, "b": 44},
        "xaxis": {**axis, "title": {"text": across}, **({"range": list(x)} if x else {})},
        "yaxis": {**axis, "title": {"text": up}, **({"range": list(y)} if y else {})},
        "showlegend": legend,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
    }
    return {"data": traces, "layout": layout | ({"height": height} if height else {})}
