"""Does a manager help? `python -m benchmarks.hierarchy DIR [--agent hierarchical|frozen|base] [--seed 0] [--goal 9] [--set key=value ...]`.

One goal in four rooms, reward 1 in its cell and nothing else, episodes of 50 steps from anywhere. `frozen` is the same hierarchy with a
manager that never learns and so draws codes uniformly. Trains, plays with actions drawn from the policy (`success`) and with the likeliest
(`likeliest`), and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

from polydream.core.player import load
from polydream.core.presets import resolve
from polydream.core.train import train
from polydream.eval.rollout import RandomPlayer, evaluate
from polydream.tasks.world import make
from polydream.variants.hierarchical import Hierarchical

SETTINGS = {
    "steps": 5000,
    "random": 800,
    "batch": 16,
    "length": 16,
    "ratio": 128,
    "replay.online": False,
    "agent.optim.lr": 1e-3,
    "agent.optim.schedule": "linear",
    "agent.optim.anneal": 2500,
    "agent.starts": 8,
}
GOAL = 9
"""Number of the goal's cell, row by row: inside the top left room."""


class Frozen(Hierarchical):
    """A hierarchy whose manager stays as it was drawn: uniform to within 1 %."""

    def scales(self) -> dict[str, float]:
        """No weight on what would move the manager."""
        return super().scales() | {"manager/policy": 0.0}


VARIANTS = {"hierarchical": "hierarchical", "frozen": "benchmarks.hierarchy:Frozen", "base": "base"}


def main() -> None:
    """Train one agent and write down how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--agent", choices=list(VARIANTS), default="hierarchical")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", type=int, default=GOAL, help="number of the goal's cell, row by row")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    args = parser.parse_args()
    settings = {**SETTINGS, **dict(s.split("=", 1) for s in args.set)}
    variant = VARIANTS[args.agent]
    fixed = {"seed": args.seed, "dir": str(args.dir), "env.options": f"goal={args.goal}", "log.mlflow": False, "threads": 1}
    fixed["eval.every"] = 0
    if not (args.dir / "config.yaml").exists():
        train(resolve({"variant": variant, "task": "world/fourrooms", "preset": "laptop"}, {**fixed, **settings}))
    player = load(args.dir, code=[variant])
    place = partial(make, "fourrooms", goal=args.goal)
    judge = partial(evaluate, make_task=place, episodes=args.episodes, seed=args.seed, max_steps=50)
    found = {"success": judge(player, mode="sample"), "likeliest": judge(player, mode="mode")}
    chance = evaluate(RandomPlayer(make("fourrooms").spec, args.seed), place, episodes=args.episodes, seed=args.seed, max_steps=50)
    rates = {k: float(np.mean([r > 0 for r in e.returns])) for k, e in {**found, "chance": chance}.items()}
    result = {"agent": args.agent, "seed": args.seed, "goal": args.goal, **rates, "episodes": args.episodes, **settings}
    (args.dir / "hierarchy.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
