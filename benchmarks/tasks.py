"""Does the variant `multitask` tell its tasks apart? `python -m benchmarks.tasks DIR [--seed 0] [--loud 1] [--set key=value ...]`.

Trains on the suite world-grid4 as `train --variant multitask` does, 10 000 steps over all tasks, or takes the finished run of DIR.
Then every task is played under its own number and, as control, under every other's, which wants another corner. `--loud N`
multiplies all rewards of task N by 1000, which should cost no task anything. Prints one line of JSON with the successes and the
random policy's, and writes it to tasks.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polydream.asked import stored_config
from polydream.core.launch import make_task
from polydream.core.player import Player, load
from polydream.core.presets import resolve
from polydream.core.specs import Task
from polydream.core.train import train
from polydream.eval.judge import Judge
from polydream.eval.rollout import Player as Plays
from polydream.eval.rollout import RandomPlayer, evaluate
from polydream.eval.round import alone
from polydream.tasks.base import Common
from polydream.tasks.grids import Grid4
from polydream.tasks.suites import Entry, Several

LOUD = "benchmarks.tasks:loud"
FACTOR = 1000.0
STEPS = 10_000


class LoudCorner(Grid4):
    """A corner that pays, and takes, `factor` instead of 1."""

    def __init__(self, goal: int, factor: float, seed: int) -> None:
        super().__init__("world/grid4", Common(seed=seed), goal=goal)
        self._factor = factor

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        reward, ended = super()._move(action)
        return reward * self._factor, ended


def corner(goal: int = 0, factor: float = 1.0, seed: int = 0) -> Task:
    """One task: `benchmarks.tasks:corner`."""
    return LoudCorner(goal, factor, seed)


def loud(task: int = 0, factor: float = FACTOR, seed: int = 0) -> Task:
    """The four corners, with all rewards of one multiplied: `--task benchmarks.tasks:loud --env.options task=2`."""
    factors = [factor if g == task else 1.0 for g in range(4)]
    options = [{"goal": g, "factor": f} for g, f in enumerate(factors)]
    sizes = [{"low": -0.36 * f, "high": f, "success": f} for f in factors]
    entries = [
        Entry(task="benchmarks.tasks:corner", name=f"corner{g}", options=o, **s)
        for g, (o, s) in enumerate(zip(options, sizes, strict=True))
    ]
    return Several("suite/loud", tuple(entries), {"seed": seed})


class Misled:
    """A player that takes every task for the one `shift` numbers further."""

    def __init__(self, player: Player, shift: int) -> None:
        self.player, self.shift = player, shift

    def initial(self, n: int) -> Any:
        """As the player's own."""
        return self.player.initial(n)

    def act(self, obs: Mapping[str, np.ndarray], state: Any, *, is_first: np.ndarray, mode: Any) -> tuple[Any, Any]:
        """What the player does for that other task."""
        told = (obs["task"] + self.shift) % len(self.player.spec.tasks)
        return self.player.act({**obs, "task": told.astype(np.int32)}, state, is_first=is_first, mode=mode)


def successes(player: Plays, make: Callable[[], Task], *, episodes: int, seed: int, mode: Any = "sample") -> dict[str, float]:
    """Share of episodes that succeed, by task."""
    members, found = make().spec.tasks, {}
    for index, (name, member) in enumerate(members.items()):
        one = partial(alone, make, index, len(members))
        returns = evaluate(player, one, episodes=episodes, seed=seed, mode=mode).returns
        found[name] = round(float(np.mean([r >= (member.success or member.high) for r in returns])), 3)
    return found


def judge(player: Player, make: Callable[[], Task], *, episodes: int, seed: int) -> dict[str, Any]:
    """Success under the own number, and the mean over tasks under each wrong one. Sampled and most likely actions."""
    several: dict[str, Any] = {m: successes(player, make, episodes=episodes, seed=seed, mode=m) for m in ("sample", "mode")}
    wrong = [successes(Misled(player, s), make, episodes=episodes, seed=seed) for s in range(1, len(player.spec.tasks))]
    chance = successes(RandomPlayer(player.spec, seed), make, episodes=episodes, seed=seed)
    several["worst"] = min(several["sample"].values())
    return several | {"permuted": [round(float(np.mean(list(w.values()))), 3) for w in wrong], "random": chance}


def main() -> None:
    """Train, or judge a finished run, and write down how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loud", type=int, choices=range(4), help="task whose rewards are multiplied by 1000")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    parser.add_argument("--episodes", type=int, default=20, help="per task")
    args = parser.parse_args()
    if not (args.dir / "config.yaml").exists():
        settings = {"seed": args.seed, "dir": str(args.dir), "steps": STEPS, "log.mlflow": False, "eval.episodes": args.episodes}
        settings |= {} if args.loud is None else {"env.options": f"task={args.loud}"}
        task = "suite/world-grid4" if args.loud is None else LOUD
        train(resolve({"variant": "multitask", "task": task}, settings | dict(s.split("=", 1) for s in args.set)), Judge())
    cfg = stored_config(args.dir, [LOUD])
    found = judge(load(args.dir, code=[LOUD]), partial(make_task, cfg), episodes=args.episodes, seed=cfg.seed)
    result = {"task": cfg.task, "seed": cfg.seed, "loud": args.loud, "steps": cfg.steps, **found}
    (args.dir / "tasks.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
