"""Statistics over runs and tasks: pure functions on a matrix of scores (R, M), R runs (seeds) of M tasks.

NaN is a run that has no score. Formulas: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", https://arxiv.org/abs/2108.13264, whose library rliable gives the same numbers (tests/eval). Functions marked "batched"
take (..., R, M) and return (...), so that all resamples of a bootstrap are done in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REPS = 2000
CONFIDENCE = 0.95
Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, and what it is a number of.

    low, high: percentile interval of the stratified bootstrap, NaN where there is nothing to resample. runs: scores used.
    what: the statistic and the scores it was taken of, window included; printed with the number.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    confidence: float = CONFIDENCE
    runs: int = 0
    tasks: int = 0
    what: str = ""

    @property
    def known(self) -> bool:
        """True where there is an interval of some width."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high) and self.high > self.low)

    def __str__(self) -> str:
        interval = f" [{self.low:.3g}, {self.high:.3g}]" if np.isfinite(self.low) else ""
        return f"{self.value:.3g}{interval} ({self.what}; {self.runs} runs of {self.tasks} tasks)"


def normalise(scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(score - low) / (high - low): 0 is `low` (random play), 1 is `high` (human, best). scores (..., M), low and high (M,).

    Raises ValueError where a task's two reference scores are equal.
    """
    width = np.asarray(high, float) - np.asarray(low, float)
    if (width == 0).any():
        raise ValueError("a task whose low and high reference scores are equal cannot be normalised")
    normal: np.ndarray = (np.asarray(scores, float) - low) / width
    return normal


# ---------------------------------------------------------------------------------------------------- aggregates


def task_means(scores: np.ndarray) -> np.ndarray:
    """Mean over the runs that have a score. Batched: (..., R, M) to (..., M), NaN for a task without any."""
    known = np.isfinite(scores)
    count = known.sum(-2)
    total = np.where(known, scores, 0.0).sum(-2)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over tasks of the mean over runs. Batched."""
    result: np.ndarray = np.nanmean(task_means(scores), -1)
    return result


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs. Batched."""
    result: np.ndarray = np.nanmedian(task_means(scores), -1)
    return result


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: mean of all scores of all tasks without the lowest and the highest quarter. Batched."""
    from scipy.stats import trim_mean

    flat = _known(scores)
    return np.asarray(trim_mean(flat, 0.25, axis=-1))


def optimality_gap(scores: np.ndarray, goal: float = 1.0) -> np.ndarray:
    """By how much scores fall short of `goal` on average; what lies above it does not count. Batched."""
    result: np.ndarray = goal - np.minimum(_known(scores), goal).mean(-1)
    return result


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Performance profile: fraction of all runs that score more than each threshold. Batched: (..., R, M) to (..., K)."""
    result: np.ndarray = (_known(scores)[..., None, :] > np.asarray(thresholds)[:, None]).mean(-1)
    return result


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability that a run of x beats a run of y on the same task, mean over tasks; ties count one half.

    x (..., R, M), y (..., Q, M) of the same tasks. Batched. Per task it is the Mann-Whitney U statistic over R * Q.
    """
    a, b = x[..., :, None, :], y[..., None, :, :]
    pairs = np.isfinite(a) & np.isfinite(b)
    wins = np.where(pairs, (a > b) + 0.5 * (a == b), 0.0).sum((-3, -2))
    count = pairs.sum((-3, -2))
    per_task = np.divide(wins, count, out=np.full(wins.shape, np.nan), where=count > 0)
    result: np.ndarray = np.nanmean(per_task, -1)
    return result


def _known(scores: np.ndarray) -> np.ndarray:
    """All scores there are, tasks and runs in one axis: (..., n). Resamples miss what the original misses, so n is one number."""
    flat = np.reshape(scores, (*np.shape(scores)[:-2], -1))
    known = np.isfinite(flat)
    present = known.reshape(-1, flat.shape[-1])[0]
    if not present.any():
        raise ValueError("no score among these runs")
    if (known != present).any():
        raise ValueError("all resamples must miss the same runs")
    return np.asarray(flat[..., present])


# ---------------------------------------------------------------------------------------------------- uncertainty


def resample(scores: np.ndarray, reps: int = REPS, seed: int = 0) -> np.ndarray:
    """Stratified resamples: in each task as many runs as it has, drawn with replacement. (R, M) to (reps, R, M)."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((reps, *scores.shape), np.intp)
    for task in range(scores.shape[1]):
        present = np.flatnonzero(np.isfinite(scores[:, task]))
        if present.size:
            rows[:, :, task] = present[rng.integers(0, present.size, (reps, scores.shape[0]))]
    drawn = take(scores, rows)
    drawn[:, ~np.isfinite(scores)] = np.nan
    return drawn


def take(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Resamples from indices of runs: scores (R, M), rows (reps, R, M) gives (reps, R, M)."""
    return np.take_along_axis(scores[None], rows, axis=1)


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis: values (reps, ...) to two arrays (...)."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def estimate(
    statistic: Statistic, *scores: np.ndarray, what: str = "", reps: int = REPS, confidence: float = CONFIDENCE, seed: int = 0
) -> Estimate:
    """A batched statistic of one or two score matrices with its interval. Each matrix is resampled on its own.

    No interval is given where every task has one run: resampling would always return the same scores.
    """
    value = float(statistic(*scores))
    low = high = float("nan")
    if any((np.isfinite(s).sum(0) > 1).any() for s in scores):
        drawn = [resample(s, reps, seed + k) for k, s in enumerate(scores)]
        low, high = (float(v) for v in interval(statistic(*drawn), confidence))
    tasks = int(np.isfinite(scores[0]).any(0).sum())
    runs = int(sum(np.isfinite(s).sum() for s in scores))
    return Estimate(value=value, low=low, high=high, confidence=confidence, runs=runs, tasks=tasks, what=what)


# ---------------------------------------------------------------------------------------------------- curves and pairs


def area(steps: np.ndarray, values: np.ndarray, end: float | None = None) -> float:
    """Area under a learning curve from its first point to `end`, over that width: the mean height, in units of the score.

    Trapezoids between the points that are finite; the curve is cut at `end` by interpolation. Raises ValueError without two points.
    """
    known = np.isfinite(values)
    x, y = np.asarray(steps, float)[known], np.asarray(values, float)[known]
    end = float(x[-1]) if end is None and x.size else float(end or 0.0)
    inside = x <= end
    if (cut := x > end).any() and inside.any():
        x, y = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    elif cut.any():
        x, y = x[inside], y[inside]
    if x.size < 2:
        raise ValueError("an area needs two points of the curve")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """x against y on the same tasks and seeds. difference: of the mean over tasks. p: Wilcoxon's signed-rank test, two-sided."""

    difference: Estimate
    wins: int
    ties: int
    losses: int
    p: float


def paired(x: np.ndarray, y: np.ndarray, what: str = "", reps: int = REPS, seed: int = 0) -> Paired:
    """Compare by seed: row r of x and of y used the same seed. Only pairs that are both known count.

    Raises ValueError where the shapes differ or no pair is known. p is NaN where all pairs are equal.
    """
    from scipy.stats import wilcoxon

    if x.shape != y.shape:
        raise ValueError(f"pairs need the same seeds and tasks, not {x.shape} and {y.shape}")
    gap = x - y
    pairs = gap[np.isfinite(gap)]
    if not pairs.size:
        raise ValueError("no seed and task that both have a score")
    p = float(wilcoxon(pairs).pvalue) if pairs.any() else float("nan")
    signs = np.sign(pairs)
    return Paired(
        difference=estimate(mean, gap, what=what, reps=reps, seed=seed),
        wins=int((signs > 0).sum()),
        ties=int((signs == 0).sum()),
        losses=int((signs < 0).sum()),
        p=p,
    )
