"""Learning curves: our own from metrics.jsonl, published ones from data/, on one axis and always with their window.

The axis of every curve is environment steps, action repeat included. A window (a, b] excludes a and includes b.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

LAST = 20_000  # environment steps that a headline number is averaged over
SUITES = {"vector": "dmc_proprio", "pixels": "dmc_vision"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A mean that says what it is the mean of: returns in (start, end], first over each seed, then over seeds.

    spread: standard deviation over seeds (sample), NaN for one seed. count: points or episodes used.
    """

    mean: float
    start: int
    end: int
    count: int
    seeds: int = 1
    spread: float = float("nan")
    unit: str = "episodes"

    def __str__(self) -> str:
        if not self.count:
            return f"none in steps {self.start:,} to {self.end:,}"
        spread = "" if np.isnan(self.spread) else f" ± {self.spread:.1f}"
        seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{self.mean:.1f}{spread} ({self.count} {self.unit}{seeds}, steps {self.start:,} to {self.end:,})"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores of one or more seeds on a common grid.

    steps: (K,) ascending environment steps. scores: (S, K), NaN where a seed has no value.
    """

    steps: np.ndarray
    scores: np.ndarray
    label: str = ""

    def __post_init__(self) -> None:
        if self.steps.ndim != 1 or self.scores.ndim != 2 or self.scores.shape[1] != len(self.steps):
            raise ValueError(f"a curve needs steps (K,) and scores (S, K), not {self.steps.shape} and {self.scores.shape}")
        if (np.diff(self.steps) <= 0).any():
            raise ValueError("the steps of a curve must ascend")

    @property
    def mean(self) -> np.ndarray:
        """Mean over the seeds that have a value: (K,)."""
        return _nanmean(self.scores, 0)

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest seed: two arrays (K,)."""
        known = np.isfinite(self.scores)
        low, high = np.where(known, self.scores, np.inf).min(0), np.where(known, self.scores, -np.inf).max(0)
        some = known.any(0)
        return np.where(some, low, np.nan), np.where(some, high, np.nan)

    def window_mean(self, end: int | None = None, last: int = LAST) -> Window:
        """Mean of the points in (end - last, end], of each seed, then over seeds. end: the last step by default."""
        end = int(self.steps[-1]) if end is None else int(end)
        start = max(end - last, 0)
        inside = self.scores[:, (self.steps > start) & (self.steps <= end)]
        per_seed = _nanmean(inside, 1)
        per_seed = per_seed[np.isfinite(per_seed)]
        return Window(
            mean=float(per_seed.mean()) if per_seed.size else float("nan"),
            start=start,
            end=end,
            count=int(np.isfinite(inside).sum()),
            seeds=len(per_seed),
            spread=float(per_seed.std(ddof=1)) if per_seed.size > 1 else float("nan"),
            unit="points",
        )


def reference(task: str, method: str = "dreamerv3", suite: str = "dmc_proprio") -> Curve:
    """A published curve, all seeds. task: `cartpole_balance` or `dmc/cartpole_balance`. Source and axis: data/README.md.

    suite: "dmc_proprio" for state vectors, "dmc_vision" for pixels. Raises KeyError naming the nearest task, suite or method.
    """
    known = _available()
    if f"{suite}-{method}" not in known:
        raise KeyError(f"no published curves {suite}-{method}; there are {', '.join(known)}")
    runs = _published(f"{suite}-{method}")
    key = f"{suite.split('_')[0]}_{task.split('/')[-1]}"
    mine = [run for run in runs if run["task"] == key]
    if not mine:
        names = sorted({run["task"].split("_", 1)[1] for run in runs})
        near = get_close_matches(task.split("/")[-1], names, n=1)
        raise KeyError(f"no published curve of {task!r} in {suite}; " + (f"did you mean {near[0]!r}?" if near else ", ".join(names)))
    return stack([(run["xs"], run["ys"]) for run in mine], label=f"{method}, published, {len(mine)} seeds")


def stack(runs: Sequence[tuple[Sequence[float], Sequence[float | None]]], width: int | None = None, label: str = "") -> Curve:
    """Runs of several seeds on one grid. runs: (steps, scores) of each; None and NaN are missing values.

    Runs that share their steps are taken as they are; others are averaged over (x - width, x], x a multiple of `width`, which
    is by default the widest typical spacing among them. Raises ValueError without any run.
    """
    if not runs:
        raise ValueError("no runs to stack")
    clean = [(np.asarray(xs, float), np.array([np.nan if y is None else y for y in ys], float)) for xs, ys in runs]
    shared = all(np.array_equal(xs, clean[0][0]) for xs, _ in clean)
    if width is None and shared and (np.diff(clean[0][0]) > 0).all():
        return Curve(steps=clean[0][0], scores=np.stack([ys for _, ys in clean]), label=label)
    width = width or max(round(float(np.median(np.diff(np.unique(xs))))) if len(np.unique(xs)) > 1 else 1 for xs, _ in clean)
    end = max(int(-(-xs.max() // width)) if len(xs) else 0 for xs, _ in clean)
    steps = width * np.arange(1, max(end, 1) + 1, dtype=float)
    return Curve(steps=steps, scores=np.stack([_bin(xs, ys, steps, width) for xs, ys in clean]), label=label)


def binned(rows: Iterable[Mapping[str, Any]], width: int, label: str = "training episodes") -> Curve:
    """Training returns of one run, averaged over (x - width, x]. rows: of metrics.jsonl; kinds other than "episode" are passed over.

    Bins without an episode hold NaN. Raises ValueError where there is no episode at all.
    """
    steps, scores = _episodes(rows)
    if not len(steps):
        raise ValueError("no episode among these rows")
    return stack([(steps.tolist(), scores.tolist())], width, label)


def window_mean(rows: Iterable[Mapping[str, Any]], last: int = LAST, end: int | None = None) -> Window:
    """Mean return of the training episodes that ended in (end - last, end]. end: the run's last row by default.

    The rule behind every headline number, the same as for published curves. The mean is NaN where no episode ended there.
    """
    rows = list(rows)
    steps, scores = _episodes(rows)
    end = max((row["step"] for row in rows), default=0) if end is None else int(end)
    start = max(end - last, 0)
    inside = scores[(steps > start) & (steps <= end)]
    return Window(mean=float(inside.mean()) if inside.size else float("nan"), start=start, end=end, count=len(inside))


def _episodes(rows: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row["return"]) for row in rows if row["kind"] == "episode"]
    steps, scores = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, float), np.array(scores, float)


def _bin(xs: np.ndarray, ys: np.ndarray, steps: np.ndarray, width: int) -> np.ndarray:
    """Means over (x - width, x] for each x of `steps`, NaN where nothing falls in."""
    known = np.isfinite(ys)
    index = np.maximum(np.ceil(xs[known] / width).astype(int) - 1, 0)  # a run may log its first episode at step 0
    total = np.bincount(index, ys[known], len(steps))[: len(steps)]
    count = np.bincount(index, minlength=len(steps))[: len(steps)]
    return np.divide(total, count, out=np.full(len(steps), np.nan), where=count > 0)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """numpy's nanmean without its warning where nothing is known."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _available() -> list[str]:
    folder = files(__package__) / "data"
    return sorted(entry.name.removesuffix(".json.gz") for entry in folder.iterdir() if entry.name.endswith(".json.gz"))


@cache
def _published(name: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(gzip.decompress((files(__package__) / "data" / f"{name}.json.gz").read_bytes()))
    return runs
