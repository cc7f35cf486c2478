"""Pictures beside Plotly's (`plots.py`): the learning curve as a file for documents, and small multiples as plain SVG, of which a page
has dozens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from .curves import Curve, binned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT = {
    "ink": "#1b1f24",
    "line": "#d0d7de",
    "train": "#0b66b0",
    "eval": "#c2410c",
    "greedy": "#7c3aed",
    "published": "#15803d",
    "random": "#6b7280",
}
"""Colours of a picture in a file: those of the page in light."""

MODES = {"sample": ("eval", "o", "evaluation, sampled actions"), "mode": ("greedy", "D", "evaluation, greedy actions")}
DOTS = 1500  # single episodes are drawn up to this many; beyond, their mean says more
BINS, CROWD = 50, 4  # means of the training return over a run, at most; and episodes that each is the mean of, at least
POINTS = 240  # of a small chart


Panel = tuple[str, Sequence[Mapping[str, Any]], Curve | None]
"""Title, rows of metrics.jsonl, and the published seeds or None."""


def learning_figure(panels: Sequence[Panel]) -> Figure:
    """Learning curves, of one run or of its tasks: training episodes and their mean, evaluations, random play, the published band.

    Published seeds are drawn as their mean and range as far as the run went.
    """
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    size = (8.6, 4.3) if columns == 1 else (10.4, 3.5 * lines + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, *panel, alone=len(panels) == 1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    named = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        where = {"loc": "outside lower center", "ncols": 2 if columns == 1 else 3, "frameon": False, "labelcolor": LIGHT["ink"]}
        figure.legend(list(named.values()), list(named), fontsize=9, **where)
    return figure


def _draw(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]], published: Curve | None, *, alone: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    end = max((row["step"] for row in rows), default=0) or 1
    if published is not None:
        shown = published.steps <= 1.02 * end
        low, high = published.band
        axes.fill_between(published.steps[shown], low[shown], high[shown], color=LIGHT["published"], alpha=0.15, linewidth=0)
        axes.plot(published.steps[shown], published.mean[shown], "--", color=LIGHT["published"], linewidth=1.4, label=published.label)
    _draw_training(axes, rows, end, alone)
    _draw_evaluations(axes, rows)
    axes.set_xlim(0, 1.02 * end)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("environment steps, action repeat included", color=LIGHT["ink"])
    axes.set_ylabel("return of an episode", color=LIGHT["ink"])
    if title:
        axes.set_title(title, color=LIGHT["ink"], loc="left", fontsize=11)
    axes.grid(visible=True, color=LIGHT["line"], linewidth=0.6)
    axes.tick_params(colors=LIGHT["ink"], length=0)
    axes.spines[:].set_visible(False)


def _draw_training(axes: Axes, rows: Sequence[Mapping[str, Any]], end: int, alone: bool) -> None:
    episodes = [(row["step"], row["return"]) for row in rows if row["kind"] == "episode" and isfinite(row["return"])]
    if not episodes:
        return
    steps, scores = zip(*episodes, strict=True)
    if len(episodes) <= DOTS:
        axes.plot(steps, scores, ".", color=LIGHT["train"], alpha=0.4, markersize=6, markeredgewidth=0, label="training episodes")
    width = round_up(end / max(min(BINS, len(episodes) // CROWD), 1))
    curve = binned(rows, width)
    known = np.isfinite(curve.mean)
    label = f"their mean per {width:,} steps" if alone else "their mean"  # panels share one legend
    axes.plot(np.minimum(curve.steps, end)[known], curve.mean[known], color=LIGHT["train"], linewidth=2, label=label)


def _draw_evaluations(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for mode, (colour, marker, label) in MODES.items():
        found = evaluations(rows, mode)
        if found:
            steps, means = [row["step"] for row in found], [row["return_mean"] for row in found]
            spread = [row.get("return_std", 0.0) for row in found]
            axes.errorbar(
                steps, means, spread, fmt=marker, color=LIGHT[colour], markersize=5, elinewidth=1, capsize=0, label=label, clip_on=False
            )
    if random := evaluations(rows, "random"):
        axes.axhline(random[-1]["return_mean"], color=LIGHT["random"], linestyle=":", linewidth=1.4, label="random play")


def evaluations(rows: Iterable[Mapping[str, Any]], mode: str, task: str | None = None) -> list[Mapping[str, Any]]:
    """The "eval" rows of a mode: those of one task, or those of no particular one."""
    return [row for row in rows if row["kind"] == "eval" and row.get("mode") == mode and row.get("task") == task]


def round_up(value: float) -> int:
    """The next whole number with at most two digits other than 0: 4166.7 gives 4200."""
    unit = 10 ** max(len(str(int(value))) - 2, 0)
    return max(int(-(-value // unit)) * unit, 1)


def figure_png(figure: Figure, dpi: int = 200) -> bytes:
    """A figure as a PNG on white."""
    out = BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def series(rows: Iterable[Mapping[str, Any]], kinds: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numbers of rows of these kinds over time: name -> (steps, values). Keys with fewer than two numbers are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["kind"] in kinds:
            for key, value in row.items():
                if key not in ("step", "time", "env") and isinstance(value, int | float):
                    found.setdefault(key, []).append((row["step"], float(value)))
    return {
        key: (np.array([x for x, _ in pairs], float), np.array([y for _, y in pairs], float))
        for key, pairs in found.items()
        if len(pairs) > 1
    }


def small_chart(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """One quantity over time as a captioned figure: last value in the caption, extremes at the left, gaps where not finite.

    steps, values: (K,). More than 240 points are averaged in blocks; the extremes are those of all points.
    """
    known = np.isfinite(values)
    missing = int((~known).sum())
    note = f", {missing} not finite" if missing else ""
    if not known.any():
        return f'<figure class="small"><figcaption>{escape(name)}<b>not finite</b></figcaption></figure>'
    low, high, last = values[known].min(), values[known].max(), values[known][-1]
    alt = f"{name}: from {short(values[known][0])} to {short(last)}, between {short(low)} and {short(high)}{note}"
    lines = "".join(f'<polyline points="{points}"/>' for points in _paths(steps, values, low, high))
    return (
        f'<figure class="small"><figcaption>{escape(name)}<b>{short(last)}</b></figcaption>'
        f'<div><span class="range"><i>{short(high)}</i><i>{short(low)}</i></span>'
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 200 60" preserveAspectRatio="none">{lines}</svg></div>'
        + (f'<p class="bad">{missing} not finite</p>' if missing else "")
        + "</figure>"
    )


def _paths(steps: np.ndarray, values: np.ndarray, low: float, high: float) -> list[str]:
    """Polylines in a box of 200 x 60, one for each stretch without a gap; a lone point becomes a short dash."""
    block = -(-len(values) // POINTS)
    left, width = steps.min(), np.ptp(steps) or 1.0
    lines: list[list[tuple[float, float]]] = [[]]
    for i in range(0, len(values), block):
        x, y = float(steps[i : i + block].mean()), float(values[i : i + block].mean())
        if isfinite(y):
            lines[-1].append((200 * (x - left) / width, 57 - 54 * (y - low) / (high - low) if high > low else 30.0))
        elif lines[-1]:
            lines.append([])
    dashes = [line if len(line) > 1 else [line[0], (line[0][0] + 1, line[0][1])] for line in lines if line]
    return [" ".join(f"{x:.1f},{y:.1f}" for x, y in line) for line in dashes]


def short(value: float) -> str:
    """A number in a caption: 3 or 4 significant digits, large ones with k, M or G, small ones in scientific notation."""
    if not isfinite(value):
        return str(value)
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / limit * (10 if unit == 'k' else 1):.3g}{unit}"
    if size >= 1000:
        return f"{value:.4g}"
    return "0" if size == 0 else f"{value:.3g}" if size >= 1e-3 else f"{value:.1e}"
