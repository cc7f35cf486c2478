"""How much of a world an explorer sees: `python -m benchmarks.coverage [--seed 0] [--intrinsic 1] [--set key=value ...] [--out DIR]`.

Trains `ensemble` on world/rooms25 with the explorer acting in every episode and prints the share of the 665 cells that were
visited, beside that of uniformly random actions: with the same seed (`random`) and on average (`random_mean`). `--intrinsic 0` is the
control: the same two policies, nothing paid for disagreement. With --out writes a map of the visits and of the disagreement about
every cell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from polydream.core.presets import resolve
from polydream.core.registry import task
from polydream.core.rng import Draws
from polydream.core.train import Trainer
from polydream.tasks.grids import rooms
from polydream.tasks.world import MOVES

from .distances import journeys, replayed

FREE = rooms(5, 5)
TASK = "world/rooms25"
RANDOM_RUNS = 20
"""Seeds that random actions are averaged over: one run of theirs sees 0.25 to 0.40 of the cells."""


def cell(step: dict[str, Any]) -> tuple[int, int]:
    """Row and column of one environment's step."""
    return int(step["obs"]["y"]), int(step["obs"]["x"])


def share(visits: np.ndarray) -> float:
    """Of the cells, how many were visited."""
    return float((visits > 0).sum() / FREE.sum())


def random_visits(steps: int, seed: int) -> np.ndarray:
    """Visits of every cell by uniformly random actions, int (rows, columns)."""
    rng, world = np.random.default_rng(seed), task(TASK, seed=seed)
    visits, step = np.zeros(FREE.shape, int), world.reset()
    for _ in range(steps):
        visits[cell(step)] += 1
        step = world.reset() if step["is_last"] else world.step({"action": rng.integers(0, 5)})
    return visits


def explore(steps: int, seed: int, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Train and count: visits of every cell, and the disagreement about the ways out of it, both (rows, columns)."""
    visits = np.zeros(FREE.shape, int)
    with TemporaryDirectory() as folder:
        usual = {"steps": steps, "seed": seed, "dir": folder, "log.mlflow": False, "eval.video": False, "save_every": 0}
        cfg = resolve({"variant": "ensemble", "task": TASK}, usual | settings)
        with Trainer(cfg) as trainer:
            stepped = trainer.envs.step

            def counted(actions: Any) -> Any:
                seen = stepped(actions)
                visits[seen["obs"]["y"][0], seen["obs"]["x"][0]] += 1
                return seen

            trainer.envs.step = counted  # type: ignore[method-assign]
            trainer.run()
            return visits, doubts(trainer.agent)


def doubts(agent: Any) -> np.ndarray:
    """Disagreement about what follows each cell, mean over the five actions: (rows, columns). The model has walked there from the start."""
    cells, number = np.argwhere(FREE), len(MOVES)
    places, actions = journeys(task(TASK, seed=0), np.repeat(cells, number, 0), last=np.tile(np.arange(number), len(cells)))
    found = []
    for action in range(number):
        y, x = (torch.from_numpy(places[action::number, :, i]) for i in (0, 1))
        batch = replayed({"y": y, "x": x}, actions[action::number])
        found.append(agent.measure(batch, Draws(0))[:, -1].numpy())  # entry t is about the way from t - 1 to t
    doubt = np.full(FREE.shape, np.nan)
    doubt[tuple(cells.T)] = np.mean(found, 0)
    return doubt


def picture(visits: np.ndarray, doubt: np.ndarray, path: Path) -> None:
    """Two maps side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    shown = (("visits", np.where(FREE & (visits > 0), np.log10(np.maximum(visits, 1)), np.nan), "log10"), ("disagreement", doubt, ""))
    for i, (name, values, unit) in enumerate(shown):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.imshow(np.where(FREE, 1.0, 0.25), cmap="gray", vmin=0, vmax=1)
        drawn = axes.imshow(values, cmap="viridis")
        axes.set_title(f"{name}{', ' + unit if unit else ''}", loc="left", fontsize=11)
        axes.set_axis_off()
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--intrinsic", type=float, default=1.0, help="agent.ensemble.intrinsic; 0 is the control")
    parser.add_argument("--kind", default="heads", help="agent.ensemble.kind")
    parser.add_argument("--prior", type=float, default=0.0, help="agent.ensemble.prior")
    parser.add_argument("--ratio", type=float, default=128.0)
    parser.add_argument("--lr", type=float, default=1e-3, help="agent.optim.lr")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    parser.add_argument("--out", type=Path, help="folder for the map and the numbers")
    given = parser.parse_args()
    settings = {
        "agent.ensemble.kind": given.kind, "agent.ensemble.intrinsic": given.intrinsic, "agent.ensemble.episodes": 1.0,
        "agent.ensemble.prior": given.prior,
        "agent.ensemble.dreams": 0.75, "agent.starts": 4, "batch": 16, "length": 16, "ratio": given.ratio, "agent.optim.lr": given.lr,
        # With the usual 3e-4 the explorer settles while its values still climb, when every action looks good.
        "agent.actor.entropy": 3e-3,
    }  # fmt: skip
    further = dict(s.split("=", 1) for s in given.set)
    visits, doubt = explore(given.steps, given.seed, settings | further)
    row = {
        "seed": given.seed,
        "steps": given.steps,
        "kind": given.kind,
        "intrinsic": given.intrinsic,
        "prior": given.prior,
        "ratio": given.ratio,
        "lr": given.lr,
        **further,
    }
    row |= {"coverage": share(visits), "random": share(random_visits(given.steps, given.seed))}
    row["random_mean"] = float(np.mean([share(random_visits(given.steps, seed)) for seed in range(RANDOM_RUNS)]))
    never = FREE & (visits == 0)
    row["doubt_unseen_over_seen"] = float(np.nanmean(doubt[never]) / np.nanmean(doubt[visits > 0])) if never.any() else None
    print(json.dumps(row), flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        name = f"coverage-{given.kind}-{given.intrinsic:g}-prior{given.prior:g}-s{given.seed}"
        (given.out / f"{name}.json").write_text(json.dumps(row) + "\n")
        picture(visits, doubt, given.out / f"{name}.png")


if __name__ == "__main__":
    main()
