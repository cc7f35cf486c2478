"""What a benchmark found: scores of every entry with their window, aggregates with intervals, and one sentence.

Two kinds of scores never mix: returns of training episodes in a window at the end of the budget, and the final evaluation.
Published curves are training episodes, so they are compared with the former only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import metrics, references
from .curves import Curve, stack, window_mean
from .grid import DONE, Cell, Grid
from .metrics import Estimate, Paired
from .suites import Entry, Suite

KINDS = {"sample": "final evaluation, sampled actions", "mode": "final evaluation, greedy actions", "train": "training episodes"}
AGGREGATES = {"IQM": metrics.iqm, "median": metrics.median, "mean": metrics.mean, "optimality gap": metrics.optimality_gap}
POINTS = 25  # of a learning curve


@dataclass(frozen=True, eq=False)
class Scores:
    """Raw scores (R, M) of one variant or published method over the tasks of a suite. what: kind and window, in words."""

    label: str
    kind: str
    values: np.ndarray
    tasks: tuple[Entry, ...]
    what: str

    @property
    def normal(self) -> np.ndarray:
        """Normalised: 0 is each task's `low`, 1 its `high`."""
        low, high = ([getattr(entry, side) for entry in self.tasks] for side in ("low", "high"))
        return metrics.normalise(self.values, np.array(low), np.array(high))

    @property
    def known(self) -> bool:
        """True where there is any score."""
        return bool(np.isfinite(self.values).any())

    def aggregate(self, name: str) -> Estimate:
        """One of `AGGREGATES` of the normalised scores, with its interval."""
        return metrics.estimate(AGGREGATES[name], self.normal, what=f"{name} of {self.what}")


@dataclass(frozen=True)
class Comparison:
    """Everything that a report of a grid tells, computed from the run directories. Only finished cells have scores."""

    grid: Grid

    @property
    def suite(self) -> Suite:
        """What was run."""
        return self.grid.suite

    def steps(self, entry: Entry) -> int:
        """The budget that a task was really given."""
        return self.grid.of(self.grid.variants[0], entry)[0].steps

    def window(self, entry: Entry) -> int:
        """Environment steps at the end that training returns are averaged over: the suite's, at most half of the budget."""
        return max(min(self.suite.window, self.steps(entry) // 2), 1)

    def scores(self, variant: str, kind: str) -> Scores:
        """Scores of a variant, seeds in the grid's order. kind: one of `KINDS`."""
        columns = [[self._score(cell, kind) for cell in self.grid.of(variant, entry)] for entry in self.suite.tasks]
        return Scores(variant, kind, np.array(columns, float).T, self.suite.tasks, self.about(kind))

    def about(self, kind: str) -> str:
        """What a score of this kind is, with its window."""
        windows = sorted({self.window(entry) for entry in self.suite.tasks})
        return KINDS[kind] + (f" of the last {' or '.join(f'{w:,}' for w in windows)} steps" if kind == "train" else "")

    def _score(self, cell: Cell, kind: str) -> float:
        if cell.state != DONE:
            return float("nan")
        rows = cell.rows()
        if kind == "train":
            return window_mean(rows, self.window(cell.entry), max(cell.steps, rows[-1]["step"])).mean
        last = [row for row in rows if row["kind"] == "eval" and row.get("mode") == kind and row.get("task") is None]
        return float(last[-1]["return_mean"]) if last else float("nan")

    @cached_property
    def own(self) -> dict[str, list[Scores]]:
        """Scores of all variants by kind; kinds that nobody has are left out."""
        found = {kind: [self.scores(variant, kind) for variant in self.grid.variants] for kind in KINDS}
        return {kind: scores for kind, scores in found.items() if any(s.known for s in scores)}

    @cached_property
    def published(self) -> list[Scores]:
        """Published methods at the same steps and window, where every task of the suite was published."""
        keys = [entry.published for entry in self.suite.tasks]
        if not all(keys):
            return []
        found = []
        for method in references.methods(self.suite.scores):
            columns = [references.table(self.suite.scores, method, (e.published,), self.steps(e), self.window(e)) for e in self.suite.tasks]
            rows = max(len(column) for column in columns)
            padded = [np.pad(column, ((0, rows - len(column)), (0, 0)), constant_values=np.nan) for column in columns]
            what = f"published {self.about('train')}"
            found.append(Scores(f"{method} (published)", "train", np.concatenate(padded, 1), self.suite.tasks, what))
        return [scores for scores in found if np.isfinite(scores.values).any(0).all()]

    @property
    def main(self) -> str:
        """The kind that the verdict speaks of: the evaluation with sampled actions, as published protocols act."""
        return next(iter(self.own))

    @property
    def first(self) -> Scores:
        """The variant that the others are compared with: the first one named."""
        return self.own[self.main][0]

    def against(self, other: Scores) -> tuple[Estimate, Paired]:
        """How probably `other` beats the first variant, and by how much, seed by seed."""
        base = self.first.normal
        better = metrics.estimate(metrics.improvement, other.normal, base, what=f"probability of improvement, {other.what}")
        return better, metrics.paired(other.normal, base, what=f"mean difference by seed, {other.what}")

    def curve(self, variant: str, entry: Entry) -> Curve | None:
        """Training returns of all seeds of a task, None before the first episode. Unfinished cells count as far as they went."""
        runs = []
        for cell in self.grid.of(variant, entry):
            pairs = [(row["step"], row["return"]) for row in cell.rows() if row["kind"] == "episode"]
            runs += [tuple(map(list, zip(*pairs, strict=True)))] if pairs else []
        return stack(runs, max(self.steps(entry) // POINTS, 1), variant) if runs else None  # type: ignore[arg-type]

    def area(self, variant: str, entry: Entry) -> float:
        """Area under the mean training curve over its length: the mean return over training. NaN without two points."""
        curve = self.curve(variant, entry)
        if curve is None or np.isfinite(curve.mean).sum() < 2:
            return float("nan")
        return metrics.area(curve.steps, curve.mean, self.steps(entry))

    def worst(self, scores: Scores) -> int:
        """Index of the task with the lowest normalised mean, -1 where nothing is known."""
        means = metrics.task_means(scores.normal)
        return int(np.nanargmin(means)) if np.isfinite(means).any() else -1


def verdict(comparison: Comparison) -> str:
    """Which is better, by how much, how sure: one or two sentences with numbers, window included."""
    if not comparison.own:
        return "No cell has finished: there is nothing to compare yet."
    known = [scores for scores in comparison.own[comparison.main] if scores.known]
    if whole := [scores for scores in known if np.isfinite(scores.values).any(0).all()]:
        known = whole  # a variant without some of the tasks has an IQM of other tasks
    ranked = sorted(known, key=lambda s: -s.aggregate("IQM").value)
    about = f"{comparison.suite.name}, {comparison.about(comparison.main)}"
    if len(ranked) == 1:
        return f"{ranked[0].label} reaches a normalised IQM of {_span(ranked[0].aggregate('IQM'))} ({about})." + _caution(comparison)
    base = comparison.first
    if base not in known:
        return (
            f"{ranked[0].label} has the highest normalised IQM, {_span(ranked[0].aggregate('IQM'))} ({about}); {base.label} did not finish."
            + _caution(comparison)
        )
    ties = [s for s in known if s is not base and np.array_equal(s.values, base.values, equal_nan=True)]
    same = f"{' and '.join(s.label for s in ties)} scored exactly as {base.label} in every cell" if ties else ""
    others = [s for s in ranked if s is not base and s not in ties]
    if not others:
        return f"{same} ({about})." + _caution(comparison)
    alike = [s for s in others if np.isfinite(s.values - base.values).any()]
    if not alike:
        return f"Nothing can be compared: {base.label} and {others[0].label} share no seed of a task ({about})." + _caution(comparison)
    better, pairs = comparison.against(alike[0])
    return _sentence(base, alike[0], better, pairs, about) + (f" {same}." if same else "") + _caution(comparison)


def _sentence(base: Scores, best: Scores, better: Estimate, pairs: Paired, about: str) -> str:
    sure = better.low > 0.5 or better.high < 0.5  # an unknown interval is NaN, and never sure
    words = "is better than" if better.value > 0.5 else "is worse than" if better.value < 0.5 else "is as good as"
    head = (
        f"{best.label} {words} {base.label}" if sure else f"No difference between {best.label} and {base.label} can be told from these runs"
    )
    return (
        f"{head}: normalised IQM {_span(best.aggregate('IQM'))} against {_span(base.aggregate('IQM'))}, probability of improvement "
        f"{_span(better)}, {pairs.wins} of {pairs.wins + pairs.ties + pairs.losses} pairs of the same seed won ({about})."
    )


def _span(estimate: Estimate) -> str:
    """A number with its interval."""
    sure = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if np.isfinite(estimate.low) else " (one run per task: no interval)"
    return f"{estimate.value:.2f}{sure}"


def _caution(comparison: Comparison) -> str:
    """What weakens the verdict."""
    seeds, tasks = len(comparison.grid.seeds), len(comparison.suite.tasks)
    missing = sum(cell.state != DONE for cell in comparison.grid.cells)
    words = [f" {missing} of {len(comparison.grid.cells)} cells have no score."] if missing else []
    if seeds < 3 or tasks < 3:
        words.append(f" {seeds} seed{'s' * (seeds > 1)} and {tasks} task{'s' * (tasks > 1)} say little about others.")
    return "".join(words)


def paired_rows(comparison: Comparison) -> Sequence[tuple[Scores, Estimate, Paired]]:
    """Every other variant against the first one."""
    if not comparison.own or not comparison.first.known:
        return []
    others = [scores for scores in comparison.own[comparison.main][1:] if np.isfinite(scores.values - comparison.first.values).any()]
    return [(scores, *comparison.against(scores)) for scores in others]
