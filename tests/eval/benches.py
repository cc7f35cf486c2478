"""Finished benchmarks made by hand: run directories with chosen scores, without any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from polydream.core.log import Log
from polydream.eval.grid import Cell, Grid
from polydream.eval.suites import Entry, Suite

STEPS = 1000


def small_suite(*names: str, window: int = 400, scores: str = "") -> Suite:
    """Tasks whose scores normalise from 0 ... 10 to 0 ... 1."""
    tasks = tuple(Entry(task=f"world/{name}", high=10.0, published=f"dmc_{name}" if scores else "") for name in names)
    return Suite(name="small", about="small tasks", tasks=tasks, steps=STEPS, seeds=2, window=window, scores=scores)


def small_grid(
    directory: Path, variants: tuple[str, ...] = ("base", "other"), seeds: int = 2, options: Mapping[str, str] | None = None
) -> Grid:
    return Grid(small_suite("chain", "reach"), variants, tuple(range(seeds)), directory, options or {})


def finish(cell: Cell, score: float, early: float = 0.0) -> None:
    """A cell whose evaluation gives `score`, whose training gave `early` in the first half and `score` - 1 in the second."""
    with Log(cell.directory, mlflow=False) as log:
        log.scalars(0, {"command": "python -m polydream train", "parameters": 1000}, "run")
        log.scalars(0, {"mode": "random", "return_mean": 0.5, "return_std": 0.0, "returns": [0.5]}, "eval")
        for step in range(100, STEPS + 1, 100):
            log.episode(step, early if step <= STEPS // 2 else score - 1, 50)
            log.scalars(step, {"fps": 100.0, "ups": 1.0}, "speed")
        log.health(STEPS, "vanishing advantages: nothing to learn from")
        for mode, shift in (("sample", 0.0), ("mode", 0.5)):
            log.scalars(STEPS, {"mode": mode, "return_mean": score + shift, "return_std": 1.0, "returns": [score]}, "eval")
    cell.write(command=cell.words, attempts=1, seconds=60.0, done=True)


def finished(directory: Path, scores: Callable[[Cell], float] | None = None, **more: object) -> Grid:
    """All cells of the small grid finished: base scores 2 + seed, others 6 + seed."""
    grid = small_grid(directory, **more)  # type: ignore[arg-type]
    for cell in grid.cells:
        finish(cell, scores(cell) if scores else (2.0 if cell.variant == "base" else 6.0) + cell.seed)
    return grid
