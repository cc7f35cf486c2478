"""Makes rliable.json; see README.md. Runs in an environment with rliable, which polydream's own does not have."""

from __future__ import annotations

import gzip
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

DATA = Path(__file__).parents[3] / "eval" / "data"
SEED, REPS, TAUS = 123, 300, [-0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5]
AGGREGATES = {
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "iqm": metrics.aggregate_iqm,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def published(name: str, end: int = 500_000, last: int = 50_000) -> np.ndarray:
    """Scores (R, M): mean of each run over (end - last, end], divided by 1000."""
    found: dict[str, list[float]] = {}
    for run in json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes())):
        steps, values = np.array(run["xs"], float), np.array([np.nan if y is None else y for y in run["ys"]], float)
        inside = (steps > end - last) & (steps <= end) & np.isfinite(values)
        found.setdefault(run["task"], []).append(values[inside].mean() / 1000)
    return np.array([found[task] for task in sorted(found)]).T


def interval(scores: Any, function: Any) -> list[float]:
    """Point estimate, lower and upper end."""
    np.random.seed(SEED)  # noqa: NPY002  the generator that rliable uses
    points, ends = library.get_interval_estimates({"a": scores}, lambda *x: np.array([function(*x)]), reps=REPS)
    return [float(points["a"][0]), *map(float, ends["a"][:, 0])]


def case(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Everything of one pair of matrices."""
    found: dict[str, Any] = {"x": x.tolist(), "y": y.tolist()}
    for who, scores in (("x", x), ("y", y)):
        found |= {f"{who}/{key}": interval(scores, function) for key, function in AGGREGATES.items()}
        np.random.seed(SEED)  # noqa: NPY002
        points, ends = library.create_performance_profile({"a": scores}, np.array(TAUS), reps=REPS)
        found[f"{who}/profile"] = [points["a"].tolist(), *ends["a"].tolist()]
    return found | {"improvement": interval([x, y], metrics.probability_of_improvement)}


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(7)
    drawn = np.round(rng.normal(0.6, 0.8, (4, 7)), 1), np.round(rng.normal(0.4, 0.8, (6, 7)), 1)
    cases = {"proprio": case(published("dmc_proprio-dreamerv3"), published("dmc_proprio-dmpo")), "drawn": case(*drawn)}
    made = {name: version(name) for name in ("rliable", "arch", "numpy", "scipy", "pandas")}
    text = json.dumps({"made_with": made, "seed": SEED, "reps": REPS, "taus": TAUS, "cases": cases}, separators=(",", ":"))
    Path(__file__).with_name("rliable.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
