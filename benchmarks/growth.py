"""Growth: time of one update of ours over the replayed steps B * T and over the horizon H, and the slopes on a log-log scale.

An update is linear where the slope is at most one; work that does not grow makes it smaller.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np

from . import machine, ours, rounds
from .contender import Process

FACTORS = (0.5, 1, 2)
"""Of the batch, of the length and of the horizon: one of them is changed at a time."""
COLUMNS = ("B", "T", "H", "B * T", "median s", "best s", "us per step", "spread", "peak GB", "others")


def points(batch: int, length: int, horizon: int) -> dict[str, list[tuple[int, int, int]]]:
    """(B, T, H) by what is changed."""

    def scaled(value: int) -> list[int]:
        return sorted({max(2, round(f * value)) for f in FACTORS})

    return {
        "B": [(b, length, horizon) for b in scaled(batch)],
        "T": [(batch, t, horizon) for t in scaled(length)],
        "H": [(batch, length, h) for h in scaled(horizon)],
    }


def slope(sizes: Iterable[float], seconds: Iterable[float]) -> float:
    """Exponent of the power law through the points, by least squares of the logarithms. Needs two different sizes."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(seconds)), 1)[0])


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure our update at every point, all points interleaved. Takes the first dtype and compile mode given."""
    series = points(given.batch, given.length, given.horizon)
    settings = {"dtype": given.dtype[0], "compile": given.compile[0]}
    base = ours.case(given)
    with ExitStack() as exits:
        processes = {}
        for b, t, h in sorted({p for some in series.values() for p in some}):
            case = ours.case(given, batch=b, length=t, horizon=h)
            processes[f"{b} {t} {h}"] = exits.enter_context(Process("benchmarks.ours", case, settings))
        for process in processes.values():
            process.ask("update", count=2)  # warms up
        answers = rounds.interleave(processes, given.rounds, "update", count=given.updates)
    rows = {name: _row(name, found) for name, found in answers.items()}
    slopes = {}
    for changed, some in series.items():
        chosen = [rows[" ".join(map(str, p))] for p in some]
        slopes[changed] = {kind: slope([r[changed] for r in chosen], [r[f"{kind} s"] for r in chosen]) for kind in ("median", "best")}
    about = {"case": vars(base), "mode": settings, "machine": machine.describe(base.device)}
    return {"benchmark": "growth", **about, "updates": given.updates, "rows": list(rows.values()), "slopes": slopes}


def _row(name: str, found: rounds.Answers) -> dict[str, Any]:
    b, t, h = map(int, name.split())
    row = {"B": b, "T": t, "H": h, "B * T": b * t, **rounds.summary(found)}
    row |= {"median s": row.pop("median"), "best s": row.pop("best")}
    return row | {"us per step": row["best s"] / (b * t) * 1e6}


def show(result: dict[str, Any]) -> None:
    """The table and the slopes."""
    print(rounds.table(result["rows"], COLUMNS))
    for changed, found in result["slopes"].items():
        print(f"slope of log time over log {changed}: {found['median']:.2f} (medians), {found['best']:.2f} (best)")
