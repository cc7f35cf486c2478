"""Pictures of a benchmark, through matplotlib: aggregates with intervals, performance profiles, improvement, curves by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import metrics, references
from .charts import LIGHT
from .comparison import AGGREGATES, Comparison, Scores, paired_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The first four follow the page into dark mode; the others are read on both.
COLOURS = (LIGHT["train"], LIGHT["eval"], LIGHT["published"], LIGHT["greedy"], "#b7791f", "#0e7490", "#be185d", "#64748b")
DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2), (2, 2))
COLUMNS = 3


def colour(comparison: Comparison, label: str) -> str:
    """A variant's colour, the same in every picture; published methods are grey."""
    variants = comparison.grid.variants
    return COLOURS[variants.index(label) % len(COLOURS)] if label in variants else LIGHT["random"]


def aggregates(comparison: Comparison, kind: str, others: Sequence[Scores] = ()) -> Figure:
    """IQM, median, mean and optimality gap of the normalised scores of a kind, one row for each variant."""
    from matplotlib.figure import Figure

    shown = [scores for scores in [*comparison.own[kind], *others] if scores.known]
    figure = Figure(figsize=(8.6, 0.75 + 0.32 * len(shown)), layout="constrained")
    grid = figure.subplots(1, len(AGGREGATES), sharey=True)
    for axes, name in zip(grid, AGGREGATES, strict=True):
        for row, scores in enumerate(shown):
            found = scores.aggregate(name)
            if found.known:
                axes.barh(row, found.high - found.low, 0.55, found.low, color=colour(comparison, scores.label), alpha=0.3)
            axes.plot([found.value] * 2, [row - 0.35, row + 0.35], color=colour(comparison, scores.label), linewidth=2)
        axes.set_title(name, fontsize=10, color=LIGHT["ink"])
        axes.set_yticks(range(len(shown)), [scores.label for scores in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.margins(x=0.15)
        _plain(axes)
    return figure


def profiles(comparison: Comparison, kind: str) -> Figure:
    """Fraction of runs above each normalised score, with the bootstrap's band."""
    from matplotlib.figure import Figure

    shown = [scores for scores in comparison.own[kind] if scores.known]
    normal = np.concatenate([scores.normal[np.isfinite(scores.normal)] for scores in shown])
    thresholds = np.linspace(min(0.0, float(normal.min())), max(1.0, float(normal.max())), 121)
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for scores in shown:
        low, high = metrics.interval(metrics.profile(metrics.resample(scores.normal), thresholds))
        axes.fill_between(thresholds, low, high, step="post", color=colour(comparison, scores.label), alpha=0.15, linewidth=0)
        axes.step(
            thresholds,
            metrics.profile(scores.normal, thresholds),
            where="post",
            color=colour(comparison, scores.label),
            label=scores.label,
            linewidth=2,
        )
    axes.set_xlabel("normalised score", color=LIGHT["ink"])
    axes.set_ylabel("fraction of runs above it", color=LIGHT["ink"])
    axes.set_ylim(-0.02, 1.02)
    _plain(axes)
    _legend(axes)
    return figure


def improvement(comparison: Comparison) -> Figure | None:
    """Probability that each variant beats the first one; None where there is no other."""
    from matplotlib.figure import Figure

    rows = paired_rows(comparison)
    if not rows:
        return None
    figure = Figure(figsize=(8.6, 0.9 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for row, (scores, better, _) in enumerate(rows):
        if better.known:
            axes.barh(row, better.high - better.low, 0.55, better.low, color=colour(comparison, scores.label), alpha=0.3)
        axes.plot([better.value] * 2, [row - 0.35, row + 0.35], color=colour(comparison, scores.label), linewidth=2)
    axes.axvline(0.5, color=LIGHT["random"], linestyle=":", linewidth=1.4)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [f"{scores.label} > {comparison.first.label}" for scores, _, _ in rows])
    axes.set_xlabel("probability of improvement", color=LIGHT["ink"])
    _plain(axes)
    return figure


def curves(comparison: Comparison) -> Figure:
    """Training returns of each task: mean and range of the seeds, over published curves (dashed) and random play (dotted)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    tasks = comparison.suite.tasks
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(8.6, 0.6 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, entry in zip(panels, tasks, strict=False):
        _published(axes, comparison, entry.published, comparison.steps(entry))
        for variant in comparison.grid.variants:
            curve = comparison.curve(variant, entry)
            if curve is None:
                continue
            known = np.isfinite(curve.mean)
            low, high = (side[known] for side in curve.band)
            axes.fill_between(curve.steps[known], low, high, color=colour(comparison, variant), alpha=0.15, linewidth=0)
            axes.plot(curve.steps[known], curve.mean[known], color=colour(comparison, variant), label=variant, linewidth=1.6)
        axes.axhline(entry.low, color=LIGHT["random"], linestyle=":", linewidth=1)
        axes.set_title(entry.name, fontsize=9, color=LIGHT["ink"])
        axes.set_xlim(0, 1.02 * comparison.steps(entry))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _plain(axes)
    for axes in list(panels):
        axes.set_visible(False)
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, labelcolor=LIGHT["ink"], fontsize=9
        )
    return figure


def _published(axes: Axes, comparison: Comparison, key: str, end: int) -> None:
    for number, method in enumerate(references.methods(comparison.suite.scores) if key else ()):
        curve = references.curve(comparison.suite.scores, method, key, None if end > 100_000 else 10_000)
        if curve is None:
            continue
        shown = (curve.steps <= 1.02 * end) & np.isfinite(curve.mean)
        dashes = DASHES[number % len(DASHES)]
        axes.plot(curve.steps[shown], curve.mean[shown], color=LIGHT["random"], dashes=dashes, linewidth=1.2, label=f"{method}, published")


def _plain(axes: Axes) -> None:
    axes.grid(visible=True, color=LIGHT["line"], linewidth=0.6)
    axes.tick_params(colors=LIGHT["ink"], length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
