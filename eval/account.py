"""A run as its directory tells it, and what it comes to in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np

from ..core.log import FILE, read_metrics
from .apart import apart, names
from .charts import evaluations
from .curves import LAST, SUITES, Curve, reference, window_mean

ACTED = {"sample": "sampled actions", "mode": "greedy actions"}
MOST = 12
"""Tasks of a run that get a curve each. Beyond, a page would be nothing else."""
SURE = 2.0
"""Standard errors beyond which two means are called different."""


@dataclass(frozen=True)
class Run:
    """A run directory as read from disk, or one of its tasks. config: {} where config.yaml is missing."""

    directory: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    part: str = ""  # the task that these rows are of, where the run has several

    @classmethod
    def read(cls, directory: Path) -> Run:
        """Read config.yaml and metrics.jsonl. Raises FileNotFoundError where the directory holds no metrics."""
        import yaml

        directory = Path(directory)
        if not (directory / FILE).is_file():
            raise FileNotFoundError(f"{directory} is no run directory: it has no {FILE}")
        config = directory / "config.yaml"
        return cls(directory, yaml.safe_load(config.read_text()) if config.is_file() else {}, read_metrics(directory / FILE))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the "run" rows tell, later ones winning."""
        facts: dict[str, Any] = {}
        for row in self.rows:
            facts |= row if row["kind"] == "run" else {}
        return facts

    @property
    def end(self) -> int:
        """Last environment step that left a row."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def last(self) -> int:
        """Steps that headline numbers are averaged over: 20 000, or half of a run shorter than 40 000."""
        return min(LAST, max(self.end // 2, 1))

    @property
    def title(self) -> str:
        """Task and variant, or the directory's name."""
        name = self.part or self.config.get("task", "")
        return f"{name}, {self.config.get('variant', 'base')}" if name else self.directory.resolve().name

    @cached_property
    def parts(self) -> list[Run]:
        """Each task of several as a run of its own, on the axis of its own steps; [] for a run of one task, and of more than `MOST`."""
        found = [] if self.part else names(self.rows)
        return [Run(self.directory, self.config, apart(self.rows, name), name) for name in found if 1 < len(found) <= MOST]

    @cached_property
    def published(self) -> Curve | None:
        """The published curve of the same task and kind of observation, where there is one."""
        family, _, name = ("dmc", "", self.part) if self.part else str(self.config.get("task", "")).partition("/")
        suite = SUITES.get(self.config.get("env", {}).get("obs", "vector"))
        if family != "dmc" or suite is None:
            return None
        try:
            return reference(name, suite=suite)
        except KeyError:  # most tasks were never published
            return None

    def evaluation(self, mode: str, task: str | None = None) -> Mapping[str, Any] | None:
        """The last "eval" row of a mode, of one task or of no particular one."""
        return next(reversed(evaluations(self.rows, mode, task)), None)


def verdict(run: Run) -> str:
    """What was reached, against random play and against what was published, with numbers, windows and what weakens them."""
    mode = next((mode for mode in ACTED if run.evaluation(mode)), "")
    window = window_mean(run.rows, run.last)
    name = run.config.get("variant", "This agent")
    if not (mode or window.count):
        return "No episode has ended yet: there is nothing to say."
    if mode:
        row = run.evaluation(mode)
        assert row is not None
        text = f"After {row['step']:,} steps {name} returns {row['return_mean']:.1f}{_over(row)} with {ACTED[mode]}{_beside(run, row)}."
    else:
        text = f"{name} returned {window.mean:.1f} in its {window.count} training episodes of steps {window.start:,} to {window.end:,}."
    if run.published is not None and window.count:
        text += f" {_against(run.published, run, window.mean)}"
    kinds = len({row.get("warning", "") for row in run.rows if row["kind"] == "health"})
    warned = f"; {kinds} kind{'s' * (kinds > 1)} of warnings below" if kinds else ""
    return f"{text} One run of one seed{warned}."


def _over(row: Mapping[str, Any]) -> str:
    """How many evaluation episodes a number is the mean of."""
    count = len(row.get("returns", ()))
    if count == 1:
        return " in one evaluation episode"
    return f" ± {row.get('return_std', 0.0):.1f} " + (f"over {count} evaluation episodes" if count else "in evaluation")


def _beside(run: Run, row: Mapping[str, Any]) -> str:
    """Better or worse than random play, where the difference of means is more than `SURE` of its standard errors."""
    random = run.evaluation("random")
    if random is None:
        return ""
    ours, theirs = (np.asarray(r.get("returns", ()), float) for r in (row, random))
    numbers = f"{random['return_mean']:.1f}"
    if "returns" not in row:
        return f", random play {numbers}"  # a mean over tasks, each of which has episodes of its own
    if len(ours) < 2 or len(theirs) < 2:
        return f", random play {numbers} (too few episodes to compare)"
    gap = row["return_mean"] - random["return_mean"]
    error = hypot(ours.std(ddof=1) / len(ours) ** 0.5, theirs.std(ddof=1) / len(theirs) ** 0.5)
    if abs(gap) <= SURE * error:
        return f", which cannot be told from random play ({numbers})"
    return f", {'better' if gap > 0 else 'worse'} than random play ({numbers})"


def _against(published: Curve, run: Run, mean: float) -> str:
    """Where the training returns of a run lie among the published seeds, over the same steps."""
    inside = published.scores[:, (published.steps > run.end - run.last) & (published.steps <= run.end)]
    seeds = [float(np.nanmean(seed)) for seed in inside if np.isfinite(seed).any()]
    if not seeds:
        return "Nothing was published for so few steps."
    low, high = min(seeds), max(seeds)
    place = "above all" if mean > high else "below all" if mean < low else "within the range of the"
    own = f"Training returns of the last {run.last:,} steps, {mean:.1f}, lie"
    return f"{own} {place} {len(seeds)} published seeds ({low:.1f} to {high:.1f})."
