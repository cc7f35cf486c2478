"""Does the variant `goal` reach goals? `python -m benchmarks.goals DIR [--seed 0] [--world fourrooms] [--set key=value ...]`.

Trains in a world of rooms where some cells are held out: they are never commanded and never become goals in hindsight. Judges
training goals, held-out goals, and the control in which every row is told another row's goal; prints one line of JSON with the
random policy's success beside it, and writes goals.json and goals.png (reached in green, missed in red; held-out goals last).
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensordict import TensorDict

from polydream.core.player import Player, load
from polydream.core.presets import resolve
from polydream.core.specs import Task
from polydream.core.train import train
from polydream.eval.goals import Attempt, attempt, goal_grid
from polydream.eval.rollout import RandomPlayer
from polydream.tasks.base import Common
from polydream.tasks.grids import FourRooms, Grid, Rooms25, place, places
from polydream.tasks.world import MOVES
from polydream.variants.goal import Goal

COMMON = {
    "batch": 16,
    "length": 16,
    "replay.online": False,
    "agent.optim.lr": 1e-3,
    "agent.starts": 8,
}
DEFAULTS = {"fourrooms": {"steps": 5000, "random": 500, "ratio": 128}, "rooms25": {"steps": 30_000, "random": 1000, "ratio": 32}}
HELD = {"fourrooms": 12, "rooms25": 25}
"""How many cells are held out."""


def held_out(spots: np.ndarray, count: int) -> np.ndarray:
    """Cells (count, 2) that are no goals in training, the same every time. Every row and column of theirs is seen in other goals."""
    chosen = spots[np.random.default_rng(0).choice(len(spots), count, replace=False)]
    rest = {tuple(s) for s in spots} - {tuple(c) for c in chosen}
    assert all({c[i] for c in chosen} <= {r[i] for r in rest} for i in (0, 1))
    return chosen


class Told(Grid):
    """A grid with goals of our choosing: `goal` is the number of a cell, or -1 for a random one that is not held out."""

    def __init__(self, *args: Any, goal: int = -1, **options: Any) -> None:
        super().__init__(*args, **options)
        held = {tuple(c) for c in held_out(self._spots, HELD[self.name.rpartition("/")[2]])}
        self._open = np.array([s for s in self._spots if tuple(s) not in held])
        self._told = goal

    def _aim(self, not_at: np.ndarray) -> np.ndarray:
        if self._told >= 0:
            return self._spots[self._told]
        choice = self._open[(self._open != not_at).any(1)]
        return choice[self._rng.integers(len(choice))]


class HeldRooms(Told, FourRooms):
    """Four rooms, starting anywhere."""

    def _start(self) -> None:
        self._goal = self._aim(np.array([-1, -1]))
        self._cell = self._draw(not_at=self._goal)


class HeldRooms25(Told, Rooms25):
    """25 rooms with goals, starting in the first room."""

    memory = ("_cell", "_goal")

    def __init__(self, name: str, common: Common, *, goal: int = -1, limit: int = 200) -> None:
        super().__init__(name, common, goal=goal, limit=limit)
        self.spec = replace(self.spec, obs={**self.spec.obs, **places(self._free, "goal_")})

    def _start(self) -> None:
        super()._start()
        self._goal = self._aim(self._cell)

    def _vectors(self) -> dict[str, np.ndarray]:
        return super()._vectors() | place(self._goal, "goal_")


WORLDS: dict[str, Callable[..., Any]] = {"fourrooms": HeldRooms, "rooms25": HeldRooms25}


def rooms(world: str = "fourrooms", seed: int = 0, goal: int = -1) -> Task:
    """The task of a run: `--task benchmarks.goals:rooms`."""
    task: Task = WORLDS[world](f"world/{world}", Common(seed=seed), goal=goal)
    return task


class Held(Goal):
    """The variant, never setting a held-out cell as a goal in hindsight."""

    def eligible(self, batch: TensorDict) -> torch.Tensor:
        """Steps in cells that are not held out, bool (B, T)."""
        at = batch["obs", "y"].long() * 1000 + batch["obs", "x"].long()
        rows, columns = (self.spec.obs[k].classes for k in ("y", "x"))
        world = "fourrooms" if rows == 11 else "rooms25"
        probe: Any = rooms(world)
        cells = held_out(probe._spots, HELD[world])
        assert probe._free.shape == (rows, columns)
        return ~torch.isin(at, torch.as_tensor(cells @ [1000, 1], device=at.device))


def steps_away(free: np.ndarray, cell: Sequence[int]) -> np.ndarray:
    """Fewest steps (rows, columns) to a cell, -1 where there is no way: breadth-first."""
    far = np.full(free.shape, -1)
    far[tuple(cell)] = 0
    queue = deque([tuple(cell)])
    while queue:
        here = queue.popleft()
        for move in MOVES[1:]:
            there = (here[0] + move[0], here[1] + move[1])
            if free[there] and far[there] < 0:
                far[there] = far[here] + 1
                queue.append(there)
    return far


def goals_of(world: str) -> tuple[list[int], list[int]]:
    """Numbers of the training cells and of the held-out ones."""
    probe: Any = rooms(world)
    held = {tuple(c) for c in held_out(probe._spots, HELD[world])}
    numbers = {tuple(s): i for i, s in enumerate(probe._spots)}
    return [i for s, i in numbers.items() if s not in held], [numbers[h] for h in sorted(held)]


def judge(
    player: Player | RandomPlayer, world: str, *, episodes: int, seed: int, pictures: bool = False
) -> tuple[dict[str, Any], list[Attempt]]:
    """Success at training and held-out goals and under goals that are not one's own; path length over the shortest, on successes."""
    trained, held = goals_of(world)
    found: dict[str, Any] = {}
    shown: list[Attempt] = []
    free = rooms(world)._free  # type: ignore[attr-defined]
    for name, numbers in (("trained", trained), ("held", held), ("shuffled", trained)):
        makers = [partial(rooms, world, goal=g) for g in numbers] * episodes
        told = [(i + len(numbers) // 2) % len(makers) for i in range(len(makers))] if name == "shuffled" else None
        tries = attempt(player, makers, seed=seed, told=told, pictures=pictures and name != "shuffled")
        shown += tries[: len(numbers)] if name != "shuffled" else []
        ways = [t.steps / _shortest(free, t) for t in tries if t.steps]
        found[name] = round(float(np.mean([t.reached for t in tries])), 3)
        found[f"{name}_path"] = round(float(np.mean(ways)), 2) if ways else None
    return found, shown


def _shortest(free: np.ndarray, one: Attempt) -> int:
    at = {k: int(v) for k, v in one.first.items()}
    return int(steps_away(free, (at["goal_y"], at["goal_x"]))[at["y"], at["x"]])


def main() -> None:
    """Train, or judge a finished run, and write down how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", choices=list(WORLDS), default="fourrooms")
    parser.add_argument("--variant", default="benchmarks.goals:Held")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    parser.add_argument("--episodes", type=int, default=4, help="per goal")
    args = parser.parse_args()
    settings = {**COMMON, **DEFAULTS[args.world], **dict(s.split("=", 1) for s in args.set)}
    if not (args.dir / "config.yaml").exists():
        chosen = {"variant": args.variant, "task": "benchmarks.goals:rooms", "preset": "laptop"}
        fixed = {"seed": args.seed, "dir": str(args.dir), "env.options": f"world={args.world}", "log.mlflow": False, "threads": 1}
        train(resolve(chosen, {**fixed, **settings}))
    found, shown = judge(
        load(args.dir, code=[args.variant, "benchmarks.goals:rooms"]), args.world, episodes=args.episodes, seed=args.seed, pictures=True
    )
    chance, _ = judge(RandomPlayer(rooms(args.world).spec, args.seed), args.world, episodes=args.episodes, seed=args.seed)
    result = {"world": args.world, "seed": args.seed, **settings, **found, "chance": chance["trained"], "chance_held": chance["held"]}
    (args.dir / "goals.json").write_text(json.dumps(result) + "\n")
    Image.fromarray(goal_grid(shown, 10)).resize((800, -(-len(shown) // 10) * 80)).save(args.dir / "goals.png")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
