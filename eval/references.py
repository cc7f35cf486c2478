"""Published scores per task and seed, from data/: what a benchmark is drawn over. Sources, axes and licences: data/README.md."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np

from .curves import Curve, _available, _published, stack

ORDER = ("dreamerv3", "dmpo", "d4pg", "drqv2", "sac", "ppo_fixhp")
"""Methods in the order in which they are shown."""


def methods(scores: str) -> list[str]:
    """Methods with published curves of a set of scores (`dmc_proprio`, `dmc_vision`, `atari100k`, `minecraft_diamond`)."""
    found = [name.removeprefix(f"{scores}-") for name in _available() if scores and name.startswith(f"{scores}-")]
    return sorted(found, key=lambda m: (ORDER.index(m) if m in ORDER else len(ORDER), m))


def curve(scores: str, method: str, key: str, width: int | None = None) -> Curve | None:
    """All seeds of a published task as one curve, None where the task was not published. key: as in the file, `atari_pong`.

    width: environment steps that single episodes are averaged over; by default the widest spacing among the seeds.
    """
    runs = [run for run in _published(f"{scores}-{method}") if run["task"] == key]
    return stack([(run["xs"], run["ys"]) for run in runs], width, f"{method}, published, {len(runs)} seeds") if runs else None


def table(scores: str, method: str, keys: tuple[str, ...], end: int, last: int) -> np.ndarray:
    """Published scores (R, M) of the tasks `keys`: each run's mean over its points in (end - last, end], NaN without any.

    R is the largest number of seeds of a task; the rest is NaN. Raises KeyError for a task that was not published.
    """
    rows: list[list[float]] = []
    for key in keys:
        runs = [run for run in _published(f"{scores}-{method}") if run["task"] == key]
        if not runs:
            raise KeyError(f"no published scores of {key!r} in {scores}-{method}")
        rows.append([_window(run["xs"], run["ys"], end, last) for run in runs])
    seeds = max(len(row) for row in rows)
    return np.array([[*row, *[np.nan] * (seeds - len(row))] for row in rows]).T


def _window(xs: list[float], ys: list[float | None], end: int, last: int) -> float:
    steps, values = np.asarray(xs, float), np.array([np.nan if y is None else y for y in ys], float)
    inside = values[(steps > end - last) & (steps <= end) & np.isfinite(values)]
    return float(inside.mean()) if inside.size else float("nan")


@cache
def atari() -> dict[str, tuple[float, float]]:
    """Scores of random play and of a human tester by game (`alien`), the 0 and 1 of normalised Atari scores."""
    text = (files(__package__) / "data" / "atari_baselines.json").read_text()
    return {game: (low, high) for game, (low, high) in json.loads(text).items()}
